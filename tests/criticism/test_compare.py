"""`compare` against closed forms and hand computation; what it refuses, what it keeps, and that it goes on."""

import copy
import math
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial, wraps
from multiprocessing import get_context
from pathlib import Path
from threading import Lock
from typing import Any

import arviz as az
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import ppl_vae as pv
from ppl_vae.criticism import budget, compare
from ppl_vae.criticism.cells import Cell
from ppl_vae.criticism.described import described
from ppl_vae.criticism.refit import refitted
from ppl_vae.errors import DataError, ModelFileError, OptionError, ProgramError
from ppl_vae.infer.psis import threshold
from ppl_vae.use.experiment import Recipe

FAST: dict[str, Any] = {"evidence": ("iwae", {"num_draws": 8}), "num_draws": 8, "progress": False}


def rows(n: int = 120, seed: int = 0) -> np.ndarray:
    """Rows (n, 5) of three latent dimensions of falling size, and noise."""
    loadings = np.random.RandomState(7).randn(3, 5) * [[3], [1.5], [1]]
    random = np.random.RandomState(seed)
    return (random.randn(n, 3) @ loadings + 0.5 * random.randn(n, 5) + 10).astype("float32")


TRAIN, TEST = rows(seed=1), rows(40, seed=2)


def ppca(latent: int, seed: int) -> pv.PPCA:
    """The closed-form fit to a resample: another seed is another fit."""
    return pv.PPCA(latent).fit(TRAIN[np.random.RandomState(seed).randint(len(TRAIN), size=len(TRAIN))])


def linear(latent: int, seed: int) -> pv.VAE:
    return pv.build(TRAIN, latent=latent, hidden=(), scale="shared", seed=seed)


def closed_form(vae: Any, x: np.ndarray) -> np.ndarray:
    """log p(x) (n,) of a linear-Gaussian VAE, from its decoder alone."""
    k = vae.prior().event_shape[0]
    with torch.no_grad():
        decoded = vae.decoder(torch.cat([torch.zeros(1, k), torch.eye(k)]))
    mean, variance = decoded.mean.double().numpy(), decoded.variance.double().numpy()[0]
    loadings = (mean[1:] - mean[0]).T
    normal = stats.multivariate_normal(mean[0], loadings @ loadings.T + np.diag(variance))
    return normal.logpdf(vae.schema.tensors(x, dtype=torch.float64).x.numpy()) + vae.schema.log_jacobian


# ---- the table, against closed forms


@pytest.fixture(scope="module")
def exact() -> pv.Comparison:
    """Models in closed form, whose guides are exact: their evidence has no Monte Carlo error."""
    models = {f"q={q}": pv.Candidate(partial(ppca, q), objective=None) for q in (1, 2, 3)}
    return pv.compare(models, TRAIN, TEST, seeds=(3, 4, 5), **FAST)


def test_resampled_draws_are_worth_less_than_their_candidates() -> None:
    """S draws with replacement from what is worth E: the variances add up, 1 / S + 1 / E."""
    of = pv.Draws(*[None] * 8, {"ess": np.array([100.0])})  # type: ignore[arg-type]
    assert float(compare._independent(of, 100, "sir")) == pytest.approx(50)
    assert float(compare._independent(of, 50, "hmc")) == 50


