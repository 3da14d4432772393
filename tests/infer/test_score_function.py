"""Gradients through the score of q against sums over all codes, and over all sets of K codes."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn.functional import log_softmax, logsigmoid

import ppl_vae as pv
from ppl_vae.infer.gradients import gradients
from ppl_vae.infer.objectives import objective

RANDOM = np.random.RandomState(0)
X = RANDOM.randint(2, size=(12, 2)) @ RANDOM.randn(2, 4) + 0.3 * RANDOM.randn(12, 4)
ROWS = np.repeat(X, 20, axis=0)  # the mean over rows is the same, and a batch has 20 noises
NOISE, K = 0.5, 3
CODES = {
    "bernoulli": torch.tensor(list(itertools.product((0.0, 1.0), repeat=2))).double(),
    "categorical": torch.eye(4).double(),
}


def program(name):
    """A small model in float64, its prior not uniform."""
    latent = CODES[name].shape[1]
    vae = pv.build(X, latent=latent, hidden=(4,), prior=name, posterior=name, scale=NOISE).double()
    with torch.no_grad():
        vae.prior.logits.copy_(torch.linspace(-1, 0.5, latent))
    return vae


def log_mass(name, logits, codes):
    if name == "categorical":
        return (codes * log_softmax(logits, -1)).sum(-1)
    return (codes * logsigmoid(logits) + (1 - codes) * logsigmoid(-logits)).sum(-1)


def tables(vae, name):
    """log p(x, z) and log q(z|x) of every code, (codes, n) each."""
    x, codes = vae.batch(X).x, CODES[name][:, None]
    log_lik = torch.distributions.Normal(vae.decoder.net(codes), NOISE).log_prob(x).sum(-1)
    return log_lik + log_mass(name, vae.prior.logits, codes), log_mass(name, vae.encoder.net(x), codes)


def sets(vae, name):
    """Log weights of all sets of K codes, (sets, K, n), and their probabilities (sets, n)."""
    log_p, log_q = tables(vae, name)
    which = torch.tensor(list(itertools.product(range(len(log_p)), repeat=K)))
    return log_p[which], log_q[which], log_q[which].sum(1).exp()


def exact_iwae(vae, name):
    log_p, log_q, p = sets(vae, name)
    return (p * (log_p - log_q).exp().mean(1).log()).sum(0).mean()


def exact_elbo(vae, name):
    log_p, log_q = tables(vae, name)
    return (log_q.exp() * (log_p - log_q)).sum(0).mean()


def exact_reweighted(vae, name):
    """Not a gradient of one function: the mean over sets of the update, their probabilities and shares as numbers."""
    log_p, log_q, p = sets(vae, name)
    share = (log_p - log_q).softmax(1)
    return ((p[:, None] * share).detach() * (log_p + log_q)).sum((0, 1)).mean()


EXACT = {
    "vimco": exact_iwae,
    "reweighted_wake_sleep": exact_reweighted,
    ("score_function", "none"): exact_elbo,
    ("score_function", "leave_one_out"): exact_elbo,
    ("score_function", "decaying"): exact_elbo,
    "trace_graph": exact_elbo,
}


def choice(key):
    return key if isinstance(key, str) else (key[0], {"baseline": key[1]})


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("key", EXACT, ids=str)
def test_mean_gradients_are_the_sum_over_all_codes(name, key):
    """About 50 weights, each within 5 standard errors of 80 repeats: fails by chance at 2e-4."""
    vae = program(name)
    EXACT[key](vae, name).backward()
    expected = {n: p.grad for n, p in vae.named_parameters()}
    vae.zero_grad(set_to_none=True)
    found = gradients(vae, ROWS, choice(key), particles=K, num_repeats=80)
    for n, gradient in expected.items():
        assert torch.all((found.mean[n] - gradient).abs() < 5 * found.error[n] + 1e-10), n
    for part in found.parts.values():
        assert part.snr > 0.25  # more than two errors of the mean: the test can tell


@pytest.mark.parametrize("name", CODES)
def test_baselines_take_variance_off(name):
    vae = program(name)
    for p in vae.encoder.parameters():
        p.data += 0.3 * torch.randn_like(p)
    variance = {
        baseline: gradients(vae, ROWS, choice(("score_function", baseline)), particles=K, num_repeats=60)
        .parts["encoder"]
        .variance
        for baseline in ("none", "decaying", "leave_one_out")
    }
    assert variance["leave_one_out"] < 0.5 * variance["none"] and variance["decaying"] < 0.9 * variance["none"]


def test_vimco_has_less_noise_than_no_baseline_on_the_same_bound():
    """Its baseline, taken off by hand, leaves the mean where it is and the variance above."""
    from ppl_vae.infer.bounds import iwae
    from ppl_vae.infer.elbo import detached
    from ppl_vae.infer.importance import ByWeights
    from ppl_vae.infer.pathwise import shares

    def without(weights):
        value = iwae(weights.log_weight)
        return value, (value.detach() * weights.score + shares(weights) * weights.log_weight).sum(0)

    vae = program("bernoulli")
    bare = objective("vimco")._replace(make=lambda particles: ByWeights(without, particles, detached))
    found, plain = (gradients(vae, ROWS, target, particles=K, num_repeats=60) for target in ("vimco", bare))
    assert found.parts["encoder"].variance < 0.3 * plain.parts["encoder"].variance


def test_a_decaying_baseline_is_the_mean_of_the_steps_before():
    from ppl_vae.infer.score_function import DECAY, Decaying

    class Fixed:
        score = torch.tensor([[2.0, 3.0]])
        log_p = torch.zeros(1, 2)

        def __init__(self, *values):
            self.log_weight = torch.tensor([values])

    estimate = Decaying()
    assert estimate(Fixed(1.0, 3.0))[1].tolist() == [2.0, 9.0]  # no step before
    assert torch.allclose(estimate(Fixed(5.0, 9.0))[1], torch.tensor([6.0, 21.0]))  # their mean, 2
    with torch.no_grad():
        estimate(Fixed(100.0, 100.0))  # an evaluation is no step
    mean = (DECAY * 2 + 7) / (DECAY + 1)
    assert torch.allclose(estimate(Fixed(0.0, 1.0))[1], torch.tensor([-2 * mean, 3 - 3 * mean]))


@pytest.mark.parametrize("key", ["vimco", "reweighted_wake_sleep", ("score_function", "leave_one_out")], ids=str)
def test_one_particle_has_no_others_to_be_judged_by(key):
    with pytest.raises(pv.OptionError, match=r"particles: got 1 with .*, expected at least 2"):
        pv.fit(program("bernoulli"), X, objective=choice(key), progress=False)


@pytest.mark.parametrize("name", ["vimco", "reweighted_wake_sleep", "wake_sleep", ("score_function", "leave_one_out")])
def test_a_point_mass_has_no_score(name):
    point = pv.build(X, latent=2, posterior="delta", prior="flat", scale=1.0)
    with pytest.raises(pv.ProgramError, match="site 'z': got a point mass"):
        pv.fit(point, X, objective=name if isinstance(name, str) else choice(name), particles=2, progress=False)
