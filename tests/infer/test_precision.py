"""Nets in bfloat16: what is rounded, what is not, and when it is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import ppl_vae as pv
from ppl_vae.infer.precision import Rounded, refuse_rounding

X = np.random.RandomState(0).randn(200, 2) @ np.random.RandomState(1).randn(2, 6) + np.random.RandomState(2).randn(
    200, 6
)
FIT: dict[str, Any] = {"epochs": 20, "lr": 1e-2, "batch_size": 50, "progress": False}


def test_products_alone_are_rounded() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(size, generator=generator) for size in ((5, 64), (7, 64), (7,)))
    with Rounded():
        found, double, plain = functional.linear(x, w, b), functional.linear(x.double(), w.double()), x @ w.T
    assert torch.equal(found, functional.linear(x.bfloat16(), w.bfloat16(), b.bfloat16()).float())
    assert found.dtype == torch.float32 and not torch.equal(found, functional.linear(x, w, b))
    assert torch.equal(double, functional.linear(x.double(), w.double())) and torch.equal(plain, x @ w.T)


@pytest.mark.parametrize("likelihood", ["normal", "student_t"])
def test_a_fit_ends_where_it_does_without(likelihood: str) -> None:
    """To a twentieth of what it gains; weights and scores are in float32."""
    ends = []
    for precision in ("float32", "bf16"):
        vae = pv.build(X, latent=2, hidden=(16,), likelihood=likelihood)
        first = pv.score(vae, X, "elbo").values.mean()
        history = pv.fit(vae, X, precision=precision, **FIT)
        ends.append(pv.score(vae, X, "elbo").values.mean())
        assert (history.rounding is None) == (precision == "float32")
        assert all(p.dtype == torch.float32 for p in vae.parameters())
    assert ends[0] != ends[1] and abs(ends[0] - ends[1]) < 0.05 * (ends[0] - first)


def test_graphs_are_rounded_too(traced: list[int]) -> None:
    histories = [
        pv.fit(pv.build(X, latent=2, hidden=(16,)), X, precision="bf16", compiled=choice, **{**FIT, "epochs": 2})
        for choice in (False, True)
    ]
    assert len(traced) == 1 and np.allclose(*(history["bound"] for history in histories), rtol=2e-3)
    exact = pv.fit(pv.build(X, latent=2, hidden=(16,)), X, **{**FIT, "epochs": 2})
    assert not np.allclose(histories[1]["bound"], exact["bound"], rtol=1e-6)


def test_convolutions() -> None:
    """Rounded too, both ways."""
    x = (np.random.RandomState(0).rand(40, 1, 8, 8) > 0.5).astype("float32")
    vae = pv.build(x, latent=2, hidden=(8,), nets="cnn", likelihood="bernoulli")
    history = pv.fit(vae, x, precision="bf16", **{**FIT, "epochs": 2})
    assert np.isfinite(history["bound"]).all() and 0 < abs(history.rounding) < 0.1


def test_what_is_refused() -> None:
    """Rounding that changes the bound by more than its noise: near 100 numbers of bfloat16 are half a unit apart."""
    far = X * 0.01 + 100
    vae = pv.build(far, latent=2, hidden=(), standardize="none", scale=0.01)
    with torch.no_grad():
        vae.decoder.net[-1].weight.zero_(), vae.decoder.net[-1].bias.fill_(100.1)
    with pytest.raises(pv.OptionError, match=r"precision: got 'bf16', which changes the bound by -?\d.* nats a row"):
        pv.fit(vae, far, precision="bf16", **FIT)
    with pytest.raises(pv.OptionError, match="precision: got 'half', expected one of 'float32', 'bf16'"):
        pv.fit(vae, far, precision="half", **FIT)


def test_the_change_is_judged_by_the_noise() -> None:
    """The mean over rows moves by 0.1, the noise over draws is 0.05, then 0.2."""
    noise = torch.tensor([-1.0, 1.0, -1.0, 1.0, 0.0])[:, None].expand(5, 7)
    whole = 0.05 * noise
    with pytest.raises(pv.OptionError, match=r"by 0.1 nats a row, where its Monte Carlo noise is 0.05"):
        refuse_rounding(torch.stack([whole, whole + 0.1]))
    assert refuse_rounding(torch.stack([4 * whole, 4 * whole + 0.1])) == pytest.approx(0.1)
