import copy
import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import ppl_vae as pv
from ppl_vae.criticism.scores import SCORES, Scores, log_mean_exp, mean, score

RANDOM = np.random.RandomState(0)
X = (RANDOM.randn(400, 2) @ RANDOM.randn(2, 5) + 0.5 * RANDOM.randn(400, 5) + 1).astype("float32")


@pytest.fixture(scope="module")
def linear():
    """A linear-Gaussian VAE, not at its optimum."""
    vae = pv.build(X, latent=2, hidden=(), scale="shared", standardize="none")
    pv.fit(vae, X, epochs=20, batch_size=100, lr=1e-2, valid=0.0, progress=False)
    return vae


def closed_forms(vae, x):
    """Each score of a linear-Gaussian VAE, from its own weights."""
    with torch.no_grad():
        q, decoded = vae.encoder(torch.tensor(x)), vae.decoder(torch.cat([torch.zeros(1, 2), torch.eye(2)]))
    mu, sd = q.mean.double().numpy(), q.stddev.double().numpy()
    means, noise = decoded.mean.double().numpy(), float(decoded.variance.double().mean())
    w, eye = (means[1:] - means[0]).T, np.eye(x.shape[1])
    log_lik = stats.multivariate_normal(np.zeros(5), noise * eye).logpdf(x - means[0] - mu @ w.T)
    log_lik = log_lik - 0.5 * ((w**2).sum(0) * sd**2).sum(1) / noise
    kl = 0.5 * (mu**2 + sd**2 - np.log(sd**2) - 1).sum(1)
    predicted = [
        stats.multivariate_normal(means[0] + w @ m, (w * s**2) @ w.T + noise * eye).logpdf(r)
        for r, m, s in zip(x, mu, sd)
    ]
    return {
        "reconstruction_probability": np.array(predicted),
        "expected_log_likelihood": log_lik,
        "elbo": log_lik - kl,
        "iwae": stats.multivariate_normal(means[0], w @ w.T + noise * eye).logpdf(x),
    }


def has_moments(vae, x):
    """Whether weights p(z|x) / q(z|x) have four moments, row by row: of normals, if 4 of p's precision exceed 3 of q's."""
    with torch.no_grad():
        q, decoded = vae.encoder(torch.tensor(x)), vae.decoder(torch.cat([torch.zeros(1, 2), torch.eye(2)]))
    w = decoded.mean[1:] - decoded.mean[0]
    precision = torch.eye(2) + w @ w.T / decoded.variance.mean()
    return (torch.linalg.eigvalsh(4 * precision - 3 * torch.diag_embed(q.stddev**-2)) > 0).all(-1).numpy()


@pytest.mark.parametrize("scoring", ["reconstruction_probability", "expected_log_likelihood", "elbo", "iwae"])
def test_scores_are_their_closed_forms_and_the_errors_are_honest(linear, scoring):
    """z-scores of n rows at 2000 draws: their mean square is 1 within 5 deviations of chi^2_n / n (0.35 for 400), and
    the mean within 5 standard errors of 0 but for the bias of log mean exp, below 0.2. Fails by chance at 1e-6. Those of
    "iwae" are by a wider guide, of the rows whose errors have errors."""
    vae, kept = linear, np.full(len(X), True)
    if scoring == "iwae":
        vae = copy.deepcopy(linear)
        with torch.no_grad():
            vae.encoder.net[-1].bias[2:] += 0.6
        kept = has_moments(vae, X)
    exact = closed_forms(vae, X)[scoring]
    got = score(vae, X, scoring, num_draws=2000, seed=1)
    assert got.values.dtype == np.float64 and got.scoring == scoring and got.per_feature is None
    error, z = (got.values - exact)[kept], ((got.values - exact) / got.mcse)[kept]
    assert len(z) > 100
    assert abs(z.mean()) < 5 / len(z) ** 0.5 + (0.2 if scoring in ("reconstruction_probability", "iwae") else 0)
    assert abs((z**2).mean() - 1) < 5 * (2 / len(z)) ** 0.5
    assert np.abs(error).mean() < 0.05


def test_a_nonlinear_bernoulli_vae_against_numerical_integration():
    """k = 1: integrals over z by the trapezoid on 4001 points; 4.5 standard errors for 4 x 30 rows: 8e-4 by chance."""
    x = (RANDOM.rand(300, 6) < RANDOM.rand(300, 1)).astype("float32")
    vae = pv.build(x, latent=1, hidden=(10,), likelihood="bernoulli")
    pv.fit(vae, x, epochs=20, lr=1e-2, progress=False)
    rows, grid = x[:30], torch.linspace(-9, 9, 4001)[:, None]
    with torch.no_grad():
        log_lik = torch.stack([vae.decoder(grid).log_prob(torch.tensor(r)) for r in rows], 1).double()
        log_prior = vae.prior().log_prob(grid)[:, None].double()
        q = vae.encoder(torch.tensor(rows))
        log_q = q.base_dist.log_prob(grid[:, None]).sum(-1).double()

    def integral(values):
        return torch.trapezoid(values, grid[:, 0].double(), dim=0).numpy()

    assert np.allclose(integral(log_q.exp()), 1, atol=1e-4)
    exact = {
        "reconstruction_probability": np.log(integral((log_q + log_lik).exp())),
        "expected_log_likelihood": integral(log_q.exp() * log_lik),
        "elbo": integral(log_q.exp() * (log_lik + log_prior - log_q)),
        "iwae": np.log(integral((log_lik + log_prior).exp())),
    }
    for scoring, value in exact.items():
        got = score(vae, rows, scoring, num_draws=4000)
        assert np.all(np.abs(got.values - value) < 4.5 * got.mcse + 1e-3), scoring


