import numpy as np
import torch
from torch import nn

import ppl_vae as pv

X = np.random.RandomState(0).randn(100, 4).astype("float32")


def test_its_bound_is_the_squared_error_and_a_constant():
    autoencoder = pv.Autoencoder(nn.Linear(4, 2), nn.Linear(2, 4))
    drawn = pv.draws(autoencoder, X, num_draws=2)
    with torch.no_grad():
        rebuilt = autoencoder.decoder.net(autoencoder.encoder.net(torch.as_tensor(X)))
    error = ((torch.as_tensor(X) - rebuilt) ** 2).sum(1)
    assert torch.allclose(drawn.log_weight[0].float(), -0.5 * error - 2 * np.log(2 * np.pi), atol=1e-4)
    assert torch.equal(drawn.z[0], drawn.z[1])


def test_fit_lowers_the_error_of_mlp_and_convolutions():
    images = np.random.RandomState(0).rand(80, 1, 2) * np.random.RandomState(1).rand(1, 6, 2)
    for nets in ("mlp", "cnn"):
        autoencoder = pv.build(images, latent=2, hidden=(16,), nets=nets, posterior="delta", prior="flat", scale=1.0)
        before = pv.score(autoencoder, images, "reconstruction_error").values.mean()
        pv.fit(autoencoder, images, epochs=60, lr=1e-2, valid=0.0, progress=False)
        assert pv.score(autoencoder, images, "reconstruction_error").values.mean() > 0.5 * before


def test_the_objective_makes_no_difference():
    """With a point mass there is nothing to integrate: closed and Monte Carlo KL are both zero."""
    first, second = (pv.build(X, latent=2, hidden=(8,), posterior="delta", prior="flat", scale=1.0) for _ in range(2))
    pv.fit(first, X, objective="elbo", epochs=3, progress=False)
    pv.fit(second, X, objective="analytic_kl", epochs=3, progress=False)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(first.parameters(), second.parameters()))
