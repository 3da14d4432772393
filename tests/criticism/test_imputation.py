"""Imputations against exact conditionals; what was observed stays; what stands in a hole never matters."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae.criticism.imputation import Candidates, own
from ppl_vae.data.columns import TYPES
from ppl_vae.infer.draws import Draws, told_apart

RANDOM = np.random.RandomState(0)
N = 240
SIGNAL = RANDOM.randn(N)
SEEN, HOLES = [0, 2], [1, 3]
LOADINGS = torch.tensor([[1.0, 0.5, -0.8, 0.3], [0.0, 0.9, 0.6, -0.7]])
FACTOR = torch.tensor([[0.5], [-0.4], [0.3], [0.6]])
DIAGONAL = torch.tensor([0.3, 0.2, 0.4, 0.25])
NOISE = {
    "normal": DIAGONAL.diag(),
    "low_rank": FACTOR @ FACTOR.T + DIAGONAL.diag(),
    "full": FACTOR @ FACTOR.T + DIAGONAL.diag(),
}
LIKELIHOODS = {
    "normal": lambda loc: dist.Normal(loc, DIAGONAL.sqrt()).to_event(1),
    "low_rank": lambda loc: dist.LowRankMultivariateNormal(
        loc, FACTOR.expand(*loc.shape, 1), DIAGONAL.expand(loc.shape)
    ),
    "full": lambda loc: dist.MultivariateNormal(loc, NOISE["full"]),
}


def linear(name: str, x: np.ndarray) -> pv.VAE:
    """x = loadings z + noise, and a guide that is off: its mean by half a standard deviation, its scale by a quarter."""

    def encoder(x: torch.Tensor, mask: torch.Tensor) -> dist.Distribution:
        both, holes = mask[..., :, None] & mask[..., None, :], torch.diag_embed(~mask)
        seen = torch.where(both, torch.linalg.inv(torch.where(both, NOISE[name], 0.0) + holes), 0.0)
        covariance = torch.linalg.inv(torch.eye(2) + LOADINGS @ seen @ LOADINGS.T)
        mean = covariance @ LOADINGS @ seen @ x[..., None]
        spread = torch.linalg.cholesky(covariance)
        return dist.MultivariateNormal(mean[..., 0] + 0.5 * spread.sum(-1), scale_tril=1.25 * spread)

    schema = pv.Schema.fit(x, nullable=True)
    return pv.VAE(
        encoder,
        lambda z: LIKELIHOODS[name](z @ LOADINGS),
        lambda: dist.Normal(torch.zeros(2), 1.0).to_event(1),
        schema,
    )


def gaussian_rows(name: str, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, 4) in units of their own, the second and last cell hidden in half of them, and the encoded covariance."""
    covariance = (LOADINGS.T @ LOADINGS + NOISE[name]).numpy()
    x = RANDOM.multivariate_normal(np.zeros(4), covariance, n) * [1.0, 10.0, 0.1, 3.0] + [0.0, 5.0, -1.0, 2.0]
    x[::2, HOLES] = np.nan
    return x, covariance


def encoded(vae: pv.VAE, x: np.ndarray) -> np.ndarray:
    return (x - np.array(vae.schema.loc)) / np.array(vae.schema.scale)