def test_jensen_and_the_order_of_bounds(linear):
    drawn = pv.draws(linear, X, num_draws=200)
    by_name = {name: score(linear, X, name, draws=drawn).values for name in SCORES if name != "reconstruction_error"}
    assert np.all(by_name["expected_log_likelihood"] <= by_name["reconstruction_probability"])
    assert np.all(by_name["elbo"] <= by_name["iwae"])
    fresh = score(linear, X, "elbo", num_draws=200)
    assert np.array_equal(by_name["elbo"], fresh.values)


def test_a_score_is_a_function_of_row_model_and_seed(linear):
    whole = score(linear, X, seed=3)
    order = RANDOM.permutation(400)
    for rows in (order, slice(17, 29), slice(70, 71), slice(100, 307)):
        assert np.allclose(score(linear, X[rows], seed=3).values, whole.values[rows], rtol=1e-6, atol=1e-6)
    assert np.array_equal(score(linear, X, seed=3).values, whole.values)
    mixed = np.concatenate([X[:50], 9 * X])
    assert np.allclose(score(linear, mixed, seed=3).values[:50], whole.values[:50], rtol=1e-6, atol=1e-6)
    assert np.abs(score(linear, X, seed=4).values - whole.values).mean() > 1e-3


def test_rows_noise_is_independent(linear):
    """Over 200 seeds the mean over rows scatters as independence implies: chi^2_199 within 5 deviations, 1e-6."""
    runs = np.array(
        [[s.values.mean(), (s.mcse**2).sum()] for s in (score(linear, X, "elbo", 20, seed) for seed in range(200))]
    )
    implied = runs[:, 1].mean() / 400**2
    assert abs(runs[:, 0].var(ddof=1) / implied - 1) < 5 * math.sqrt(2 / 199)


def test_scores_are_in_the_datas_own_units():
    here, there = (pv.build(unit * X, latent=2, hidden=(8,)) for unit in (1, 1024))
    for scoring in ("reconstruction_probability", "expected_log_likelihood", "elbo", "iwae"):
        shift = score(there, 1024 * X, scoring).values - score(here, X, scoring).values
        assert np.allclose(shift, -5 * math.log(1024), atol=1e-9), scoring
    assert np.array_equal(
        score(there, 1024 * X, "reconstruction_error").values, score(here, X, "reconstruction_error").values
    )


def test_parts_by_feature(linear):
    vae = pv.build(3 * X, latent=2, hidden=(8,))
    expected = score(vae, X, "expected_log_likelihood", per_feature=True)
    assert expected.per_feature.shape == (400, 5)
    assert np.allclose(expected.per_feature.sum(1), expected.values, atol=1e-3)
    one = score(linear, X, num_draws=4000, per_feature=True).per_feature
    with torch.no_grad():
        q, decoded = linear.encoder(torch.tensor(X)), linear.decoder(torch.cat([torch.zeros(1, 2), torch.eye(2)]))
    means, noise = decoded.mean.double().numpy(), float(decoded.variance.double().mean())
    w = (means[1:] - means[0]).T
    spread = np.sqrt((q.variance.double().numpy()[:, None] * w**2).sum(-1) + noise)
    exact = stats.norm(means[0] + q.mean.double().numpy() @ w.T, spread).logpdf(X)
    assert np.abs(one - exact).mean() < 0.02
    error = score(vae, X, "reconstruction_error", per_feature=True)
    assert np.allclose(error.per_feature.sum(1), error.values) and (error.values <= 0).all()


def test_reductions_by_hand():
    values = torch.tensor([[0.0, -1e4], [math.log(3.0), -1e4]]).double()
    value, error = log_mean_exp(values)
    assert torch.allclose(value, torch.tensor([math.log(2.0), -1e4]).double())
    assert float(error[0]) == pytest.approx(math.sqrt(2) / 2 / math.sqrt(2))
    assert float(error[1]) == 0
    assert torch.isneginf(log_mean_exp(torch.full((3, 1), -math.inf))[0]).all()
    assert torch.isnan(mean(values[:1])[1]).all()


def test_threshold_flags_the_share_asked_for():
    scores = Scores(RANDOM.randn(1000), np.zeros(1000), "elbo")
    assert np.mean(scores.values < scores.threshold(0.1)) == 0.1
    for bad in (0, -0.1, 0.6, 1):
        with pytest.raises(pv.OptionError, match="contamination"):
            scores.threshold(bad)


