"""Wake-sleep against closed forms on probabilistic PCA, and dreams that leave no trace."""

import numpy as np
import pytest
import torch
from pyro.poutine.messenger import Messenger

import ppl_vae as pv
from ppl_vae.infer.gradients import gradients
from ppl_vae.infer.handlers import surroundings
from ppl_vae.infer.noise import step_keys
from ppl_vae.infer.objectives import objective
from ppl_vae.infer.scope import isolated

RANDOM = np.random.RandomState(0)
X = RANDOM.randn(400, 2) @ RANDOM.randn(2, 4) + 0.5 * RANDOM.randn(400, 4)
KEYS = {"encoder": "encoder.linear.weight", "decoder": "decoder.linear.weight"}


@pytest.fixture
def moved():
    """A linear model whose guide is not exact; every gradient has a closed form."""
    ppca = pv.PPCA(2).fit(X)
    with torch.no_grad():
        ppca.encoder.linear.weight.add_(0.15)
        ppca.encoder.scale.mul_(1.4)
    return ppca


def posterior(ppca, x):
    """Mean (n, k) and covariance (k, k) of p(z|x)."""
    w, noise = ppca.decoder.linear.weight.detach(), ppca.noise_variance
    precision = torch.eye(2).double() + w.T @ w / noise
    covariance = torch.linalg.inv(precision)
    return x @ w @ covariance / noise, covariance


def minus_kl_over_dreams(ppca):
    """-E_p(x)[KL(p(z|x) || q(z|x))] and a constant, as a function of the guide's weights: x ~ N(0, W W' + s^2 I)."""
    w, a, scale = ppca.decoder.linear.weight.detach(), ppca.encoder.linear.weight, ppca.encoder.scale
    spread = w @ w.T + ppca.noise_variance * torch.eye(4).double()
    apart = torch.eye(2).double() - a @ w - (a @ w).T + a @ spread @ a.T  # of z - A x
    return -0.5 * (apart.diagonal() / scale**2).sum()


def test_asleep_the_guide_nears_the_posterior_of_what_the_model_dreams(moved):
    """8 weights, each within 4.5 standard errors of 100 repeats: fails by chance at 2e-4."""
    (expected,) = torch.autograd.grad(minus_kl_over_dreams(moved), moved.encoder.linear.weight)
    found = gradients(moved, X, "wake_sleep", num_repeats=100)
    key = KEYS["encoder"]
    assert torch.all((found.mean[key] - expected).abs() < 4.5 * found.error[key])
    assert found.parts["encoder"].snr > 2


def test_awake_the_model_explains_the_data_by_the_guide(moved):
    """d E_q[log p(x, z)] / dW = E_q[(x - W z) z'] / s^2, its mean over rows; 8 weights as above."""
    x, w, noise = moved.batch(X).x, moved.decoder.linear.weight.detach(), moved.noise_variance
    loc, scale = x @ moved.encoder.linear.weight.detach().T, moved.encoder.scale
    second = loc[:, :, None] * loc[:, None] + torch.diag(scale**2)
    expected = ((x[:, :, None] * loc[:, None]) - w @ second).mean(0) / noise
    found = gradients(moved, X, "wake_sleep", particles=2, num_repeats=100)
    key = KEYS["decoder"]
    assert torch.all((found.mean[key] - expected).abs() < 4.5 * found.error[key])
    assert found.parts["decoder"].snr > 3


def test_reweighted_wake_sleep_tends_to_the_posterior_of_the_data(moved):
    """K = 300: the guide's gradient that of -KL(p(z|x) || q(z|x)), the model's that of log p(x), to 1 %; bias is O(1/K)."""
    with torch.no_grad():
        moved.encoder.linear.weight.sub_(0.1)  # nearer to the posterior, so that the weights are less uneven
    x = moved.batch(X).x
    mean, covariance = posterior(moved, x)
    a, scale = moved.encoder.linear.weight, moved.encoder.scale
    closer = -0.5 * (((mean - x @ a.T) ** 2 + covariance.diagonal()) / scale**2).sum(1).mean()
    w = moved.decoder.linear.weight
    spread = w @ w.T + moved.noise_variance * torch.eye(4).double()
    evidence = torch.distributions.MultivariateNormal(torch.zeros(4).double(), spread).log_prob(x).mean()
    expected = dict(zip(KEYS, torch.autograd.grad(closer + evidence, [a, w])))
    found = gradients(moved, X, "reweighted_wake_sleep", particles=300, num_repeats=20)
    assert expected["decoder"].norm() < 1e-6  # the fit is the maximum
    for part, key in KEYS.items():
        off = (found.mean[key] - expected[part]).norm()
        assert off < 0.01 * expected["encoder"].norm() + 4.5 * found.error[key].norm()