def test_models_in_closed_form_are_ranked_by_their_log_density(exact: pv.Comparison) -> None:
    log_p = {q: np.array([ppca(q, seed).log_prob(TEST) for seed in (3, 4, 5)]) for q in (1, 2, 3)}
    order = sorted(log_p, key=lambda q: -log_p[q].mean())
    assert list(exact.table.index) == [f"q={q}" for q in order] and exact.best == f"q={order[0]}"
    n, best = len(TEST), log_p[order[0]]
    for q, of in log_p.items():
        line, difference = exact.table.loc[f"q={q}"], of - best
        expected = {
            "evidence": of.mean(),
            "se": of.mean(0).std(ddof=1) / n**0.5,
            "sd_seeds": of.mean(1).std(ddof=1),
            "mcse": 0,
            "difference": difference.mean(),
            "difference_se": difference.mean(0).std(ddof=1) / n**0.5,
            "difference_sd": difference.mean(1).std(ddof=1),
            "bound": of.mean(),
            "gap": 0,
            "seeds": 3,
            "failed": 0,
            "gradients": 0,
            "latent": q,
        }
        assert {name: line[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert list(exact.cells["seed"]) == [3, 4, 5] * 3
    first = exact.cells.iloc[0]
    assert first["evidence"] == pytest.approx(log_p[1][0].mean(), abs=1e-6)
    assert first["se"] == pytest.approx(log_p[1][0].std(ddof=1) / n**0.5, abs=1e-6)


def test_differences_to_another_candidate(exact: pv.Comparison) -> None:
    to_first = exact.differences("q=1")
    assert to_first.loc["q=1"].tolist() == [0, 0, 0]
    shift = exact.table["difference"] - exact.table["difference"]["q=1"]
    assert to_first["difference"].to_dict() == pytest.approx(shift.to_dict())
    with pytest.raises(OptionError, match="candidate: got 'q=9', expected one of 'q=1'"):
        exact.differences("q=9")


def test_a_cell_is_what_its_parts_give_alone() -> None:
    """Make, fit and evidence under one seed: so a user can repeat any line. AIS against the closed form of the weights,
    three times 5 standard errors: 2e-6."""
    options = {"num_draws": 8, "steps": 10, "leapfrogs": 2}
    candidates = {f"q={q}": pv.Candidate(partial(linear, q), lr=0.03, batch_size=32) for q in (1, 3)}
    found = pv.compare(
        candidates, TRAIN, TEST, seeds=[6], budget={"gradients": 108 * 25}, evidence=("ais", options), progress=False
    )
    exact, upper = {}, found.pointwise
    for q in (1, 3):
        vae = linear(q, 6)
        pv.fit(vae, TRAIN, epochs=25, lr=0.03, batch_size=32, seed=6, progress=False)
        alone = pv.log_evidence(vae, TEST, "ais", seed=6, **options)
        kept = upper[upper["candidate"] == f"q={q}"]
        assert np.array_equal(kept["log_p"], alone.log_p) and np.array_equal(kept["mcse"], alone.mcse)
        exact[q] = closed_form(vae, TEST)
        bound = pv.score(vae, TEST, "elbo", num_draws=1000, seed=6)
        line = found.table.loc[f"q={q}"]
        assert line["bound"] == pytest.approx(bound.values.mean(), abs=1e-6)
        assert line["gap"] == pytest.approx(alone.log_p.mean() - bound.values.mean(), abs=1e-6)
        assert line["mcse"] == alone.mean_mcse
        assert abs(line["evidence"] - exact[q].mean()) < 5 * line["mcse"]
        assert line["bad_k"] == (pv.log_evidence(vae, TEST, "psis", 1000, seed=6).k_hat > threshold(1000)).mean()
    assert exact[3].mean() > exact[1].mean() + 0.3 and list(found.table.index) == ["q=3", "q=1"]
    error = math.hypot(*found.table["mcse"])
    assert abs(found.table["difference"]["q=1"] - (exact[1] - exact[3]).mean()) < 5 * error
    se = np.std(exact[1] - exact[3], ddof=1) / len(TEST) ** 0.5
    assert found.table["difference_se"]["q=1"] == pytest.approx(se, rel=0.05)


# ---- the table, by hand


def cell(name: str, seed: int, log_p: Any, **changed: Any) -> Cell:
    log_p = np.asarray(log_p, float)
    zeros = np.zeros(len(log_p))
    pointwise = {"log_p": log_p, "mcse": zeros, "doubtful": zeros, "bound": log_p - 1, "k_hat": zeros}
    mean_mcse = 0.25 if "mcse" in changed else 0.0
    return Cell(name, seed, {"num_draws": 1000, "seconds": 1.0, "mcse": mean_mcse}, {**pointwise, **changed})


def failed(name: str, seed: int) -> Cell:
    return Cell(name, seed, {}, {}, "OptionError: no")


def test_the_three_errors_by_hand() -> None:
    noise = {"mcse": np.array([0.3, 0.4])}
    found = pv.Comparison(
        [cell("a", 0, [1, 3], **noise), cell("a", 1, [3, 9], **noise), cell("b", 0, [0, 1]), cell("b", 1, [0, 3])]
    )
    table = found.table
    assert found.elpd["a"]["loo_i"].attrs["mcse"] == pytest.approx(2 * 0.25 / 2**0.5)  # of the sum of two rows
    a, b = table.loc["a"], table.loc["b"]
    assert (a["evidence"], b["evidence"]) == (4, 1)
    assert a["se"] == pytest.approx(2)  # rows 2 and 6: their mean has the standard error 8^0.5 / 2^0.5
    assert a["sd_seeds"] == pytest.approx(8**0.5)  # fits of 2 and 6
    assert a["mcse"] == pytest.approx(0.25 / 2**0.5)  # of a fit 0.25
    assert (b["difference"], a["difference"]) == (-3, 0)
    assert b["difference_se"] == pytest.approx(1)  # rows -2 and -4
    assert b["difference_sd"] == pytest.approx(4.5**0.5)  # fits -1.5 and -4.5
    assert (a["gap"], a["bound"], a["seconds"], a["doubtful"], a["bad_k"]) == (1, 3, 1, 0, 0)


def test_rows_that_cannot_be_trusted_are_counted() -> None:
    k_hat = np.array([0.66, 0.67, 0.9, -0.1])
    found = pv.Comparison([cell("a", 0, [1, 2, 3, 4], k_hat=k_hat, doubtful=np.array([0, 0, 0, 1.0]))]).table.loc["a"]
    assert (found["bad_k"], found["doubtful"]) == (0.5, 0.25) and threshold(1000) == pytest.approx(2 / 3)
    good = cell("b", 0, [1, 2, 3, 4])
    told = pv.Comparison([cell("a", 0, [1, 2, 3, 4], doubtful=np.array([0, 0, 0, 1.0])), good])
    assert told.warnings == [
        "a: do not trust the log evidence of 25 % of the rows, which is likely higher: a few draws carry it"
    ]
    assert told.warnings[0] in repr(told)
    below = [cell("a", 0, [1, 2], bound=np.array([2.0, 2.0]), **more) for more in ({}, {"mcse": np.ones(2)})]
    assert [len(pv.Comparison([one]).warnings) for one in below] == [1, 0]  # the second by its Monte Carlo error
    unknown = pv.Comparison([cell("a", 0, [1, 2], k_hat=np.array([np.nan, np.nan]))]).table.loc["a"]
    assert math.isnan(unknown["bad_k"]) and math.isnan(unknown["sd_seeds"]) and math.isnan(unknown["difference_sd"])


def test_failed_cells_are_kept_and_pairs_are_of_common_seeds() -> None:
    cells = [
        cell("a", 0, [9, 9]),
        failed("a", 1),
        cell("b", 0, [1, 2]),
        cell("b", 1, [5, 6]),
        failed("c", 0),
        failed("c", 1),
    ]
    found = pv.Comparison(cells)
    assert found.best == "b"  # a's one fit is the better one, and there is one
    assert list(found.table.index) == ["b", "a", "c"]
    assert found.table["failed"].tolist() == [0, 1, 2] and found.table["seeds"].tolist() == [2, 1, 0]
    axes = found.plot().axes[0]
    assert "of b (" in axes.get_xlabel() and axes.get_yticklabels()[-1].get_text() == "b"
    assert found.table.loc["a", "difference"] == 7.5  # against b under seed 0, not against b's mean
    assert found.table.loc["c"].isna()[["evidence", "se", "difference", "bound"]].all()
    assert "a, seed 1 failed: OptionError: no" in repr(found)
    assert list(found.elpd) == ["b", "a"]
    assert len(pv.Comparison([failed("c", 0)]).pointwise) == 0


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # pandas', of ArviZ 0.23
def test_arviz_compares_what_was_found(exact: pv.Comparison) -> None:
    theirs = az.compare(exact.elpd, method="stacking")
    assert list(theirs.index) == list(exact.table.index)
    n = len(TEST)
    assert theirs["elpd_loo"].to_dict() == pytest.approx((n * exact.table["evidence"]).to_dict())
    assert theirs["elpd_diff"].to_dict() == pytest.approx((-n * exact.table["difference"]).to_dict())
    # arviz divides by n and not n - 1
    assert theirs["dse"].to_dict() == pytest.approx(((n * (n - 1)) ** 0.5 * exact.table["difference_se"]).to_dict())


def test_plot_and_save(exact: pv.Comparison, tmp_path: Path) -> None:
    axes = exact.plot().axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(exact.table.index[::-1])
    (bars,) = axes.containers
    assert np.allclose(bars.lines[0].get_xdata(), exact.table["difference"][::-1])
    segments = np.array(bars.lines[2][0].get_segments())
    assert np.allclose(np.diff(segments[..., 0]).ravel() / 2, exact.table["difference_se"][::-1])
    assert exact.plot(axes) is axes.figure
    exact.save(tmp_path / "new")
    written = {path.name for path in (tmp_path / "new").iterdir()}
    assert exact.settings["seeds"] == [3, 4, 5] and exact.settings["versions"]["ppl_vae"] == pv.__version__
    assert written == {"table.csv", "cells.csv", "pointwise.csv", "settings.json"}
    assert (tmp_path / "new" / "table.csv").read_text().startswith("candidate,evidence,se,sd_seeds,mcse,difference")
    assert len((tmp_path / "new" / "pointwise.csv").read_text().splitlines()) == 1 + 9 * len(TEST)


# ---- one budget


class Counted(torch.nn.Module):
    """A decoder that counts the rows times draws at which a gradient is taken."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder, self.count = decoder, 0

    def forward(self, z: torch.Tensor) -> dist.Distribution:
        made = self.decoder(z)
        if made.mean.requires_grad:
            met: list[int] = []  # sticking the landing goes back twice
            made.mean.register_hook(lambda gradient: self.note(gradient, met))
        return made

    def note(self, gradient: torch.Tensor, met: list[int]) -> None:
        self.count += 0 if met else gradient[..., 0].numel()
        met.append(1)


@pytest.mark.parametrize(
    ("objective", "options", "each"),
    [
        ("elbo", {}, 108),
        ("elbo", {"particles": 3}, 3 * 108),
        ("iwae", {"particles": 5, "valid": 0.0}, 5 * 120),
        ("analytic_kl", {"valid": 0.345, "batch_size": 7}, 78),
        (("mean_iwae", {"groups": 2}), {"particles": 3}, 6 * 108),
        ("sticking_the_landing", {}, 108),
    ],
)
def test_gradient_evaluations_are_those_taken(objective: Any, options: dict[str, Any], each: int) -> None:
    vae = linear(2, 0)
    vae.decoder = Counted(vae.decoder)
    history, gradients = budget.fit_within(
        vae, TRAIN, {"gradients": 2000}, objective=objective, progress=False, **options
    )
    assert gradients == len(history) * each == vae.decoder.count
    assert len(history) == 2000 // each
    steps = vae.steps.item()
    assert history["lr"][-1] == pytest.approx(
        1e-3 * (1 + math.cos(math.pi * (steps - 1) / steps)) / 2
    )  # the schedule ends


def test_a_budget_in_seconds_is_kept() -> None:
    vae = linear(2, 0)
    began = vae.state_dict()["steps"].item()
    history, gradients = budget.fit_within(vae, TRAIN, {"seconds": 0.4}, objective="elbo", progress=False)
    assert began == 0 and vae.steps.item() == len(history)  # the trial was on a copy
    assert history["seconds"][-1] < 0.4 + 2 * np.diff(history["seconds"]).max()
    assert len(history) > 3 and gradients == 108 * len(history)


def test_a_fit_slower_than_its_trial_is_stopped_by_the_clock() -> None:
    vae, seen = linear(2, 0), []

    def slow(vae: Any, history: pv.History) -> None:
        seen.append(len(history))
        time.sleep(0.4)

    history, gradients = budget.fit_within(
        vae, TRAIN, {"seconds": 0.4}, objective="elbo", progress=False, callbacks=[slow]
    )
    assert history.stopped == "budget" and seen == [1, 2] and vae.steps.item() == 2 and gradients == 2 * 108


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hours": 1}, "budget: got 'hours', expected one of 'gradients', 'seconds'"),
        ({"seconds": 0}, "budget seconds: got 0, expected a number above 0"),
        ({"seconds": 1, "gradients": 1}, "budget: got"),
        (10, "budget: got 10"),
    ],
)
def test_budgets_that_are_none(given: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        pv.compare({"a": pv.Candidate(partial(linear, 1))}, TRAIN, TEST, budget=given)


# ---- evidence without the encoder of the fit


def test_a_refitted_encoder_measures_the_decoder() -> None:
    """Two bounds not above log p(x) by 5 standard errors, 6e-7; of the fit: within .02 of it, the old one .1 off."""
    vae = linear(2, 0)
    pv.fit(vae, TRAIN, epochs=40, lr=0.03, batch_size=32, progress=False)
    with torch.no_grad():
        for parameter in vae.encoder.parameters():
            parameter.mul_(0.2)  # a bad encoder of the same decoder
    before = copy.deepcopy(vae.state_dict())
    options = {"hidden": (), "epochs": 30, "lr": 0.05, "batch_size": 32}
    fresh = refitted(vae, TRAIN, seed=1, **options)
    assert all(torch.equal(value, vae.state_dict()[name]) for name, value in before.items())
    for part in ("decoder", "prior"):
        kept = getattr(fresh, part).state_dict()
        assert all(torch.equal(value, kept[name]) for name, value in getattr(vae, part).state_dict().items())
    assert all(p.requires_grad for p in vae.parameters())

    exact = closed_form(vae, TEST)
    candidate = {"a": pv.Candidate(lambda seed: vae, objective=None)}
    measured = {}
    for name, more in (("refit", {"num_draws": 500, **options}), ("iwae", {"num_draws": 100})):
        line = pv.compare(
            candidate, TRAIN, TEST, seeds=[1], evidence=(name, more), num_draws=8, progress=False
        ).cells.iloc[0]
        assert line["evidence"] - exact.mean() < 5 * line["mcse"]
        measured[name] = line["evidence"]
    assert measured["refit"] > exact.mean() - 0.02 and measured["iwae"] < exact.mean() - 0.1


def test_models_that_no_encoder_is_refitted_for() -> None:
    with pytest.raises(ProgramError, match="site 'z': got a density on the simplex"):
        refitted(pv.build(TRAIN, hidden=(), prior="dirichlet", posterior="dirichlet", latent=3), TRAIN)
    grouped = pd.DataFrame(TRAIN, columns=list("abcde")).assign(site=np.arange(len(TRAIN)) % 3)
    with pytest.raises(ProgramError, match="expected z to be the only latent site"):
        refitted(pv.build(grouped, hidden=(), prior="hierarchical", group="site", latent=2), grouped)


# ---- what can be compared

COUNTS = np.random.RandomState(0).poisson(3.0, (40, 3)).astype("float32")
PIXELS = (np.random.RandomState(0).rand(40, 3) < 0.4).astype("float32")


def of(data: np.ndarray, **options: Any) -> pv.Candidate:
    return pv.Candidate(Recipe(data, {"latent": 1, "hidden": (4,), **options}), epochs=1)


@pytest.mark.parametrize(
    ("data", "first", "second"),
    [
        (COUNTS, "normal", "poisson"),
        (COUNTS, "negative_binomial", "student_t"),
        (PIXELS, "continuous_bernoulli", "bernoulli"),
    ],
)
def test_densities_and_probabilities_are_never_compared(data: np.ndarray, first: str, second: str) -> None:
    candidates = {name: of(data, likelihood=name) for name in (first, second)}
    with pytest.raises(OptionError, match=f"got '{second}', with a .* of the column 'x0', and '{first}', with a"):
        pv.compare(candidates, data, data, **FAST)


def test_one_column_of_another_measure_is_enough() -> None:
    frame = pd.DataFrame(COUNTS, columns=list("abc"))
    alike = of(frame, likelihood={"a": "poisson", "b": "poisson", "c": "normal"})
    other = of(frame, likelihood={"a": "poisson", "b": "normal", "c": "normal"})
    with pytest.raises(OptionError, match="got 'y', with a density of the column 'b', and 'x', with a probability"):
        pv.compare({"x": alike, "y": other}, frame, frame, **FAST)
    with pytest.raises(OptionError, match="got 'y', with nothing of the column 'b'"):
        pv.compare({"x": of(frame), "y": of(frame, covariates=("b",))}, frame, frame, **FAST)


def test_a_label_is_one_more_cell() -> None:
    frame = pd.DataFrame(COUNTS, columns=list("abc")).assign(kind=["yes", "no"] * 20)
    labelled = compare.measure(pv.build(frame, label="kind", hidden=(4,)), frame)
    assert labelled == dict.fromkeys("abc", "a density") | {"kind": "a probability"}
    assert compare.measure(pv.build(frame, likelihood="infer", hidden=(4,)), frame)["kind"] == "a probability"


def test_likelihoods_of_one_measure_are_compared() -> None:
    candidates = {name: of(COUNTS, likelihood=name) for name in ("poisson", "negative_binomial")}
    assert pv.compare(candidates, COUNTS, COUNTS, seeds=[0], **FAST).table["failed"].sum() == 0


# ---- cells that fail


class Nowhere(torch.nn.Module):
    """A decoder whose density is not a number."""

    def forward(self, z: torch.Tensor) -> dist.Distribution:
        return dist.Normal(z.sum(-1, keepdim=True).expand(*z.shape[:-1], 5) * math.nan, 1.0).to_event(1)


def broken(seed: int) -> Any:
    raise ValueError(f"no model {seed}\nand more")


def spoilt(seed: int) -> pv.VAE:
    vae = linear(1, seed)
    vae.decoder = Nowhere()
    return vae


def used(seed: int) -> pv.VAE:
    vae = linear(1, seed)
    pv.fit(vae, TRAIN, epochs=1, progress=False)
    return vae


def test_the_others_go_on_where_a_cell_fails() -> None:
    reasons = {
        "unmade": (pv.Candidate(broken), "ValueError: no model 1"),
        "spoilt": (pv.Candidate(spoilt), "NonFiniteError: step 0"),
        "used": (pv.Candidate(used), "ProgramError: make: got a model fitted for 1 steps"),
        "no model": (pv.Candidate(print), "ProgramError: make: got a NoneType for the seed 1, expected a model"),
    }
    candidates = {name: candidate for name, (candidate, _) in reasons.items()} | {
        "good": pv.Candidate(partial(linear, 1))
    }
    found = pv.compare(candidates, TRAIN, TEST, seeds=[1], budget={"gradients": 2000}, **FAST)
    errors = found.cells.set_index("candidate")["error"]
    for name, (_, reason) in reasons.items():
        assert errors[name].startswith(reason), errors[name]
    assert pd.isna(errors["good"]) and found.table.index[0] == "good" and found.best == "good"
    short = {"short": pv.Candidate(partial(linear, 1), particles=500)}  # what can be told before is no cell
    with pytest.raises(
        OptionError, match="candidate 'short': budget: got 2000 gradients, expected enough for an epoch"
    ):
        pv.compare(short, TRAIN, TEST, seeds=[1], budget={"gradients": 2000}, **FAST)


def test_a_fit_without_an_encoder_has_no_bound() -> None:
    candidate = pv.Candidate(partial(linear, 2), "mcem", epochs=1)
    refined = pv.Candidate(partial(linear, 2), "mcem", "laplace", epochs=1)
    options = {**FAST, "evidence": ("ais", {"num_draws": 4, "steps": 10})}
    found = pv.compare({"own": candidate, "laplace": refined}, TRAIN, TEST, seeds=[0], **options).table
    assert found.loc["own", ["bound", "gap", "active"]].isna().all() and found.loc["own", "latent"] == 2
    assert found.loc["laplace", "active"] == 2 and found["evidence"]["own"] == found["evidence"]["laplace"]


def test_evidence_that_is_not_finite_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.array([-1.0, -math.inf, -2.0])
    nothing = pv.Evidence(values, values, values, values, "iwae", 8, 0.0)
    monkeypatch.setitem(compare.EVIDENCE, "iwae", lambda *args: nothing)
    found = pv.compare({"a": pv.Candidate(partial(linear, 1), epochs=1)}, TRAIN, TEST, seeds=[0], **FAST)
    assert "got -inf of test row 1" in found.cells["error"][0]


# ---- cells are kept


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many fits there were since the last time it was asked."""
    fits = []
    fit = budget.fit
    budget.warm_up()

    @wraps(fit)
    def counted(*args: Any, **options: Any) -> pv.History:
        fits.append(0)
        return fit(*args, **options)

    monkeypatch.setattr(budget, "fit", counted)

    def since() -> int:
        done = len(fits)
        fits.clear()
        return done

    return since


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pv.Comparison]:
    """The cells of `again`, run once."""
    folder = tmp_path_factory.mktemp("first")
    return folder, again(folder)


@pytest.fixture
def folder(first: tuple[Path, pv.Comparison], tmp_path: Path) -> Path:
    """A copy of these cells."""
    return Path(shutil.copytree(first[0], tmp_path / "cells"))


def again(folder: Path, **changed: Any) -> pv.Comparison:
    given: dict[str, Any] = {
        "train": TRAIN,
        "test": TEST,
        "seeds": (0, 1),
        "budget": {"gradients": 300},
        **FAST,
        **changed,
    }
    fit = given.pop("fit", {})
    candidates = {"a b/c": pv.Candidate(partial(linear, 1), **fit), "two": pv.Candidate(partial(linear, 2), **fit)}
    return pv.compare(candidates, given.pop("train"), given.pop("test"), folder=folder, **given)


def test_only_missing_cells_run(first: tuple[Path, pv.Comparison], folder: Path, count: Callable[[], int]) -> None:
    written = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    assert len(written) == 8
    second = again(folder)
    assert count() == 0 and second.table.equals(first[1].table) and second.cells.equals(first[1].cells)
    (gone,) = folder.glob("two-1-*.json")
    gone.unlink()
    third = again(folder)
    assert count() == 1 and len(list(folder.iterdir())) == 8
    changed = {path for path in folder.iterdir() if written.get(path, (0,))[0] != path.stat().st_mtime_ns}
    assert changed and all(path.name.startswith(gone.stem) for path in changed)
    measured = [name for name in second.table if name != "seconds"]
    assert third.table[measured].equals(second.table[measured])
    assert again(folder, seeds=(0, 1, 2)).table["seeds"].tolist() == [3, 3] and count() == 2


@pytest.mark.parametrize(
    "changed",
    [
        {"budget": {"gradients": 301}},
        {"budget": None, "fit": {"epochs": 2}},
        {"evidence": ("iwae", {"num_draws": 9})},
        {"evidence": ("iwae", {})},
        {"num_draws": 9},
        {"fit": {"lr": 0.002}},
        {"fit": {"objective": "analytic_kl"}},
        {"fit": {"posterior": "laplace"}},
        {"train": TRAIN[::-1].copy()},
        {"test": TEST[:-1]},
    ],
)  # fmt: skip
def test_whatever_decides_a_cell_is_in_its_key(folder: Path, count: Callable[[], int], changed: dict[str, Any]) -> None:
    again(folder, seeds=[0], **changed)
    assert count() == 2


def test_another_version_is_another_cell(
    folder: Path, count: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pv, "__version__", "999")
    again(folder, seeds=[0])
    assert count() == 2


def own_prior(scale: float, seed: int) -> pv.VAE:
    vae = linear(1, seed)
    return pv.VAE(vae.encoder, vae.decoder, lambda: dist.Normal(torch.zeros(1), scale).to_event(1), vae.schema)


def test_a_plain_function_of_a_model_is_known_by_what_it_does(tmp_path: Path, count: Callable[[], int]) -> None:
    for scale, fits in ((1.0, 1), (1.0, 0), (1.001, 1)):
        pv.compare(
            {"a": pv.Candidate(partial(own_prior, scale), epochs=1)}, TRAIN, TEST, seeds=[0], folder=tmp_path, **FAST
        )
        assert count() == fits


def test_functions_among_the_options_are_known_by_their_code() -> None:
    def made(bound: int) -> Callable:
        return lambda vae, history: bound

    assert described(made(1)) == described(made(1)) != described(made(2))
    assert described(lambda x: x + 1) != described(lambda x: x + 2)
    assert described(partial(rows, 3)) != described(partial(rows, 4))
    assert described({"a": (np.float64(1), [True], None, math.inf)}) == {
        "a": [
            1.0,
            [
                True,
            ],
            None,
            "inf",
        ]
    }


def test_options_that_no_key_can_be_made_of(tmp_path: Path) -> None:
    candidate = pv.Candidate(partial(linear, 1), callbacks=[Lock().acquire])
    with pytest.raises(OptionError, match="folder: got the option <unlocked"):
        pv.compare({"a": candidate}, TRAIN, TEST, folder=tmp_path, **FAST)


STEPS = 1


def particles() -> int:
    return STEPS


def own_elbo() -> Any:
    return pyro.infer.Trace_ELBO(num_particles=particles(), vectorize_particles=True)


class Trained(torch.nn.Module):
    """A decoder with an attribute that nothing reads but its training."""

    def __init__(self, decoder: Any, rate: float) -> None:
        super().__init__()
        self.decoder, self.rate = decoder, rate

    def forward(self, z: torch.Tensor) -> dist.Distribution:
        return self.decoder(z + self.rate if self.training else z)


def trained(rate: float, seed: int) -> pv.VAE:
    vae = linear(1, seed)
    vae.decoder = Trained(vae.decoder, rate)
    return vae


def test_what_functions_read_decides_a_cell(
    tmp_path: Path, count: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fits(candidate: pv.Candidate) -> int:
        pv.compare({"a": candidate}, TRAIN, TEST, seeds=[0], folder=tmp_path, **FAST)
        return count()

    own = pv.Candidate(partial(linear, 1), own_elbo, epochs=1)
    assert [fits(own), fits(own)] == [1, 0]
    with monkeypatch.context() as changed:
        changed.setitem(globals(), "STEPS", 2)
        assert fits(own) == 1
    with monkeypatch.context() as changed:
        changed.setitem(globals(), "particles", lambda: 1)
        assert fits(own) == 1
    assert [fits(pv.Candidate(partial(trained, rate), epochs=1)) for rate in (0.0, 0.0, 0.1)] == [1, 0, 1]
    forward = Trained.forward
    monkeypatch.setattr(Trained, "forward", lambda self, z: self.decoder(z))
    assert fits(pv.Candidate(partial(trained, 0.0), epochs=1)) == 1
    monkeypatch.setattr(Trained, "forward", forward)
    assert fits(pv.Candidate(partial(trained, 0.0), epochs=1)) == 0


def test_what_a_callback_writes_down_is_no_other_cell_within_a_comparison(
    tmp_path: Path, count: Callable[[], int]
) -> None:
    met: list[float] = []
    candidate = pv.Candidate(partial(linear, 1), epochs=1, callbacks=[lambda vae, history: met.append(len(history))])
    pv.compare({"a": candidate}, TRAIN, TEST, seeds=[0, 1], folder=tmp_path, **FAST)
    met.clear()
    pv.compare({"a": candidate}, TRAIN, TEST, seeds=[0, 1], folder=tmp_path, **FAST)
    assert count() == 2


def test_a_failed_cell_is_kept_until_it_is_asked_for_again(tmp_path: Path, count: Callable[[], int]) -> None:
    candidates = {"spoilt": pv.Candidate(spoilt, epochs=1)}

    def run(**options: Any) -> int:
        assert (
            pv.compare(candidates, TRAIN, TEST, seeds=[0], folder=tmp_path, **FAST, **options).table["failed"].sum()
            == 1
        )
        return count()

    assert (run(), run(), run(retry=True)) == (1, 0, 1)


@pytest.mark.parametrize("ending", ["json", "safetensors"])
@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-3], lambda raw: raw.replace(b"0", b"1", 1), lambda raw: b"{}", lambda raw: b""]
)
def test_a_damaged_cell_is_an_error_that_names_it(folder: Path, ending: str, damage: Callable[[bytes], bytes]) -> None:
    (file,) = folder.glob(f"two-1-*.{ending}")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ModelFileError, match=file.name):
        again(folder)


