"""A loss or gradient that turns NaN or infinite at some step: the fit stops there, says where, and keeps what was good."""

from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import ppl_vae as pv
from ppl_vae.infer.run import Best, Run

X = np.random.RandomState(0).randn(60, 4).astype("float32")
BAD = 17  # the row whose code is large
X[BAD] = 1e4
FIT: dict[str, Any] = {"epochs": 2, "batch_size": 10, "lr": 1e-3, "valid": 0.0, "progress": False, "seed": 4}


class Likelihood(nn.Module):
    """Normal, but for rows whose code is large."""

    outputs = 1

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def forward(self, loc: torch.Tensor) -> Any:
        large = loc.abs() > 1e3
        if self.fault == "gradient":  # the slope of the root at 0 is infinite, and times 0 it is NaN
            loc = loc.where(~large, 0.0) + (loc.abs() * (~large)).sqrt()
        else:
            loc = loc.where(~large, {"nan": torch.nan, "inf": torch.inf}[self.fault])
        return dist.Normal(loc, 1.0).to_event(1)


def model(fault: str) -> Any:
    vae = pv.build(X, latent=2, hidden=(8,), standardize="none", likelihood=lambda d: Likelihood(fault))
    vae.encoder.net, vae.decoder.net = nn.Linear(4, 4), nn.Linear(2, 4)
    with torch.no_grad():
        for net in (vae.encoder.net, vae.decoder.net):
            net.weight.fill_(0.25), net.bias.fill_(0.1)
    return vae


def weights(vae: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in vae.parameters()]


@pytest.mark.parametrize("compiled", [False, "traced"])
@pytest.mark.parametrize("fault", ["nan", "inf", "gradient"])
def test_it_stops_at_that_step_with_the_state_before_it(
    fault: str, compiled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, plans = [], []
    after, plan = Run.after, Run.plan

    def noting(self: Run, step: Any, interrupted: bool) -> None:
        kept.append((step.number, weights(self.vae)))
        after(self, step, interrupted)

    def planning(self: Run, *args: Any) -> Any:
        plans.append(plan(self, *args))
        return plans[-1]

    monkeypatch.setattr(Run, "after", noting)
    monkeypatch.setattr(Run, "plan", planning)
    monkeypatch.setattr("ppl_vae.infer.traced.TOGETHER", 1)
    vae = model(fault)
    start = weights(vae)
    with pytest.raises(pv.NonFiniteError) as caught:
        pv.fit(vae, X, compiled=compiled, checkpoint=tmp_path, checkpoint_steps=1, **FIT)
    error = caught.value
    at = next(step for step, batch in enumerate(plans[0].batches) if BAD in batch)
    assert error.step == at > 0 and len(error.history) == 0
    if fault == "gradient":
        assert error.site is None and set(error.rows) == set(plans[0].batches[at].tolist())
        assert f"step {at}: got a gradient of " in str(error) and "encoder" in str(error)
    else:
        assert error.site == "x" and error.rows == [BAD]
        assert f"step {at}: got a log density of site 'x' at 1 rows, the first [{BAD}]" in str(error)
    assert kept[-1][0] == at and all(map(torch.equal, weights(vae), kept[-1][1]))
    assert all(torch.isfinite(p).all() for p in vae.parameters()) and not all(map(torch.equal, weights(vae), start))

    states = [load_file(path) for path in tmp_path.rglob("*.safetensors")]
    assert states and all(torch.isfinite(value).all() for state in states for value in state.values())
    again = model(fault)  # goes on from the last good step, and meets the same
    with pytest.raises(pv.NonFiniteError) as raised:
        pv.fit(again, X, compiled=compiled, checkpoint=tmp_path, checkpoint_steps=1, **FIT)
    assert str(raised.value) == str(error) and all(map(torch.equal, weights(again), weights(vae)))


def test_a_cell_so_large_that_it_may_be_why_is_named() -> None:
    table = X.copy()
    table[5, 2] = 1e30
    with pytest.raises(pv.NonFiniteError, match=r"Column 'x2' has in row 5 a value of size 1e\+30 once encoded"):
        pv.fit(pv.build(table, standardize="none", latent=2), table, **FIT)


def test_a_validation_bound_that_is_nan_is_no_best_one() -> None:
    weight = torch.zeros(1)
    best = Best(3, after=1)
    for epoch, bound in enumerate([float("nan"), -5.0, float("nan"), -6.0], 1):
        weight.fill_(epoch)
        assert not best.is_over(bound, epoch, [weight])
    assert best.restore() == 2 == weight
