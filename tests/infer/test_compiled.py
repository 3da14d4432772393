"""Compiled steps against the same steps without a graph, under the same noise; nothing here is left to chance.

TorchInductor takes seconds a graph: most tests run what `torch.fx` wrote down as it is, a few what was compiled of it.
"""

import logging
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.infer import compiled, graphs
from ppl_vae.infer.optim import OPTIMIZERS
from ppl_vae.infer.updates import UPDATES, Sizes

RANDOM = np.random.RandomState(0)
X = RANDOM.randn(52, 4)
BITS = (X > 0).astype("float64")
HOLES = np.add.outer(np.arange(52), np.arange(4) * 5) % 11 == 0
MIXED = pd.DataFrame(
    {
        "real": X[:, 0],
        "positive": np.exp(X[:, 1]),
        "count": np.floor(np.exp(X[:, 2] / 2)),
        "kind": np.array(["low", "mid", "high"])[np.digitize(X[:, 3], [0, 1])],
    }
).mask(HOLES)
BESIDE = MIXED.assign(age=30 + X[:, 0], site=np.array(["north", "south"])[BITS[:, 1].astype(int)])
FIT: dict[str, Any] = {"epochs": 2, "batch_size": 16, "lr": 1e-2, "valid": 0.0, "progress": False}


def small(**options: Any) -> pv.VAE:
    return pv.build(X, **{"latent": 3, "hidden": (8,), **options})


def agree(make: Any, x: Any = X, tolerance: float = 1e-9, double: bool = True, **options: Any) -> None:
    """Fits without a graph, with what was written down, and with one of whole steps have one history and the same weights.

    Three whole batches and a short one, twice; by SGD, so that weights differ as gradients do, and these are in float64.
    """
    options = {"optimizer": "sgd", **FIT, **options}
    fitted = []
    for choice in (False, "traced", True):
        vae = make().double() if double else make()
        history = pv.fit(vae, x, compiled=choice, **options)
        assert (history.compile_seconds is not None) == bool(choice)
        fitted.append((vae, history))
    vae, history = fitted[0]
    for other, graph in fitted[1:]:
        for name in ("bound", "reconstruction", "kl", "objective", "grad_norm", "valid_bound", "kl_weight", "lr"):
            assert np.allclose(history[name], graph[name], rtol=tolerance, equal_nan=True), name
        assert vae.steps == other.steps
        for (name, p), q in zip(vae.named_parameters(), other.parameters()):
            assert torch.allclose(p, q, rtol=tolerance, atol=tolerance), name


