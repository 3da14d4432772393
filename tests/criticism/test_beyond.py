"""Oracles: closed forms of linear models, and each formula by hand."""

import math
import re
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import ppl_vae as pv
from ppl_vae.criticism.beyond import BEYOND

RANDOM = np.random.RandomState(0)
X = RANDOM.randn(300, 1) @ RANDOM.randn(1, 4) + 0.5 * RANDOM.randn(300, 4)
NEW = X[:60] * 1.5


@pytest.fixture(scope="module")
def linear() -> Any:
    """One latent: the exact posterior is a normal, which the encoder misses."""
    vae = pv.build(X, latent=1, hidden=(), scale="shared", standardize="none")
    pv.fit(vae, X, epochs=10, lr=1e-2, valid=0.0, progress=False, compiled=False)
    return vae.double()


@pytest.fixture(scope="module")
def both() -> Any:
    return pv.Ensemble([pv.build(X, latent=1, hidden=(), seed=seed) for seed in range(3)])


def exact(vae: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log p(x) of a linear model, and the encoder's means and scales."""
    with torch.no_grad():
        q = vae.encoder(torch.tensor(x))
        decoded = vae.decoder(torch.tensor([[0.0], [1.0]]).double())
    mean, w, noise = (
        decoded.mean[0].numpy(),
        (decoded.mean[1] - decoded.mean[0]).numpy(),
        float(decoded.variance.mean()),
    )
    law = stats.multivariate_normal(mean, np.outer(w, w) + noise * np.eye(4))
    return law.logpdf(x), q.mean.numpy()[:, 0], q.stddev.numpy()[:, 0]


def test_density_of_states_by_hand(linear: Any) -> None:
    """One component is a normal with the mean and covariance of the statistics; its units are those of whitened ones."""
    names = ("kl_to_prior", "reconstruction_error")
    known, rows = (np.stack([pv.score(linear, x, n, num_draws=8).values for n in names], 1) for x in (X, NEW))
    law = stats.multivariate_normal(known.mean(0), np.cov(known.T))
    options = {"normal": X, "of": names, "components": 1}
    got = pv.score(linear, NEW, ("density_of_states", options), num_draws=8).values
    expected = law.logpdf(rows)
    np.testing.assert_allclose(got - got.mean(), expected - expected.mean(), rtol=1e-2, atol=1e-2)
    one = pv.score(linear, X, ("density_of_states", {"normal": X, "of": ["elbo"], "components": 1}), num_draws=8).values
    known = pv.score(linear, X, "elbo", num_draws=8).values[:, None]
    assert one.argmax() == np.abs(known[:, 0] - known[:, 0].mean()).argmin()  # neither the highest nor the lowest
    tied = pv.score(
        linear, NEW, ("density_of_states", {"normal": X}), num_draws=8
    ).values  # the third is a sum of the two
    assert np.isfinite(tied).all()


def test_likelihood_regret_is_the_amortization_gap_of_an_exact_family(linear: Any) -> None:
    """max_q L[q] = log p(x) here. The search may miss 0.01 nats and a tenth; 4.5 standard errors of 60 rows beyond: 4e-4."""
    log_p, _, _ = exact(linear, NEW)
    elbo = pv.score(linear, NEW, "elbo", num_draws=20_000, seed=5)
    got = pv.score(linear, NEW, ("likelihood_regret", {"steps": 300}), num_draws=500)
    expected = elbo.values - log_p
    assert (np.abs(got.values - expected) < 4.5 * np.hypot(got.mcse, elbo.mcse) + 0.01 - 0.1 * expected).all()
    assert expected.min() < -0.1  # there is something to regret


def test_the_error_of_a_regret_in_closed_form(linear: Any) -> None:
    """log p(x, z) - log q(z|x) is b e + c e^2 of standard normal e, with variance b^2 + 2 c^2, by q of the encoder, and
    constant by the exact posterior. Squared errors of 300 rows are that on average: 5 standard errors, 6e-7."""
    _, mean, sd = exact(linear, X)
    with torch.no_grad():
        decoded = linear.decoder(torch.tensor([[0.0], [1.0]]).double())
    start, w, noise = (
        decoded.mean[0].numpy(),
        (decoded.mean[1] - decoded.mean[0]).numpy(),
        decoded.variance.mean().item(),
    )
    b = sd * ((X - start - mean[:, None] * w) @ w / noise - mean)
    c = 0.5 * (1 - sd**2 * (1 + w @ w / noise))
    got = pv.score(linear, X, "likelihood_regret", num_draws=50)
    ratio = 50 * got.mcse**2 / (b**2 + 2 * c**2)
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / math.sqrt(300)


def test_kl_to_prior_in_closed_form(linear: Any) -> None:
    """4.5 standard errors for each of 60 rows: fails by chance at 4e-4."""
    _, mean, sd = exact(linear, NEW)
    kl = 0.5 * (mean**2 + sd**2 - 2 * np.log(sd) - 1)
    got = pv.score(linear, NEW, "kl_to_prior", num_draws=1000)
    assert (np.abs(got.values + kl) < 4.5 * got.mcse).all()
    again = pv.score(linear, NEW, "kl_to_prior", draws=pv.draws(linear, NEW, num_draws=1000))
    np.testing.assert_allclose(again.values, got.values, rtol=1e-9)


def test_ratio_and_typicality_of_exact_densities() -> None:
    ppca, background = pv.PPCA(1).fit(X), pv.PPCA(2).fit(3 * X)
    ratio = pv.score(ppca, NEW, ("likelihood_ratio", {"background": background}))
    np.testing.assert_allclose(ratio.values, ppca.log_prob(NEW) - background.log_prob(NEW), atol=1e-6)
    typical = pv.score(ppca, NEW, ("typicality", {"normal": X}))
    np.testing.assert_allclose(typical.values, -np.abs(ppca.log_prob(NEW) - ppca.log_prob(X).mean()), atol=1e-6)


def test_the_error_of_a_ratio_is_of_both_densities(both: Any) -> None:
    """They have noise of their own: variances add."""
    vae, background = both.members[:2]
    one, two = pv.score(vae, NEW, "iwae", num_draws=8), pv.score(background, NEW, "iwae", num_draws=8, seed=1)
    got = pv.score(vae, NEW, ("likelihood_ratio", {"background": background}), num_draws=8)
    np.testing.assert_allclose(got.values, one.values - two.values, rtol=1e-9)
    np.testing.assert_allclose(got.mcse, (one.mcse**2 + two.mcse**2) ** 0.5, rtol=1e-9)


def test_scores_of_an_ensemble(both: Any) -> None:
    found = [pv.score(member, NEW, "iwae", seed=m) for m, member in enumerate(both.members)]
    log_p, of_draws = np.stack([f.values for f in found]), np.stack([f.mcse for f in found])
    waic = pv.score(both, NEW, "waic")
    variance = ((log_p - log_p.mean(0)) ** 2).sum(0) / 2 - (of_draws**2).mean(0)
    np.testing.assert_allclose(waic.values, log_p.mean(0) - variance, rtol=1e-9)
    p = np.exp(log_p)
    agreed = pv.score(both, NEW, "disagreement").values
    np.testing.assert_allclose(agreed, p.sum(0) ** 2 / (p**2).sum(0), rtol=1e-6)
    assert (agreed >= 1).all() and (agreed <= 3).all() and np.isnan(waic.mcse).all()


def test_members_that_are_one_do_not_vary() -> None:
    """Of a model twice the variance is 0, whatever its Monte Carlo noise: its estimate is, within 4 standard errors over
    independent rows (6e-5). A guide wider than the posterior, for weights that are bounded and errors that are honest."""
    vae = pv.PPCA(1).fit(X)
    vae.encoder.scale.mul_(1.2)
    rows = np.concatenate([X * (1 + 1e-5 * j) for j in range(10)])
    log_p = np.mean([pv.score(vae, rows, "iwae", seed=m).values for m in range(2)], 0)
    variance = log_p - pv.score(pv.Ensemble([vae, vae]), rows, "waic").values
    assert abs(variance.mean()) < 4 * variance.std() / math.sqrt(len(rows)) and variance.std() > 0


def test_aggregate_posterior_is_the_mixture_over_normal_rows(linear: Any) -> None:
    _, means, sds = exact(linear, X)
    z = pv.draws(linear, NEW, num_draws=7, seed=3).z.numpy()[..., 0]
    log_q = stats.norm(means, sds).logpdf(z[..., None])
    by_hand = np.log(np.exp(log_q).mean(-1)).mean(0)
    got = pv.score(linear, NEW, ("aggregate_posterior", {"normal": X}), num_draws=7, seed=3)
    np.testing.assert_allclose(got.values, by_hand, rtol=1e-6)


def test_the_aggregate_posterior_of_many_rows_is_that_of_random_ones(
    linear: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 300 rows in the order of their z, 100: at one draw the mixture over these is that over all within 4.5 standard
    errors without replacement, for each of 60 rows. Fails by chance at 4e-4."""
    monkeypatch.setattr("ppl_vae.criticism.beyond.ROWS", 100)
    _, means, sds = exact(linear, X)
    z = pv.draws(linear, X[:60], num_draws=1, seed=3).z.numpy()[0]
    q = stats.norm(means, sds).pdf(z)
    error = q.std(1, ddof=1) * math.sqrt((1 - 100 / 300) / 100)
    scoring = ("aggregate_posterior", {"normal": X[means.argsort()]})
    got = np.exp(pv.score(linear, X[:60], scoring, num_draws=1, seed=3).values)
    assert (np.abs(got - q.mean(1)) < 4.5 * error).all() and not np.allclose(got, q.mean(1))


def test_one_draw_has_no_known_error(linear: Any) -> None:
    for scoring in (("likelihood_regret", {"steps": 2}), ("aggregate_posterior", {"normal": X})):
        got = pv.score(linear, NEW[:3], scoring, num_draws=1)
        assert np.isfinite(got.values).all() and np.isnan(got.mcse).all()


def test_input_complexity_adds_what_a_compressor_needs() -> None:
    images = np.concatenate([np.zeros((5, 64)), np.random.RandomState(1).rand(5, 64)]).round()
    vae = pv.build(images, latent=2, hidden=(4,), likelihood="bernoulli")
    gain = pv.score(vae, images, "input_complexity").values - pv.score(vae, images, "iwae").values
    bits = [8 * len(zlib.compress((255 * row).astype(np.uint8).tobytes(), 9)) for row in images]
    np.testing.assert_allclose(gain, np.array(bits) * math.log(2), rtol=1e-9)
    assert gain[5:].min() > gain[:5].max()
    other = pv.score(vae, images[5:], ("input_complexity", {"low": -3.0, "high": 9.0})).values
    assert not np.allclose(other, pv.score(vae, images, "input_complexity").values[5:])
    np.testing.assert_array_equal(  # of its row alone
        pv.score(vae, images[:7], "input_complexity").values, pv.score(vae, images, "input_complexity").values[:7]
    )


def test_input_complexity_is_of_the_datas_own_units() -> None:
    """Columns that a model has centred and scaled are compressed as they were, in 256 levels from `low` to `high`."""
    levels = np.random.RandomState(2).randint(0, 256, (40, 16))
    levels[:20, 4:] = levels[:20, :1]
    x = 3.0 + 5.0 * levels / 255
    vae = pv.build(x, latent=2, hidden=(4,))
    got = pv.score(vae, x, ("input_complexity", {"low": 3.0, "high": 8.0}))
    bits = np.array([8 * len(zlib.compress(row.tobytes(), 9)) for row in levels.astype(np.uint8)])
    log_p = pv.score(vae, x, "iwae")
    np.testing.assert_allclose(got.values - log_p.values, bits * math.log(2), rtol=1e-9)
    np.testing.assert_array_equal(got.mcse, log_p.mcse)


def test_impossible_rows_are_the_least_normal(both: Any) -> None:
    """No log p is finite there: not a number would pass for normal."""
    far = np.full((2, 4), 1e30)
    for scoring in ("waic", "disagreement"):
        assert (pv.score(both, far, scoring).values == -np.inf).all()
    ratio = pv.score(both.members[0], far, ("likelihood_ratio", {"background": both.members[1]}))
    assert (ratio.values == -np.inf).all()


def test_what_they_refuse(linear: Any, both: Any) -> None:
    cases: list[tuple[Any, Any, dict[str, Any], str]] = [
        (linear, "typicality", {}, "got 'typicality' without 'normal'"),
        (linear, ("density_of_states", {"normal": X[:50]}), {}, "normal: got 50 rows, expected more than 50"),
        (linear, ("density_of_states", {"normal": X, "of": "elbo"}), {}, "of: got 'elbo', expected names of scores"),
        (linear, ("density_of_states", {"normal": X, "of": ["nope"]}), {}, "got 'nope'"),
        (
            both.members[0],
            ("typicality", {"normal": 1e30 * X[:3]}),
            {},
            "normal: got rows that the model finds impossible",
        ),
        (linear, ("typicality", {"normal": X, "k": 1}), {}, "options \\['k'\\] with 'typicality'"),
        (linear, "waic", {}, "expected an Ensemble"),
        (linear, "disagreement", {}, "expected an Ensemble"),
        (both, "likelihood_regret", {}, "expected one of its .members"),
        (both, ("aggregate_posterior", {"normal": X}), {}, "expected one of its .members"),
        (linear, "waic", {"per_feature": True}, "with per_feature or draws"),
        (linear, ("elbo", {"k": 1}), {}, "got options with 'elbo'"),
        (linear, ("typicality", [X]), {}, "as the options of 'typicality', expected a dict"),
        (linear, ("input_complexity", {"low": 2.0}), {}, "low, high: got 2.0 and 1.0"),
        (linear, "regret", {}, "expected one of .*'elbo'.*'likelihood_regret'"),
        (pv.PCA(1).fit(X), "likelihood_regret", {}, "point posterior"),
    ]
    for vae, scoring, options, message in cases:
        with pytest.raises(pv.OptionError, match=message):
            pv.score(vae, X[:5], scoring, **options)


@pytest.mark.parametrize("name", BEYOND)
def test_every_score_names_its_source(name: str) -> None:
    assert re.search(r"\(.* \d{4}, eq", BEYOND[name].__doc__ or "", re.DOTALL)