def test_a_cell_of_another_origin_is_an_error_that_names_it(folder: Path) -> None:
    for ending in ("json", "safetensors"):
        (source,), (target,) = folder.glob(f"two-0-*.{ending}"), folder.glob(f"two-1-*.{ending}")
        shutil.copy(source, target)
    with pytest.raises(
        ModelFileError, match=r"two-1-.*\.json: got the cell of candidate 'two' with the key .*delete it"
    ):
        again(folder)


def test_a_cell_without_its_numbers_is_an_error_that_names_it(folder: Path) -> None:
    next(folder.glob("two-1-*.safetensors")).unlink()
    with pytest.raises(ModelFileError, match=r"two-1-.*\.safetensors: got nothing there"):
        again(folder)


# ---- other processes


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # spawn would take the time of two imports of torch
def test_an_executor_of_processes_gives_the_same(tmp_path: Path) -> None:
    candidates = {f"q={q}": of(TRAIN, latent=q) for q in (1, 2)}
    serial = pv.compare(candidates, TRAIN, TEST, seeds=[0], **FAST)
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        spread = pv.compare(candidates, TRAIN, TEST, seeds=[0], map=pool.map, folder=tmp_path, **FAST)
        assert spread.pointwise.equals(serial.pointwise)
        measured = [name for name in serial.cells if name != "seconds"]
        assert spread.cells[measured].equals(serial.cells[measured])
        next(tmp_path.glob("*.json")).write_text("{")
        with pytest.raises(ModelFileError, match="not the JSON expected"):
            pv.compare(candidates, TRAIN, TEST, seeds=[0], map=pool.map, folder=tmp_path, **FAST)


