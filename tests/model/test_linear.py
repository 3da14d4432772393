import numpy as np
import pytest
import sklearn.decomposition
import torch
from scipy import stats

import ppl_vae as pv
from ppl_vae.criticism.predictive import encode, reconstruct
from ppl_vae.criticism.scores import score

N, D, Q = 300, 6, 2


@pytest.fixture
def x():
    random = np.random.RandomState(0)
    return random.randn(N, Q) @ random.randn(Q, D) * 2 + 0.5 * random.randn(N, D) + random.randn(D)


def test_ppca_is_tipping_and_bishops_maximum_likelihood(x):
    values = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    noise = values[Q:].mean()
    log_likelihood = -0.5 * (D * np.log(2 * np.pi) + np.log(values[:Q]).sum() + (D - Q) * np.log(noise) + D)
    ppca = pv.PPCA(Q).fit(x)
    assert ppca.noise_variance == pytest.approx(noise)
    assert ppca.log_prob(x).mean() == pytest.approx(log_likelihood, abs=1e-9)


def test_ppca_log_prob_per_row_is_scipys_and_scikit_learns(x):
    ppca = pv.PPCA(Q).fit(x)
    w = ppca.loadings.numpy()
    marginal = stats.multivariate_normal(x.mean(0), w @ w.T + ppca.noise_variance * np.eye(D))
    assert np.allclose(ppca.log_prob(x), marginal.logpdf(x), atol=1e-9)
    theirs = sklearn.decomposition.PCA(Q).fit(x)  # divides by n - 1
    theirs.explained_variance_ *= (N - 1) / N
    theirs.noise_variance_ *= (N - 1) / N
    assert np.allclose(ppca.log_prob(x), theirs.score_samples(x), atol=1e-9)


def test_ppca_posterior_is_bayes_rule(x):
    ppca = pv.PPCA(Q).fit(x)
    w, posterior = ppca.loadings.numpy(), ppca.posterior(x)
    m = w.T @ w + ppca.noise_variance * np.eye(Q)  # Tipping & Bishop 1999, eq. 6
    assert np.allclose(posterior.mean, (x - x.mean(0)) @ w @ np.linalg.inv(m).T, atol=1e-9)
    covariance = ppca.noise_variance * np.linalg.inv(m)
    assert np.allclose(posterior.variance[0], np.diag(covariance), atol=1e-9)
    assert np.allclose(covariance, np.diag(np.diag(covariance)), atol=1e-9)


def test_ppca_samples_have_its_moments(x):
    """Means and variances of 20,000 draws within 5 standard errors: fails by chance at 12 * 6e-7."""
    ppca = pv.PPCA(Q).fit(x)
    drawn = ppca.sample(20000, seed=3)
    variance = np.diag(ppca.loadings.numpy() @ ppca.loadings.numpy().T) + ppca.noise_variance
    assert np.all(np.abs(drawn.mean(0) - x.mean(0)) < 5 * np.sqrt(variance / 20000))
    assert np.all(np.abs(drawn.var(0) - variance) < 5 * variance * np.sqrt(2 / 20000))
    assert np.array_equal(drawn, ppca.sample(20000, seed=3))


def test_generate_agrees_with_sample_in_distribution(x):
    ppca = pv.PPCA(Q).fit(x)
    a, b = ppca.sample(4000, seed=0), pv.generate(ppca, 4000, seed=1).x
    assert min(stats.ks_2samp(a[:, j], b[:, j]).pvalue for j in range(D)) > 1e-4 / D


@pytest.mark.parametrize("q", [1, 3, D])
def test_pca_is_scikit_learns(x, q):
    pca, theirs = pv.PCA(q).fit(x), sklearn.decomposition.PCA(q).fit(x)
    assert np.allclose(np.abs(pca.components.numpy()), np.abs(theirs.components_), atol=1e-9)
    assert np.allclose(np.abs(encode(pca, x)), np.abs(theirs.transform(x)), atol=1e-9)
    rebuilt = theirs.inverse_transform(theirs.transform(x))
    assert np.allclose(reconstruct(pca, x), rebuilt, atol=1e-9)
    error = score(pca, x, "reconstruction_error")
    assert np.allclose(error.values, -((x - rebuilt) ** 2).sum(1), atol=1e-9)
    assert np.array_equal(error.mcse, np.zeros(N))


def test_pca_of_more_columns_than_rows(x):
    wide = x[:4]
    assert pv.PCA(3).fit(wide).components.shape == (3, D)
    with pytest.raises(pv.OptionError, match=r"got 5, expected at most min\(n - 1, d\) = 3"):
        pv.PCA(5).fit(wide)


def test_a_linear_autoencoder_trained_by_sgd_spans_pcas_subspace(x):
    """Baldi & Hornik 1989: the global minimum of squared error is the principal subspace."""
    vae = pv.build(x, latent=Q, hidden=(), posterior="delta", prior="flat", scale=1.0, standardize="center")
    for lr in (3e-2, 3e-3, 3e-4):
        pv.fit(vae, x, epochs=150, batch_size=100, optimizer="sgd", lr=lr, valid=0.0, progress=False)
    ours = torch.linalg.qr(vae.decoder.net[0].weight.detach().double())[0]
    cosines = torch.linalg.svdvals(ours.T @ pv.PCA(Q).fit(x).components.T)
    assert float(torch.arccos(cosines.clamp(max=1)).max()) < 1e-2


@pytest.mark.parametrize("scale", [3.595, 1.0, 0.1])
def test_ppca_with_equal_eigenvalues(scale):
    """Plus and minus the unit vectors: all directions alike, W = 0, and log p that of a spherical normal."""
    x = np.concatenate([np.eye(4), -np.eye(4)]) * scale
    ppca = pv.PPCA(1).fit(x)
    spherical = stats.multivariate_normal(np.zeros(4), scale**2 / 4 * np.eye(4))
    assert np.allclose(ppca.log_prob(x), spherical.logpdf(x), atol=1e-9)


def test_ppca_in_units_as_different_as_raw_tables_have():
    x = np.random.RandomState(0).randn(200, 4) * [1e7, 1, 1, 1] + [1e8, 0, 0, 5]
    ppca = pv.PPCA(1).fit(x)
    w = ppca.loadings.numpy()
    expected = -0.5 * (
        4 * np.log(2 * np.pi) + np.log((w**2).sum() + ppca.noise_variance) + 3 * np.log(ppca.noise_variance)
    )
    assert 0.5 < ppca.noise_variance < 1.5
    assert ppca.log_prob(x).mean() == pytest.approx(
        expected - 2, abs=1e-4
    )  # at the maximum the quadratic form averages d


def test_fitting_leaves_the_generator_alone(x):
    state = torch.get_rng_state()
    pv.PCA(2).fit(x), pv.PPCA(2).fit(x).sample(3)
    assert torch.equal(state, torch.get_rng_state())


def test_bad_input(x):
    with pytest.raises(pv.OptionError, match="expected fewer than the 6 columns"):
        pv.PPCA(6).fit(x)
    with pytest.raises(pv.DataError, match="noise variance 0"):
        pv.PPCA(3).fit(np.outer(np.arange(10.0), np.ones(5)))
    with pytest.raises(pv.OptionError, match="latent: got 0"):
        pv.PCA(0)
    with pytest.raises(pv.OptionError, match=r"expected \.fit\(data\) first"):
        pv.PPCA(2).encoder(torch.zeros(1, 6))
    with pytest.raises(pv.DataError, match="5 columns, expected 6"):
        pv.PPCA(2).fit(x).log_prob(x[:, :5])