def conditional(vae: pv.VAE, x: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exact mean (n, 2) of the holes of every other row given its other cells, and their covariance, encoded."""
    gain = covariance[np.ix_(HOLES, SEEN)] @ np.linalg.inv(covariance[np.ix_(SEEN, SEEN)])
    spread = covariance[np.ix_(HOLES, HOLES)] - gain @ covariance[np.ix_(SEEN, HOLES)]
    return encoded(vae, x)[::2, SEEN] @ gain.T, spread


def whiten(vae: pv.VAE, imputed: pv.Imputed, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """The draws (M, n, 2) of these holes, standard normal if they are exact."""
    drawn = np.stack([imputed.completed(m) for m in range(imputed.num_draws)])[:, ::2]
    return (encoded(vae, drawn)[..., HOLES] - mean) @ np.linalg.inv(np.linalg.cholesky(spread)).T


@pytest.mark.parametrize("name", list(LIKELIHOODS))
def test_imputations_follow_the_exact_conditional_normal(name):
    """Mean, variance and correlation of 30 rows x 100 draws x 2 cells, each within 4 standard errors: fails at 6e-4."""
    x, covariance = gaussian_rows(name)
    vae = linear(name, x)
    imputed = pv.impute(vae, x, num_draws=100, candidates=2500)
    mean, spread = conditional(vae, x, covariance)
    whitened = whiten(vae, imputed, mean, spread).reshape(-1, 2).T
    count = whitened.shape[1]
    assert np.abs(whitened.mean(1)).max() < 4 / np.sqrt(count)
    assert np.abs((whitened**2).mean(1) - 1).max() < 4 * np.sqrt(2 / count)
    assert abs((whitened[0] * whitened[1]).mean()) < 4 / np.sqrt(count)
    point = encoded(vae, imputed.frame)[::2, HOLES]
    assert np.abs((point - mean) / np.sqrt(spread.diagonal()) * np.sqrt(imputed.ess[::2, None])).max() < 4.5
    assert np.nanmin(imputed.ess) > 600 and np.isnan(imputed.ess[1::2]).all()


def test_a_joint_family_from_build_is_imputed_and_correlated():
    x = np.stack([SIGNAL, SIGNAL + 0.1 * RANDOM.randn(N), RANDOM.randn(N)], 1)
    truth, x = x.copy(), np.where(RANDOM.rand(N, 3) < 0.3, np.nan, x)
    for likelihood in ("full_normal", "low_rank_normal"):
        vae = pv.build(x, likelihood=likelihood, latent=1, hidden=(16,), nullable=True)
        pv.fit(vae, x, epochs=30, lr=2e-2, progress=False)
        frame = pv.impute(vae, x, num_draws=2, candidates=100).frame
        alone = np.isnan(x[:, 0]) & ~np.isnan(x[:, 1])
        assert (frame == x)[~np.isnan(x)].all()
        assert np.corrcoef(frame[alone, 0], truth[alone, 0])[0, 1] > 0.9


def test_few_candidates_follow_the_posterior_and_not_the_proposal():
    """As many draws as candidates, 400 rows with holes: mean and second moment of each cell within 4 standard errors.

    Whitened exactly, and each row its own cluster: fails by chance at 3e-4. The proposal is off by 8 of them and more.
    """
    x, covariance = gaussian_rows("normal", 800)
    vae = linear("normal", x)
    imputed = pv.impute(vae, x, num_draws=40, candidates=40)
    whitened = whiten(vae, imputed, *conditional(vae, x, covariance))
    for moment in (whitened.mean(0), (whitened**2).mean(0) - 1):
        assert (np.abs(moment.mean(0)) < 4 * moment.std(0) / np.sqrt(len(moment))).all()
    assert 15 < np.nanmedian(imputed.ess) < 30


def test_resampled_candidates_are_exchangeable_draws_by_weight():
    """Of 20 candidates 20 draws for 4000 rows, whose value is their log weight: no trend over draws, the exact mean.

    Within 4 standard errors each: fails by chance at 2e-4.
    """
    generator = torch.Generator().manual_seed(0)
    log_weight = 2 * torch.randn(20, 4000, 1, generator=generator).double()
    pick = torch.rand(20, 4000, 1, generator=generator).double()
    vae = SimpleNamespace(schema=pv.Schema.fit(np.zeros((2, 1))), guide=None)
    nothing = torch.zeros(20, 4000)
    block = Draws(nothing, {}, *[nothing] * 3, log_weight[..., 0], torch.cat([pick, log_weight, log_weight], -1))
    drawn = Candidates(vae).resample(block, 20).drawn[..., 0]
    exact = (log_weight.softmax(0) * log_weight).sum(0)[:, 0].numpy()
    slopes = np.linspace(-1, 1, 20) @ drawn
    for off in (slopes, drawn.mean(0) - exact, drawn[0] - exact, drawn[-1] - exact):
        assert abs(off.mean()) < 4 * off.std() / np.sqrt(len(off))


def test_equal_rows_are_imputed_independently():
    """One binary column tells the other, missing in 200 of 400 rows: sd over 200 tables of its mean as of 200 draws.

    The sd of 200 values is known to 5 %, taken 4 times: fails by chance at 1e-4. Another order swaps equal rows only.
    """
    a = RANDOM.rand(400) < 0.5
    frame = pd.DataFrame({"a": a * 1.0, "b": np.where(np.arange(400) < 200, a + RANDOM.randn(400), np.nan)})
    vae = pv.build(frame, likelihood={"a": "bernoulli", "b": "normal"}, nullable=["b"], latent=1, hidden=(4,))
    values = pv.impute(vae, frame, num_draws=200, candidates=400).draws.posterior["b"].values[0]
    assert values.mean(1).std() / (values.std() / np.sqrt(200)) == pytest.approx(1, abs=0.2)
    keys = torch.tensor([5, 3, 5, 5])
    apart = told_apart(keys)
    assert torch.equal(apart[:2], keys[:2]) and len(apart.unique()) == 4
    order = RANDOM.permutation(400)
    moved = pv.impute(vae, frame.iloc[order], num_draws=200, candidates=400).draws.posterior["b"]
    for level in (0, 1):
        one, other = values[:, a[200:] == level], moved.values[0][:, a[order][moved["b_row"].values] == level]
        np.testing.assert_allclose(one[:, one[0].argsort()], other[:, other[0].argsort()], rtol=1e-4, atol=1e-5)


# ---- mixed tables


def table() -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            "real": SIGNAL + 0.3 * RANDOM.randn(N),
            "wage": np.exp(0.5 * SIGNAL + 0.2 * RANDOM.randn(N)),
            "visits": pd.array(RANDOM.poisson(np.exp(0.5 * SIGNAL + 1)), dtype="Int32"),
            "job": np.array(["clerk", "miner", "smith"])[np.digitize(SIGNAL, [-0.5, 0.5])],
            "yes": pd.array(SIGNAL + 0.5 * RANDOM.randn(N) > 0, dtype="boolean"),
            "grade": pd.Categorical.from_codes(
                np.digitize(SIGNAL, [-1, 0, 1]), ["low", "fair", "good", "best"], ordered=True
            ),
            "turn": np.arctan2(np.sin(SIGNAL), np.cos(SIGNAL)),
            "kept": SIGNAL,
        },
        index=np.arange(N)[::-1],
    )
    hidden = RANDOM.rand(N, 8) < 0.2
    hidden[:, -1] = False
    hidden[::4] = False  # rows without holes
    return frame.mask(pd.DataFrame(hidden, columns=frame.columns, index=frame.index))


FRAME = table()


@pytest.fixture(scope="module")
def fitted() -> pv.VAE:
    vae = pv.build(FRAME, likelihood={"turn": "von_mises"}, latent=2, hidden=(16,), nullable=True)
    pv.fit(vae, FRAME, epochs=80, lr=2e-2, progress=False)
    return vae


def as_polars(frame: pd.DataFrame) -> pl.DataFrame:
    return pl.from_arrow(pa.Table.from_pandas(frame, preserve_index=False))


FORMS = {"pandas": lambda f: f, "pyarrow": lambda f: pa.Table.from_pandas(f, preserve_index=False), "polars": as_polars}


@pytest.mark.parametrize("form", list(FORMS))
def test_columns_keep_their_types_and_observed_cells_every_bit(fitted, form):
    data = FORMS[form](FRAME)
    imputed = pv.impute(fitted, data, num_draws=3, candidates=50)
    types = {"pandas": lambda t: list(t.dtypes), "pyarrow": lambda t: t.schema.types, "polars": lambda t: t.dtypes}[
        form
    ]
    for full in (imputed.frame, imputed.completed(0), imputed.completed(2)):
        assert type(full) is type(data) and types(full) == types(data)
        full = full if form == "pandas" else full.to_pandas()
        assert full.notna().all().all()
        for name in FRAME:
            seen = FRAME[name].notna().to_numpy()
            assert full[name].to_numpy()[seen].tolist() == FRAME[name].to_numpy()[seen].tolist()
        assert (full["wage"] > 0).all() and full["turn"].abs().max() <= np.pi and (full["visits"] >= 0).all()
        assert set(full["job"]) == {"clerk", "miner", "smith"} and set(full["grade"]) <= {"low", "fair", "good", "best"}
    if form == "pandas":
        assert imputed.frame.index.equals(FRAME.index)


def every_type() -> pd.DataFrame:
    """A column of each type, each a plain pandas one with holes: counts and pixels are floats, booleans objects."""
    noise = RANDOM.randn(N)
    frame = pd.DataFrame(
        {
            "real": SIGNAL + noise,
            "positive": np.exp(SIGNAL),
            "count": RANDOM.poisson(np.exp(SIGNAL + 1)),
            "unit": 1 / (1 + np.exp(noise - SIGNAL)),
            "boolean": (SIGNAL + noise > 0) * 1.0,
            "yes": SIGNAL + noise > 0,
            "categorical": np.array(["a", "b", "c"])[np.digitize(SIGNAL, [-0.5, 0.5])],
            "ordinal": np.digitize(SIGNAL, [-1, 0, 1]) + 1,
            "angle": np.arctan2(np.sin(SIGNAL), np.cos(SIGNAL)),
            "pixel": np.clip(np.rint(127 + 50 * SIGNAL), 0, 255),
        }
    )
    return frame.mask(RANDOM.rand(*frame.shape) < 0.25)


def test_every_type_of_column_is_filled_with_values_that_its_model_scores():
    frame = every_type()
    likelihood = {"unit": "beta", "boolean": "bernoulli", "ordinal": "ordinal", "angle": "von_mises"}
    likelihood["pixel"] = "discretized_logistic"
    vae = pv.build(frame, likelihood=likelihood, latent=2, hidden=(8,), nullable=True)
    assert set(vae.schema.types) == set(TYPES)
    imputed = pv.impute(vae, frame, num_draws=2, candidates=30)
    for full in (imputed.frame, imputed.completed(1)):
        assert full.notna().all(axis=None)
        assert np.isfinite(pv.score(vae, full, num_draws=4).values).all()


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("positive", [0.0, 2.5, np.inf], [1.1754944e-38, 2.5, 3.4028235e38]),
        ("count", [-0.6, 6.04, 6.6], [0, 6, 7]),
        ("unit", [-1e-7, 0.5, 1.0000001], [0, 0.5, 1]),
        ("boolean", [-0.1, 0.6, 1.1], [0, 1, 1]),
        ("pixel", [-1.1, 0.0, 1.1], [0, 128, 255]),
        ("real", [-np.inf, 0.4, 1e300], [-np.inf, 0.4, 1e300]),
    ],
)
def test_values_are_the_nearest_that_the_type_allows(kind, values, expected):
    loc, scale = ((127.5,), (127.5,)) if kind == "pixel" else (None, None)
    schema = pv.Schema(("a",), "numpy", (1,), loc, scale, types=(kind,))
    np.testing.assert_allclose(own(schema, 0, np.array(values)), expected, rtol=1e-7)


def test_arrays_and_tensors_come_back_as_they_came():
    x = np.where(RANDOM.rand(30, 2, 2) < 0.2, np.nan, RANDOM.randn(30, 2, 2)).astype(np.float32)
    vae = pv.build(x, latent=2, hidden=(8,), nullable=True)
    for data in (x, torch.tensor(x)):
        full = pv.impute(vae, data, num_draws=2, candidates=20).frame
        assert type(full) is type(data) and full.dtype == data.dtype and full.shape == data.shape
        assert np.isfinite(np.asarray(full)).all()
        seen = ~np.isnan(x)
        assert (np.asarray(full)[seen] == x[seen]).all()


def same(one: pv.Imputed, other: pv.Imputed) -> bool:
    cells = zip(one.draws.posterior.data_vars.values(), other.draws.posterior.data_vars.values(), strict=True)
    equal = all(np.array_equal(a.values, b.values) for a, b in cells)
    return equal and one.frame.equals(other.frame) and np.array_equal(one.ess, other.ess, equal_nan=True)


def test_a_seed_tells_all_and_batch_mates_nothing(fitted):
    imputed = pv.impute(fitted, FRAME, num_draws=4, candidates=50)
    assert same(imputed, pv.impute(fitted, FRAME, num_draws=4, candidates=50))
    assert not same(imputed, pv.impute(fitted, FRAME, num_draws=4, candidates=50, seed=1))
    torch.manual_seed(3)
    few = FRAME.iloc[[101, 7, 5]]
    alone = pv.impute(fitted, few, num_draws=4, candidates=50)
    for m in range(4):
        pd.testing.assert_frame_equal(alone.completed(m), imputed.completed(m).loc[few.index], rtol=1e-6, atol=1e-6)
    pd.testing.assert_frame_equal(alone.frame, imputed.frame.loc[few.index], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(alone.ess, imputed.ess[[101, 7, 5]], rtol=1e-5)


@pytest.mark.parametrize("likelihood", ["mixed", "full_normal", "low_rank_normal"])
def test_what_stands_in_a_hole_changes_no_bit(fitted, likelihood):
    data, vae = FRAME, fitted
    if likelihood != "mixed":
        data = FRAME[["real", "wage", "turn"]]
        vae = pv.build(data, likelihood=likelihood, latent=2, hidden=(8,), nullable=True)
    batch, seen = vae.batch(data), []
    try:
        for hidden in (0.0, float("nan"), 1e30):
            changed = batch._replace(x=torch.where(batch.mask, batch.x, hidden))
            vae.batch = lambda *_, changed=changed, **__: changed
            seen.append((pv.score(vae, data, "iwae", num_draws=20).values, pv.impute(vae, data, 3, candidates=30)))
    finally:
        del vae.batch
    assert np.isfinite(seen[0][0]).all()
    assert all(np.array_equal(seen[0][0], score) and same(seen[0][1], imputed) for score, imputed in seen[1:])


def test_rows_without_holes_and_tables_without_holes(fitted):
    complete = FRAME.dropna()
    imputed = pv.impute(fitted, complete, num_draws=3)
    pd.testing.assert_frame_equal(imputed.frame, complete)
    pd.testing.assert_frame_equal(imputed.completed(2), complete)
    assert np.isnan(imputed.ess).all() and imputed.num_draws == 3 and not imputed.draws.groups()
    assert repr(imputed) == f"Imputed(0 cells of {len(complete)} rows, 3 draws)"


def test_a_row_of_holes_alone_is_drawn_from_the_prior():
    """Shares of levels over 500 draws of one row without a cell, against 2000 rows generated: 4 standard errors."""
    data = FRAME.drop(columns="kept")
    vae = pv.build(data, latent=2, hidden=(8,), likelihood="infer")
    data = data.iloc[:1].mask(np.ones((1, 7), bool))
    drawn = pv.impute(vae, data, num_draws=500, candidates=4000).draws.posterior["job"].values
    made = pv.generate(vae, 2000).x["job"]
    for code, level in enumerate(["clerk", "miner", "smith"]):
        share = (made == level).mean()
        assert abs((drawn == code).mean() - share) < 4 * np.sqrt(0.25 / 500 + 0.25 / 2000)


def test_the_single_filling_is_median_mode_and_mean_of_the_draws(fitted):
    """Each within 5 standard errors of 300 draws, or decided by that many: fails at about 1e-4 over 90 cells.

    The filling averages over values of cells, the draws are such values: they differ by noise of the candidates too.
    """
    rows = FRAME[FRAME[["grade", "job", "visits"]].isna().any(axis=1)].iloc[:64]
    imputed = pv.impute(fitted, rows, num_draws=300, candidates=2000)
    posterior, decided = imputed.draws.posterior, {"grade": 0, "job": 0}
    error = np.sqrt(1 / 300 + 1 / imputed.ess)
    for name, filling in {"grade": median, "job": mode}.items():
        for row, drawn in zip(posterior[f"{name}_row"].values, posterior[name].values[0].T.astype(int)):
            best, apart = filling(drawn)
            decided[name] += apart > 5 * 0.5 * error[row]
            if apart > 5 * 0.5 * error[row]:
                assert imputed.frame[name].iloc[row] == posterior[name].attrs["levels"][best]
    assert min(decided.values()) > 5
    for row, drawn in zip(posterior["visits_row"].values, posterior["visits"].values[0].T):
        assert abs(imputed.frame["visits"].iloc[row] - drawn.mean()) < 0.5 + 5 * drawn.std() * error[row]


def median(codes: np.ndarray) -> tuple[int, float]:
    """The median code, and how far the shares below and up to it are from a half."""
    best = int(np.median(codes))
    return best, min(0.5 - (codes < best).mean(), (codes <= best).mean() - 0.5)


def mode(codes: np.ndarray) -> tuple[int, float]:
    """The most frequent code, and half of what its share is ahead."""
    shares = np.bincount(codes, minlength=3) / len(codes)
    return int(shares.argmax()), float(np.diff(np.sort(shares))[-1]) / 2


def test_draws_are_ready_for_arviz(fitted):
    imputed = pv.impute(fitted, FRAME, num_draws=5, candidates=50, seed=4)
    posterior = imputed.draws.posterior
    assert set(posterior.data_vars) == set(FRAME) - {"kept"}
    for name in posterior.data_vars:
        rows = FRAME[name].isna().to_numpy().nonzero()[0]
        assert posterior[name].dims == ("chain", "draw", f"{name}_row") and posterior[name].shape == (1, 5, len(rows))
        assert posterior[f"{name}_row"].values.tolist() == rows.tolist()
        third = imputed.completed(3)[name].iloc[rows]
        if posterior[name].attrs.get("levels"):
            third = third.astype(str).map({level: code for code, level in enumerate(posterior[name].attrs["levels"])})
        assert posterior[name].values[0, 3].tolist() == third.astype(float).tolist()
    assert imputed.draws.attrs["seed"] == 4 and imputed.draws.attrs["num_draws"] == 5


# ---- other models


@pytest.mark.parametrize(
    "options",
    [
        {"prior": "enumerated_mixture", "components": 3},
        {"prior": "ard"},
        {"prior": "hierarchical", "group": "job"},
        {"label": "job"},
        {"covariates": ("kept",)},
        {"posterior": "iaf", "prior": "flow"},
    ],
    ids=str,
)
def test_with_other_parts(options):
    data = FRAME[["real", "wage", "visits", "job", "kept"]]
    data = data[data["job"].notna()] if options.get("group") else data
    vae = pv.build(data, likelihood={"real": "normal"}, nullable=True, latent=2, hidden=(8,), **options)
    imputed = pv.impute(vae, data, num_draws=3, candidates=40)
    beside = {options.get("label"), options.get("group")}
    assert imputed.frame.drop(columns=[c for c in beside if c]).notna().all().all()
    again = pv.impute(vae, data.iloc[:9], num_draws=3, candidates=40)
    if options.get("prior") != "ard":  # whose weights all rows share
        pd.testing.assert_frame_equal(again.frame, imputed.frame.iloc[:9], rtol=1e-5, atol=1e-6)


def test_what_cannot_be_imputed_is_refused(fitted):
    x = RANDOM.randn(20, 3)
    holed = x.copy()
    holed[3, 1] = np.nan
    with pytest.raises(pv.OptionError, match="without nullable columns"):
        pv.impute(pv.build(x, latent=2), x)
    with pytest.raises(pv.OptionError, match=r"candidates: got 4, expected at least num_draws = 5"):
        pv.impute(fitted, FRAME, num_draws=5, candidates=4)
    for name in ("num_draws", "candidates"):
        with pytest.raises(pv.OptionError, match=name):
            pv.impute(fitted, FRAME, **{name: 0})
    with pytest.raises(pv.OptionError, match="point posterior"):
        pv.impute(pv.build(holed, posterior="delta", nullable=True), holed)
    counts = np.where(np.isnan(holed), np.nan, np.floor(np.exp(holed)))
    with pytest.raises(pv.ProgramError, match="RowMultinomial"):
        pv.impute(pv.build(counts, likelihood="multinomial", nullable=True), counts)
    with pytest.raises(pv.DataError, match="kept"):
        pv.impute(fitted, FRAME.assign(kept=np.nan))
    imputed = pv.impute(fitted, FRAME, num_draws=2, candidates=10)
    for m in (-1, 2):
        with pytest.raises(pv.OptionError, match=rf"m: got {m}, expected a number from 0 to 1"):
            imputed.completed(m)