def test_threads_and_generators_are_left_as_they_were() -> None:
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    pv.compare({"a": of(TRAIN)}, TRAIN, TEST, seeds=[0], **FAST)
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads


# ---- mistakes


@pytest.mark.parametrize(
    ("candidates", "options", "message"),
    [
        ({}, {}, "candidates: got {}"),
        ({"a": linear}, {}, "candidates: got 'a': <function linear"),
        ({1: pv.Candidate(broken)}, {}, "candidates: got 1"),
        ({"a": pv.Candidate(broken)}, {"seeds": 3}, "seeds: got 3, expected a list"),
        ({"a": pv.Candidate(broken)}, {"seeds": []}, r"seeds: got \[\]"),
        ({"a": pv.Candidate(broken)}, {"seeds": [1, 1]}, r"seeds: got \[1, 1\]"),
        (
            {"a": pv.Candidate(broken)},
            {"evidence": "reconstruction_probability"},
            "evidence: got 'reconstruction_probability'",
        ),
        ({"a": pv.Candidate(broken)}, {"evidence": ("ais", 3)}, "evidence: got"),
        (
            {"a": pv.Candidate(broken, epochs=3)},
            {"budget": {"gradients": 9}},
            "candidate 'a': got epochs with a budget",
        ),
        ({"a": pv.Candidate(broken)}, {"num_draws": 1}, "num_draws: got 1"),
    ],
)
def test_wrong_arguments(candidates: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        pv.compare(candidates, TRAIN, TEST, **options)


@pytest.mark.parametrize("name", ["seed", "epoch", "progress", "checkpoint"])
def test_wrong_options_of_a_candidate(name: str) -> None:
    with pytest.raises(
        OptionError, match=rf"candidate: got the fit options \['{name}'\], expected some of \['batch_size'"
    ):
        pv.Candidate(broken, **{name: 1})
    with pytest.raises(OptionError, match="make: got None"):
        pv.Candidate(None)  # type: ignore[arg-type]


def test_names_are_looked_up_before_the_first_fit() -> None:
    with pytest.raises(OptionError, match="objective: got 'elbow', expected one of 'elbo'"):
        pv.Candidate(broken, "elbow")
    with pytest.raises(OptionError, match=r"posterior: got the options \['stride'\] with 'svi'"):
        pv.Candidate(broken, posterior=("svi", {"stride": 3}))
    with pytest.raises(OptionError, match=r"evidence: got the options \['stepz'\] with 'ais'"):
        pv.compare({"a": pv.Candidate(broken)}, TRAIN, TEST, evidence=("ais", {"stepz": 3}))
    with pytest.raises(OptionError, match="posterior: got 'divination'"):
        pv.Candidate(broken, posterior="divination")


def test_rows_are_read_before_the_first_fit() -> None:
    with pytest.raises(DataError, match=r"candidate 'a', test: .* column"):
        pv.compare({"a": pv.Candidate(partial(linear, 1))}, TRAIN, TEST[:, 1:], **FAST)


def test_patience_and_a_clock_do_not_go_together() -> None:
    candidate = pv.Candidate(partial(linear, 1), patience=3)
    with pytest.raises(OptionError, match="candidate 'a': patience: got 3 with a budget in seconds"):
        pv.compare({"a": candidate}, TRAIN, TEST, seeds=[0], budget={"seconds": 1}, **FAST)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evidence": ("psis", {"num_draws": 30})}, "num_draws: got 30 with 'psis'"),
        ({"evidence": ("ais", {"steps": -3})}, "steps: got -3"),
        ({"evidence": ("refit", {"objective": "zz"})}, "objective: got 'zz'"),
        ({"evidence": ("refit", {"hidden": "zz"})}, "hidden: got 'zz'"),
        ({"evidence": ("refit", {"posterior": "zz"})}, "posterior: got 'zz'"),
        ({"evidence": ("refit", {"num_draws": 0})}, "num_draws: got 0"),
        ({"budget": {"gradients": 107}}, "candidate 'a': budget: got 107 gradients, expected enough .* 108"),
    ],
)
def test_values_are_looked_at_before_the_first_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        pv.compare({"a": pv.Candidate(partial(linear, 1))}, TRAIN, TEST, **{**FAST, **options})


