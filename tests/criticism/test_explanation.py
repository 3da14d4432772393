"""Oracles: the identity that parts and remainder sum to the score, one draw by hand, and planted errors."""

from typing import Any

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from scipy.special import softmax

import ppl_vae as pv
from ppl_vae.criticism.explanation import explain

RANDOM = np.random.RandomState(0)
X = RANDOM.randn(400, 2) @ RANDOM.randn(2, 6) + 0.3 * RANDOM.randn(400, 6)


def mixed(n: int, seed: int = 1) -> pd.DataFrame:
    random = np.random.RandomState(seed)
    z = random.randn(n)
    return pd.DataFrame(
        {
            "a": z + 0.1 * random.randn(n),
            "b": -2 * z + 0.1 * random.randn(n),
            "kind": np.where(z > 0, "up", "down"),
            "count": random.poisson(np.exp(1 + 0.5 * z)),
        }
    )


@pytest.fixture(scope="module")
def of_table() -> Any:
    frame = mixed(600)
    vae = pv.build(frame, latent=2, hidden=(16,), likelihood="infer")
    pv.fit(vae, frame, epochs=60, lr=1e-2, progress=False, compiled=False)
    return vae


@pytest.mark.parametrize("draws", [1, 7, 64])
def test_parts_sum_to_the_score(of_table: Any, draws: int) -> None:
    frame = mixed(50, 2)
    found = explain(of_table, frame, num_draws=draws)
    expected = pv.score(of_table, frame, num_draws=draws).values
    np.testing.assert_allclose(found.parts.sum(1) + found.remainder, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-6)
    assert (found.remainder <= 1e-12).all() and (found.remainder >= -np.log(draws) - 1e-12).all()
    assert found.names == ("a", "b", "kind", "count")


def test_parts_are_weighted_by_how_well_a_draw_explains_the_row() -> None:
    """By hand, from draws of a linear model with equal noise in all columns."""
    ppca = pv.PPCA(2).fit(X)
    d = pv.draws(ppca, X[:5], num_draws=8)
    with torch.no_grad():
        decoded = ppca.decoder(d.z)
    log_p = stats.norm(decoded.mean.numpy(), decoded.stddev.numpy()).logpdf(ppca.batch(X[:5]).x.numpy())
    weight = np.exp(log_p.sum(-1)) / np.exp(log_p.sum(-1)).sum(0)
    found = explain(ppca, X[:5], num_draws=8)
    np.testing.assert_allclose(found.parts, (weight[..., None] * log_p).sum(0), rtol=1e-6)
    np.testing.assert_allclose(found.remainder, -(weight * np.log(8 * weight)).sum(0), rtol=1e-6, atol=1e-9)


def test_an_ensemble_has_parts_too() -> None:
    vaes = [pv.build(X, latent=2, hidden=(4,), seed=seed) for seed in (0, 1)]
    both = pv.Ensemble(vaes)
    found = explain(both, X[:9], num_draws=4)
    np.testing.assert_allclose(found.scores, pv.score(both, X[:9], num_draws=4).values, rtol=1e-6)


def test_a_draw_that_finds_a_cell_impossible_has_no_part() -> None:
    """Uniform likelihoods within 1 of z: by hand, -log 2 of each cell where a draw counts, and no 0 times -inf. Each row
    is possible by some of its draws alone."""
    vae = pv.VAE(
        encoder=lambda x: dist.Normal(x.mean(-1, keepdim=True), 0.5).to_event(1),
        decoder=lambda z: dist.Uniform(z.expand(*z.shape[:-1], 3) - 1, z + 1, validate_args=False).to_event(1),
        prior=lambda: dist.Normal(torch.zeros(1), 1.0).to_event(1),
    )
    x = torch.tensor([[0.0, 0.1, -0.1], [0.9, 0.0, 0.0]])
    z = pv.draws(vae, x, num_draws=16).z[..., 0]
    possible = ((x - z[..., None]).abs() < 1).all(-1).sum(0).numpy()
    assert (0 < possible).all() and (possible < 16).all()
    found = explain(vae, x, num_draws=16)
    np.testing.assert_allclose(found.parts, np.full((2, 3), -np.log(2)), rtol=1e-6)
    np.testing.assert_allclose(found.remainder, np.log(possible / 16), rtol=1e-6)
    np.testing.assert_allclose(found.parts.sum(1) + found.remainder, found.scores, rtol=1e-6)


def test_a_repair_is_by_what_the_others_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """One round by hand: E[x_d|z] at draws weighted by p(x_-d|z), of all cells but the one in question. What is gained is
    the score of the repaired row, by as many draws, less that of the row."""
    monkeypatch.setattr("ppl_vae.criticism.explanation.ROUNDS", 1)
    ppca = pv.PPCA(2).fit(X)
    batch = ppca.batch(X[:5])
    with torch.no_grad():
        decoded = ppca.decoder(pv.draws(ppca, batch, num_draws=8).z)
    mean, x = decoded.mean.numpy(), batch.x.numpy()
    log_p = stats.norm(mean, decoded.stddev.numpy()).logpdf(x)
    weight = softmax(log_p.sum(-1, keepdims=True) - log_p, 0)
    found = explain(ppca, batch, num_draws=8)
    np.testing.assert_allclose(found.instead, (weight * mean).sum(0), rtol=1e-6)
    for j in range(6):
        repaired = x.copy()
        repaired[:, j] = found.instead[:, j]
        after = pv.score(ppca, batch._replace(x=torch.from_numpy(repaired)), num_draws=8).values
        np.testing.assert_allclose(found.gain[:, j], after - found.scores, rtol=1e-6, atol=1e-9)