OBJECTIVES: dict[str, tuple[Any, int]] = {
    "elbo": ("elbo", 1),
    "elbo of 3": ("elbo", 3),
    "analytic_kl": ("analytic_kl", 1),
    "analytic_kl of 2": ("analytic_kl", 2),
    "iwae": ("iwae", 3),
    "dreg": ("dreg", 3),
    "mean_iwae": (("mean_iwae", {"groups": 2}), 2),
    "renyi": (("renyi", {"alpha": 0.3}), 3),
    "sticking_the_landing": ("sticking_the_landing", 2),
    "sticking_the_landing on iwae": (("sticking_the_landing", {"bound": "iwae"}), 2),
    "beta": ("beta", 1),
    "cyclic": ("cyclic", 1),
    "vimco": ("vimco", 3),
    "reweighted_wake_sleep": ("reweighted_wake_sleep", 3),
    "leave_one_out": (("score_function", {"baseline": "leave_one_out"}), 2),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective(traced: list[int], name: str) -> None:
    objective, particles = OBJECTIVES[name]
    agree(small, objective=objective, particles=particles)
    assert len(traced) == 1


PRIORS = ("mixture", "vamp", "flow", "laplace", "student_t", "ard", "horseshoe")
POSTERIORS = ("low_rank", "full_rank", "iaf", "spline_flow", "mixture")
PROGRAMS: dict[str, tuple[Any, dict[str, Any]]] = {
    **{f"{name} prior": (X, {"prior": name}) for name in PRIORS},
    **{f"{name} posterior": (X, {"posterior": name}) for name in POSTERIORS},
    "holes": (np.where(HOLES, np.nan, X), {"nullable": True}),
    "mixed": (MIXED, {"likelihood": "infer"}),
    "covariates and groups": (
        BESIDE,
        {"likelihood": "infer", "covariates": ["age"], "group": "site", "prior": "hierarchical"},
    ),
    "uncertain weights": (X, {"weights": "normal"}),
    "student_t": (X, {"likelihood": "student_t"}),
    "full_normal": (X, {"likelihood": "full_normal"}),
    "relaxed": (X, {"prior": "categorical", "posterior": "categorical"}),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(traced: list[int], name: str) -> None:
    x, options = PROGRAMS[name]
    objective = ("relaxation", {"temperature": 0.5}) if name == "relaxed" else "elbo"
    agree(lambda: pv.build(x, **{"latent": 3, "hidden": (8,), **options}), x, objective=objective)


@pytest.mark.parametrize(
    "options",
    [
        {"binarize": "stochastic"},
        {"kl_warmup": 2, "max_grad_norm": 0.1},
        {"optimizer": "adamw", "weight_decay": 0.1},
        {"valid": 0.3, "patience": 1, "epochs": 4, "lr": 2.0},
        {"batch_size": 500},
        {"batch_size": 1},
    ],
)
def test_options(traced: list[int], options: dict[str, Any]) -> None:
    x = BITS * 0.8 + 0.1 if "binarize" in options else BITS
    agree(lambda: small(likelihood="bernoulli"), x, **options)


@pytest.mark.parametrize(
    ("objective", "particles", "x", "options"),
    [("elbo", 1, X, {}), ("dreg", 3, MIXED, {"likelihood": "infer"})],
)
def test_what_is_compiled(objective: Any, particles: int, x: Any, options: dict[str, Any]) -> None:
    """By TorchInductor: in float64 to 1e-9, in float32 to 1e-5; latents whose number vectors do not divide, and padding."""

    def make() -> pv.VAE:
        return pv.build(x, latent=5, hidden=(9,), **options)

    agree(make, x, objective=objective, particles=particles)
    agree(make, x, 1e-5, double=False, objective=objective, particles=particles)


class Twins(nn.Module):
    """A decoder with two parameters of one gradient, and one that has no part in the density."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.idle = nn.Linear(3, 4), nn.Parameter(torch.zeros(()))
        self.one, self.other = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.ones(4))

    def forward(self, z: torch.Tensor) -> Any:
        return dist.Normal(self.net(z) + self.one + self.other + 0 * self.idle, 1.0).to_event(1)


def test_parameters_of_one_gradient(traced: list[int]) -> None:
    """Clipping multiplies gradients in place: each has to be a tensor of its own."""

    def make() -> pv.VAE:
        torch.manual_seed(0)
        return decoded_by(Twins())

    agree(make, max_grad_norm=0.1)


@pytest.mark.parametrize("name", UPDATES)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_optimizers_are_those_of_torch(name: str, decay: float) -> None:
    update, kept = UPDATES[name]
    p = torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own, state = p.clone(), [torch.zeros_like(p) for _ in kept]
    other = p.clone().requires_grad_()
    optimizer = OPTIMIZERS[name]([other], lr=0.05, weight_decay=decay)
    for t in range(1, 6):
        g = torch.sin(own * t)
        other.grad = g.clone()
        optimizer.step()
        sizes = Sizes(*(torch.tensor(v, dtype=torch.float64) for v in (0.05, 1 - 0.9**t, (1 - 0.999**t) ** 0.5)))
        own, state = update(own, g, state, sizes, decay)
        assert torch.allclose(own, other.detach(), rtol=1e-12)


def test_one_graph_serves_fits_of_one_shape(traced: list[int]) -> None:
    """Of other seeds, weights, rows and step sizes."""
    bounds = []
    for seed in (0, 1):
        vae = small(seed=seed)
        bounds.append(pv.fit(vae, X + seed, seed=seed, compiled=True, **{**FIT, "lr": 1e-2 * (seed + 1)})["bound"])
    assert len(traced) == 1 and not np.allclose(*bounds)
    pv.fit(small(latent=2), X, compiled=True, **FIT)
    assert len(traced) == 2


def test_each_step_draws_its_own_noise(traced: list[int]) -> None:
    """At a step size of 0 the figures of two steps on the same rows differ by their noise alone."""
    history = pv.fit(small(), X, compiled=True, **{**FIT, "lr": 0.0, "batch_size": 52})
    first, second = history["bound"]
    assert first != second and abs(first - second) < 1


def test_it_goes_on(traced: list[int]) -> None:
    """A second fit goes on with fresh noise and order, as without a graph."""
    ends = []
    for choices in ((False, False), (True, False), (False, True)):
        vae = small().double()
        for choice in choices:
            history = pv.fit(vae, X, compiled=choice, **{**FIT, "optimizer": "sgd"})
        ends.append(history["bound"][-1])
    assert np.allclose(ends, ends[0], rtol=1e-10)


class Scaled(nn.Module):
    """A normal decoder whose scale is a plain number."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.scale = nn.Linear(3, 4), 1.0

    def forward(self, z: torch.Tensor) -> Any:
        return dist.Normal(self.net(z), self.scale).to_event(1)


def rescaled(vae: Any) -> None:
    vae.decoder.scale = 0.5


def frozen(vae: Any) -> None:
    vae.encoder.requires_grad_(False)


def replaced(vae: Any) -> None:
    vae.decoder.net.weight = nn.Parameter(vae.decoder.net.weight.detach() / 2)


def halved(vae: Any) -> None:
    with torch.no_grad():
        vae.decoder.net.weight.mul_(0.5)


class Branched(Scaled):
    """And a branch that is idle until it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.more, self.branch = nn.Linear(3, 4), False

    def forward(self, z: torch.Tensor) -> Any:
        return dist.Normal(self.net(z) + (self.more(z) if self.branch else 0.0), self.scale).to_event(1)


def test_a_branch_that_wakes(traced: list[int]) -> None:
    """Is trained from then on."""

    def wake(vae: Any, history: Any) -> None:
        vae.decoder.branch = len(history) >= 1

    agree(lambda: decoded_by(Branched()), epochs=3, callbacks=[wake])


@pytest.mark.parametrize("change", [rescaled, frozen, replaced, halved])
@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
def test_callbacks_that_change_the_model(
    traced: list[int], caplog: pytest.LogCaptureFixture, change: Any, optimizer: str
) -> None:
    """A graph is left where it no longer is the model's, with the optimiser's state."""
    with caplog.at_level(logging.INFO, "ppl_vae"):
        agree(
            lambda: decoded_by(Scaled()),
            epochs=3,
            optimizer=optimizer,
            patience=2,
            valid=0.2,
            callbacks=[lambda vae, history: change(vae) if len(history) == 1 else None],
        )
    assert ("goes on without a graph" in caplog.text) == (change is not halved)


def test_losses_that_are_not_finite(traced: list[int]) -> None:
    """Say what they say without a graph, and leave the last good state."""
    errors = []
    for choice in (False, True):
        vae = small().double()
        with pytest.raises(pv.NonFiniteError) as raised:
            pv.fit(vae, X, compiled=choice, **{**FIT, "optimizer": "sgd", "lr": 1e300})
        errors.append((str(raised.value), raised.value.rows, [p.detach().clone() for p in vae.parameters()]))
    (text, rows, kept), (other, of_graph, state) = errors
    assert text == other and rows == of_graph and "step" in text
    assert all(torch.allclose(p, q, rtol=1e-9) for p, q in zip(kept, state))


class Dropped(nn.Module):
    """A decoder with dropout, or one that normalises its batch."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 6), layer, nn.Linear(6, 4))

    def forward(self, z: torch.Tensor) -> Any:
        out = self.net(z.reshape(-1, 3)).reshape(*z.shape[:-1], 4)
        return dist.Normal(out, 1.0).to_event(1)


def decoded_by(decoder: Any) -> pv.VAE:
    vae = small(standardize="none")
    return pv.VAE(vae.encoder, decoder, vae.prior)


def own_parameter(z: torch.Tensor) -> Any:
    scale = pyro.param("scale", torch.ones(4), constraint=dist.constraints.positive)
    return dist.Normal(z.sum(-1, keepdim=True) + torch.zeros(4), scale).to_event(1)


def looks(z: torch.Tensor) -> Any:
    return dist.Normal(z.sum(-1, keepdim=True) + torch.zeros(4), 2.0 if float(z.detach().sum()) > 0 else 1.0).to_event(
        1
    )


class Reassigned(nn.Module):
    """A decoder that keeps a running mean, in place of the one before; or that counts."""

    def __init__(self, counts: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.counts, self.calls = nn.Linear(3, 4), counts, 0
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, z: torch.Tensor) -> Any:
        loc = self.net(z) - self.mean
        self.calls += self.counts
        if self.training and not self.counts:
            self.mean = 0.9 * self.mean + 0.1 * loc.detach().reshape(-1, 4).mean(0)
        return dist.Normal(loc, 1.0 + 1e-6 * self.calls).to_event(1)


class Held(nn.Module):
    """A decoder that reads its own weight by another name, which a graph would take for a constant."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(3, 4)
        self.same = [self.net.weight]

    def forward(self, z: torch.Tensor) -> Any:
        return dist.Normal(z @ self.same[0].T + self.net.bias, 1.0).to_event(1)


def hooked() -> pv.VAE:
    vae = small(standardize="none")
    vae.decoder.net[0].weight.register_hook(lambda gradient: 0 * gradient)
    return vae


def dirichlet() -> pv.VAE:
    return small(prior="dirichlet", posterior="dirichlet", standardize="none")


REFUSED = {
    "noise through SciPy": (dirichlet, "elbo", "what no graph sees"),
    "a counter": (lambda: decoded_by(Reassigned(True)), "elbo", "what no graph sees"),
    "a buffer in another's place": (lambda: decoded_by(Reassigned(False)), "elbo", "replace 'decoder.mean'"),
    "a weight by another name": (lambda: decoded_by(Held()), "elbo", "'decoder.net.weight' is trained without a graph"),
    "hooks": (hooked, "elbo", "the gradient to 'decoder.net.0.weight' is another"),
    "dropout": (lambda: decoded_by(Dropped(nn.Dropout(0.5))), "elbo", "draw noise of their own"),
    "batch norm": (lambda: decoded_by(Dropped(nn.BatchNorm1d(6))), "elbo", "change 'decoder.net.1.running_mean'"),
    "pyro.param": (lambda: decoded_by(own_parameter), "elbo", "the parameter 'scale' is made by the programs"),
    "control flow": (lambda: decoded_by(looks), "elbo", "tracing tensor|data-dependent|item"),
    "free bits": (small, "free_bits", "not a sum over rows"),
    "chains": (small, "mcem", "not a sum over rows"),
    "a user's ELBO": (small, pyro.infer.Trace_ELBO, "not a sum over rows"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_fits_without_a_graph(
    traced: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Insisting is an error with the reason; else the fit is as without, and the reason is in the log."""
    make, objective, reason = REFUSED[name]
    x = X.astype("float32")
    with pytest.raises(pv.OptionError, match=f"compiled: got True, but no graph.*({reason})"):
        pv.fit(make(), x, objective=objective, compiled=True, **FIT)
    monkeypatch.setattr(compiled, "PAYS", 1)
    with caplog.at_level(logging.INFO, "ppl_vae"):
        found = [pv.fit(make(), x, objective=objective, compiled=choice, **FIT) for choice in ("auto", False)]
    assert [history.compile_seconds for history in found] == [None, None]
    assert np.allclose(*(history["objective"] for history in found), rtol=1e-3 if name == "a counter" else 0, atol=0)
    assert "no CompiledStep" in caplog.text


def test_auto_is_for_long_fits(traced: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert pv.fit(small(), X, compiled="auto", **FIT).compile_seconds is None
    monkeypatch.setattr(compiled, "PAYS", 8)
    assert pv.fit(small(), X, compiled="auto", **FIT).compile_seconds is not None
    assert pv.fit(small(), X, **FIT).compile_seconds is not None
    assert pv.fit(small(), X, compiled=False, **FIT).compile_seconds is None
    with pytest.raises(pv.OptionError, match="compiled: got 'always', expected True, False, 'traced' or 'auto'"):
        pv.fit(small(), X, compiled="always", **FIT)


def test_auto_is_traced_before_it_is_compiled(
    traced: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """From fewer steps on, and where there is no compiler."""
    monkeypatch.setattr(compiled, "TRACING_PAYS", 8)
    caplog.set_level(logging.INFO)
    assert pv.fit(small(), X, **FIT).compile_seconds is not None
    assert not traced and "TracedStep made" in caplog.text

    watched: dict[str, Any] = {**FIT, "callbacks": [lambda vae, history: None]}
    assert pv.fit(small(), X, **watched).compile_seconds is None  # every 4 steps
    assert pv.fit(small(), X, **{**watched, "batch_size": 2}).compile_seconds is not None

    def missing(graph: Any, inputs: list[torch.Tensor], **options: Any) -> Any:
        raise RuntimeError("no working C++ compiler")

    monkeypatch.setattr(compiled, "PAYS", 8)
    monkeypatch.setattr(graphs, "_by_inductor", missing)
    caplog.clear()
    assert pv.fit(small(), X, **FIT).compile_seconds is not None
    assert "no CompiledStep: RuntimeError: no working C++ compiler" in caplog.text and "TracedStep made" in caplog.text


@pytest.mark.parametrize("place", [0, 3, 4])
def test_a_wrong_graph_is_caught(monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    """Whatever a compiler makes of it: a bound, loss or gradient that is off by a thousandth is not trusted."""

    def wrong(graph: Any, inputs: list[torch.Tensor], **options: Any) -> Any:
        factor = torch.ones(5).index_fill(0, torch.tensor([place]), 1.001)

        def run(*flat: torch.Tensor) -> Any:
            good, sums = graph(*flat)
            return good, sums * factor

        return graph if options else run

    monkeypatch.setattr(graphs, "_by_inductor", wrong)
    monkeypatch.setattr(graphs, "_compiled", {})
    with pytest.raises(pv.OptionError, match="the graph of 4 rows gives"):
        pv.fit(small(), X, compiled=True, **FIT)


@pytest.mark.parametrize("optimizer", UPDATES)
@pytest.mark.parametrize("of_state", [False, True])
def test_a_wrong_step_is_caught(monkeypatch: pytest.MonkeyPatch, optimizer: str, of_state: bool) -> None:
    """A weight's step, or what the optimiser keeps, that is off by a hundredth."""
    if of_state and not UPDATES[optimizer][1]:
        pytest.skip("it keeps nothing")

    def wrong(graph: Any, inputs: list[torch.Tensor], **options: Any) -> Any:
        def run(*flat: torch.Tensor) -> Any:
            before = [value.clone() for value in flat]
            found = graph(*flat)
            changed = [(new, old) for new, old in zip(flat, before) if not torch.equal(new, old)]
            new, old = changed[-1 if of_state else 0]
            new += 0.01 * (new if of_state else new - old)
            return found

        return graph if options else run

    monkeypatch.setattr(graphs, "_by_inductor", wrong)
    monkeypatch.setattr(graphs, "_compiled", {})
    with pytest.raises(pv.OptionError, match="is another than the programs'"):
        pv.fit(small(), X, compiled=True, optimizer=optimizer, **FIT)


def test_gradients_that_are_mere_rounding(traced: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam moves weights by the sign of their gradients: where these are rounding, the signs mean nothing."""
    as_it_is = graphs._by_inductor

    def noisy(graph: Any, inputs: list[torch.Tensor], **options: Any) -> Any:
        def run(*flat: torch.Tensor) -> Any:
            weights = flat[1]
            before = weights.clone()
            found = graph(*flat)
            weights[:, 3] = 2 * before[:, 3] - weights[:, 3]  # of a column that is nearly always 0
            return found

        return as_it_is(graph, inputs, **options) if options else run

    monkeypatch.setattr(graphs, "_by_inductor", noisy)
    x = X * [1, 1, 1, 1e-9]
    vae = pv.build(x, latent=3, hidden=(8,), standardize="none", scale=1.0)
    assert pv.fit(vae, x, compiled=True, **FIT).compile_seconds is not None