def test_reweighted_wake_sleep_has_iwaes_gradient_for_the_model(moved):
    """8 weights, each within 4.5 standard errors of 200 repeats, twice: 2e-4. That of the guide is another one."""
    with torch.no_grad():
        moved.decoder.linear.weight.mul_(0.8)
    found, plain = (
        gradients(moved, X, name, particles=4, num_repeats=200, seed=seed)
        for seed, name in enumerate(("reweighted_wake_sleep", "iwae"))
    )
    z = {k: (found.mean[k] - plain.mean[k]) / torch.hypot(found.error[k], plain.error[k]) for k in KEYS.values()}
    assert z[KEYS["decoder"]].abs().max() < 4.5 and z[KEYS["encoder"]].abs().max() > 6


class Watching(Messenger):
    """Counts the rows of every sample site that passes."""

    def __init__(self):
        super().__init__()
        self.sites = []

    def _pyro_sample(self, msg):
        self.sites.append(msg["name"])


def test_dreams_are_keyed_and_nobody_outside_sees_them(moved):
    target, batch, numbers = objective("wake_sleep"), moved.batch(X), torch.arange(len(X))
    elbo, watching = target.make(1), Watching()

    def asleep(numbers, step):
        elbo.at(numbers, step_keys(numbers, 0, step))
        with isolated(moved), torch.no_grad():
            return elbo._asleep(moved.model, moved.guide, batch.x[numbers])

    first = asleep(numbers, 0)
    assert torch.equal(first, asleep(numbers, 0)) and not torch.equal(first, asleep(numbers, 1))
    some = torch.tensor([7, 300, 12])
    assert torch.allclose(first[some], asleep(some, 0))  # a row's dream is its own
    keys = step_keys(numbers, 0, 0)
    with isolated(moved), surroundings(target, elbo, numbers, keys), watching:
        elbo.loss_and_grads(moved.model, moved.guide, batch.x)
    moved.zero_grad()
    assert sorted(watching.sites) == ["data", "data", "x", "z", "z"]


def test_without_keys_dreams_come_from_torchs_generator(moved):
    x, elbo = moved.batch(X).x, objective("wake_sleep").make(1)
    with isolated(moved), torch.no_grad():
        losses = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            losses.append(elbo.differentiable_loss(moved.model, moved.guide, x).item())
    assert losses[0] == losses[1] != losses[2]


def test_a_dream_has_the_mask_and_covariates_of_its_row():
    """Hidden cells of a dream are not read, and covariates reach both programs: the guide alone could not know them."""
    import pandas as pd

    table = pd.DataFrame(RANDOM.randn(40, 3), columns=list("abc")).mask(RANDOM.rand(40, 3) < 0.3)
    table["dose"] = RANDOM.randn(40)
    vae = pv.build(table, latent=2, hidden=(4,), covariates=["dose"], nullable=["a", "b", "c"])
    batch, seen = vae.batch(table), []
    args, given = batch.arguments()
    forward = vae.encoder.forward

    def watched(x, mask=None, c=None, **others):
        seen.append((x.clone(), mask, c))
        return forward(x, mask, c, **others)

    vae.encoder.forward = watched
    elbo = objective("wake_sleep").make(1)
    with isolated(vae):
        elbo.loss_and_grads(vae.model, vae.guide, *args, **given)
    (awake, *_), (dreamt, mask, c) = seen
    assert torch.equal(mask, batch.mask) and torch.equal(c, batch.c)
    assert (dreamt[~mask] == 0).all() and not torch.equal(dreamt, awake) and dreamt[mask].std() > 0.3