def test_cells_are_replaced_where_that_gains_enough() -> None:
    """From `least` on, and no others; 3 nats where nothing is said."""
    ppca, planted = pv.PPCA(2).fit(X), X[:20].copy()
    planted[:10, 3] += np.arange(1.0, 11.0)
    found = explain(ppca, planted, num_draws=8)
    worst, gain = found.gain.argmax(1), found.gain.max(1)
    for options, least in (({}, 3.0), ({"least": 30.0}, 30.0), ({"least": gain[4]}, gain[4])):
        expected, enough = planted.copy(), gain >= least
        expected[enough, worst[enough]] = (found.instead + X.mean(0))[enough, worst[enough]]
        np.testing.assert_allclose(found.repaired(**options), expected, rtol=1e-9, atol=1e-9)
        assert 0 < enough.sum() < 20


def test_repairs_of_a_linear_model_in_closed_form() -> None:
    """Of an exact posterior: the repaired cell is E[x_d|x_-d], and the worst cell is the planted one in every row. Each
    round leaves the cell's leverage, var(E[x_d|z]) / noise, of what was planted; draws leave sd(E[x_d|z]) / sqrt(ess), 4
    of which are allowed, with ess at least a quarter of the draws."""
    random = np.random.RandomState(3)
    x = random.randn(400, 2) @ random.randn(2, 12) + 0.3 * random.randn(400, 12)
    ppca = pv.PPCA(2).fit(x)
    planted, columns = x[:48].copy(), np.arange(48) % 12
    planted[np.arange(48), columns] += 5
    found = explain(ppca, planted, num_draws=400)
    assert (found.gain.argmax(1) == columns).all()
    with torch.no_grad():
        w = ppca.decoder(torch.eye(2).double()).mean.numpy() - ppca.decoder(torch.zeros(1, 2).double()).mean.numpy()
    noise = ppca.noise_variance
    mean, covariance = x.mean(0), w.T @ w + noise * np.eye(12)
    posterior = np.linalg.inv(np.eye(2) + w @ w.T / noise)
    repaired = found.repaired()
    for row, j in enumerate(columns):
        rest = np.arange(12) != j
        slope = np.linalg.solve(covariance[np.ix_(rest, rest)], covariance[rest, j])
        expected = mean[j] + slope @ (planted[row, rest] - mean[rest])
        sd = (w[:, j] @ posterior @ w[:, j]) ** 0.5
        assert abs(repaired[row, j] - expected) < 4 * sd / 100**0.5 + 5 * (sd**2 / noise) ** 5


def test_planted_errors_are_found(of_table: Any) -> None:
    """One cell of each row is made to contradict the others: its column comes first."""
    frame = mixed(300, 3)
    planted = frame.copy()
    columns = np.random.RandomState(5).randint(0, 2, 300)
    for row, column in enumerate(columns):
        planted.iloc[row, column] = (3.0, -6.0)[column] * (-1 if frame["a"][row] > 0 else 1)
    found = explain(of_table, planted)
    first = [found.columns(row, 1)[0][0] for row in range(300)]
    hit = np.array([name == planted.columns[column] for name, column in zip(first, columns)])
    assert hit.mean() > 0.8
    repaired = found.repaired()
    assert list(repaired.columns) == ["a", "b", "kind", "count"] and set(repaired["kind"]) <= {"up", "down"}
    after = pv.score(of_table, repaired).values
    assert (after > found.scores).mean() > 0.95


def test_holes_surprise_nobody() -> None:
    x = X.copy()
    x[:, 2] = np.where(np.arange(400) % 2, np.nan, x[:, 2])
    vae = pv.build(x, latent=2, hidden=(8,), nullable=True)
    found = explain(vae, x[:4])
    assert (found.gain[1::2, 2] == -np.inf).all() and (found.parts[1::2, 2] == 0).all()
    assert np.isfinite(found.gain[::2]).all()
    assert "x2" not in [name for name, _ in found.columns(1, 5)]
    repaired = found.repaired()
    assert np.isnan(repaired[1::2, 2]).all() and ((repaired != x[:4]) & ~np.isnan(x[:4])).sum(1).max() <= 1


def test_impossible_rows_are_repaired() -> None:
    """Of log p = -inf, the cell that makes it possible gains all."""
    vae = pv.build(X, latent=2, hidden=(8,))
    far = X[:3].copy()
    far[1, 4] = 1e20
    found = explain(vae, far)
    assert found.scores[1] == -np.inf and found.columns(1, 1) == [("x4", np.inf)]
    assert not np.isnan(found.gain).any() and abs(found.repaired()[1, 4]) < 100
    far[1] = 1e20
    found = explain(vae, far)
    assert found.columns(1) == [] and len(found.columns(0)) == 3  # no one cell is to blame
    for least in ("a", np.nan, -5):
        with pytest.raises(pv.OptionError, match="least: got"):
            found.repaired(least)  # type: ignore[arg-type]


def test_frames_and_reports(of_table: Any) -> None:
    found = explain(of_table, mixed(3, 4))
    assert list(found.frame().columns) == ["a", "b", "kind", "count"] and found.frame().shape == (3, 4)
    assert repr(found) == "Explanation(3 rows by 4 columns)"
    assert len(found.columns(0)) == 3
    with pytest.raises(pv.OptionError, match="row: got 3, expected a place from 0 to 2"):
        found.columns(3)


def test_what_cannot_be_explained() -> None:
    joint = pv.build(X, latent=1, hidden=(), likelihood="full_normal")
    with pytest.raises(pv.ProgramError, match="no sum over features"):
        explain(joint, X)
    with pytest.raises(pv.OptionError, match="vae: got a ndarray"):
        explain(X, X)