def test_a_threshold_among_impossible_rows_is_finite():
    """Of 1000 rows 50 are at -inf, and 49.45 rows should lie below: between -inf and a number there is no other, so that
    all 50 are flagged."""
    values = np.concatenate([RANDOM.randn(950), np.full(50, -np.inf)])
    threshold = Scores(values, np.zeros(1000), "elbo").threshold(0.0495)
    assert threshold == values[:950].min() and (values < threshold).sum() == 50


def test_bad_options(linear):
    with pytest.raises(pv.OptionError, match="'likelihood', expected one of 'reconstruction_probability'"):
        score(linear, X, "likelihood")
    with pytest.raises(pv.OptionError, match="no parts by feature"):
        score(linear, X, "elbo", per_feature=True)
    with pytest.raises(pv.OptionError, match="need new ones"):
        score(linear, X, "reconstruction_error", draws=pv.draws(linear, X, 2))
    with pytest.raises(pv.OptionError, match="draws: got those of 3 rows"):
        score(linear, X, draws=pv.draws(linear, X[:3], 2))
    with pytest.raises(pv.OptionError, match="expected draws of these rows by this very model"):
        score(linear, X[3:6], draws=pv.draws(linear, X[:3], 2))
    autoencoder = pv.build(X, posterior="delta", prior="flat", scale=1.0)
    with pytest.raises(pv.OptionError, match="'iwae' for an improper prior"):
        score(autoencoder, X, "iwae")
    with pytest.raises(pv.OptionError, match="'elbo' for a point posterior"):
        score(pv.build(X, posterior="delta"), X, "elbo")


def test_an_autoencoder_is_scored_by_its_error():
    autoencoder = pv.build(X, latent=2, posterior="delta", prior="flat", scale=1.0)
    got = score(autoencoder, X, "reconstruction_error")
    x = autoencoder.batch(X).x
    with torch.no_grad():
        rebuilt = autoencoder.decoder(autoencoder.encoder(x).mean).mean
    assert np.allclose(got.values, -((x - rebuilt) ** 2).sum(1).numpy(), rtol=1e-5)
    assert np.array_equal(got.mcse, np.zeros(400))
    density = score(autoencoder, X, "reconstruction_probability").values - autoencoder.schema.log_jacobian
    assert np.allclose(density, 0.5 * got.values - 2.5 * math.log(2 * math.pi), atol=1e-4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.where(np.arange(5) == 3, np.nan, X), "column 'x3': got nan in row 0"),
        (np.where(np.arange(5) == 1, -np.inf, X), "column 'x1': got -inf in row 0"),
        (X[:0], "expected at least one row"),
        (X.astype(str), "column 'x0'"),
        (X[:, :4], "4 columns, expected 5"),
        ("nowhere.parquet", "nowhere.parquet"),
        (None, "None"),
    ],
)
def test_bad_data(linear, data, message):
    with pytest.raises(pv.DataError, match=message):
        score(linear, data)


def test_parts_of_mixed_columns_are_log_densities_and_masses_in_own_units():
    """A decoder that ignores z, so that log p(x|z) = log p(x) is a sum over columns, each known to SciPy."""
    random = np.random.RandomState(0)
    frame = pd.DataFrame(
        {
            "real": 5 + 3 * random.randn(40),
            "wage": np.exp(2 + random.randn(40)),
            "visits": random.poisson(3, 40),
            "job": random.choice(["a", "b", "c"], 40),
            "member": random.rand(40) > 0.3,
        }
    ).mask(random.rand(40, 5) < 0.2)
    likelihoods = {"real": "normal", "visits": "poisson"}
    vae = pv.build(frame, likelihood=likelihoods, nullable=True, scale="feature").double()
    with torch.no_grad():
        vae.decoder.net[-1].weight.zero_()
        vae.decoder.net[-1].bias.normal_()
    normal, log_normal, poisson, categorical, bernoulli = vae.decoder(torch.zeros(1, 8).double()).base_dist.parts
    loc, scale = vae.schema.loc, vae.schema.scale
    own = {
        "real": stats.norm(loc[0] + scale[0] * normal.loc.item(), scale[0] * normal.scale.item()).logpdf,
        "wage": stats.lognorm(log_normal.scale.item(), scale=scale[1] * np.exp(log_normal.loc.item())).logpdf,
        "visits": stats.poisson(poisson.rate.item()).logpmf,
        "job": lambda x: categorical.logits.detach().log_softmax(-1).numpy()[0, 0][["abc".index(v) for v in x]],
        "member": lambda x: stats.bernoulli(bernoulli.probs.item()).logpmf(x.astype(bool)),
    }
    expected = pd.DataFrame(0.0, frame.index, frame.columns)
    for name, log_prob in own.items():
        there = frame[name].notna()
        expected.loc[there, name] = log_prob(frame.loc[there, name].to_numpy())
    for scoring in ("reconstruction_probability", "expected_log_likelihood"):
        got = score(vae, frame, scoring, num_draws=3, per_feature=True)
        assert np.allclose(got.per_feature, expected, atol=1e-9)
        assert np.allclose(got.values, expected.sum(axis=1), atol=1e-9)