@pytest.mark.parametrize(
    "fit", [{"lr": "0.1"}, {"epochs": 0}, {"valid": 1.0}, {"schedule": "zz"}, {"callbacks": [3]}, {"compiled": 3}]
)
def test_values_are_looked_at_when_a_candidate_is_made(fit: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"{next(iter(fit))}: got"):
        pv.Candidate(broken, **fit)


def test_an_ensemble_is_a_candidate(tmp_path: Path) -> None:
    """Of exact members the evidence is the log of the mean of their densities; it has no latent units of its own."""
    members = [ppca(2, seed) for seed in (0, 1)]
    for member in members[1:]:
        member.schema = members[0].schema
    both = pv.Candidate(lambda seed: pv.Ensemble(members), objective=None)
    found = pv.compare({"both": both}, TRAIN, TEST, seeds=[0], folder=tmp_path, **FAST)
    assert (
        found.cells["error"][0] is None and found.cells["latent"][0] == 2 and math.isnan(found.table["active"].iloc[0])
    )
    expected = np.logaddexp.reduce([member.log_prob(TEST) for member in members]) - math.log(2)
    assert np.allclose(found.log_evidence("both")[0], expected, atol=1e-6)


def test_one_row_has_an_evidence_and_no_active_units() -> None:
    found = pv.compare({"a": pv.Candidate(partial(ppca, 2), objective=None)}, TRAIN, TEST[:1], seeds=[0], **FAST).table
    assert found["evidence"].iloc[0] == pytest.approx(ppca(2, 0).log_prob(TEST[:1])[0], abs=1e-5)
    assert math.isnan(found["active"].iloc[0])
