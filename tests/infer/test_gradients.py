"""Means, variances and signal-to-noise ratios of gradients, against plain arithmetic over kept gradients."""

import math

import numpy as np
import pytest
import torch

import ppl_vae as pv
from ppl_vae.infer.gradients import GROUPS, gradients
from ppl_vae.infer.noise import Keyed, step_keys
from ppl_vae.infer.objectives import objective
from ppl_vae.infer.scope import isolated

RANDOM = np.random.RandomState(0)
X = RANDOM.randn(30, 2) @ RANDOM.randn(2, 4) + 0.5 * RANDOM.randn(30, 4)


@pytest.fixture
def vae():
    return pv.build(X, latent=2, hidden=(4,), scale=0.5, prior="normal").double()


def kept(vae, repeats, seed):
    """Gradients of the mean bound, (repeats, weights), of encoder and decoder."""
    found = []
    for repeat in range(repeats):
        vae.zero_grad(set_to_none=True)
        with isolated(vae), Keyed(step_keys(torch.arange(30), seed, repeat)):
            objective("elbo").make(2).loss_and_grads(vae.model, vae.guide, vae.batch(X).x)
        found.append({name: -p.grad / 30 for name, p in vae.named_parameters()})
    vae.zero_grad(set_to_none=True)
    return {name: torch.stack([one[name] for one in found]) for name in found[0]}


def test_moments_are_those_of_the_gradients(vae):
    every, found = kept(vae, 45, 3), gradients(vae, X, "elbo", particles=2, num_repeats=45, seed=3)
    assert found.num_repeats == 45 and found.mean.keys() == every.keys() == found.error.keys()
    for name, values in every.items():
        assert torch.allclose(found.mean[name], values.mean(0)) and torch.allclose(found.variance[name], values.var(0))
        assert torch.allclose(found.error[name], (values.var(0) / 45).sqrt())
    assert list(found.parts) == ["encoder", "decoder", "prior"] or set(found.parts) == {"encoder", "decoder", "prior"}
    for part, summary in found.parts.items():
        values = torch.cat([v.flatten(1) for name, v in every.items() if name.startswith(part)], 1)

        def figures(values):
            trace = float(values.var(0).sum())
            square = float(values.mean(0).square().sum()) - trace / len(values)
            return math.sqrt(max(square, 0.0)), trace, math.sqrt(max(square, 0.0) / trace)

        group = torch.arange(45) % GROUPS
        without = np.array([figures(values[group != g]) for g in range(GROUPS)])
        errors = np.sqrt((GROUPS - 1) * without.var(0))
        assert (summary.norm, summary.variance, summary.snr) == pytest.approx(figures(values))
        assert (summary.variance_error, summary.snr_error) == pytest.approx(errors[1:])


def test_standard_errors_cover(vae):
    """Two halves of 800 noises differ by their errors: each ratio of 8 lies within 4.5, 5e-5, and not all within 0.2."""
    first, second = (gradients(vae, X, "iwae", particles=3, num_repeats=200, seed=seed) for seed in (0, 1))
    z = []
    for part in first.parts:
        a, b = first.parts[part], second.parts[part]
        z.append((a.variance - b.variance) / math.hypot(a.variance_error, b.variance_error))
        z.append((a.snr - b.snr) / math.hypot(a.snr_error, b.snr_error))
    assert 0.2 < np.abs(z).max() < 4.5


def test_a_repeat_is_a_function_of_the_seed_and_leaves_everything_as_it_was(vae):
    vae.eval()
    for p in vae.parameters():
        p.grad = torch.ones_like(p)
    state, before = torch.get_rng_state(), [p.clone() for p in vae.parameters()]
    first = gradients(vae, X, "wake_sleep", num_repeats=20)
    assert torch.equal(state, torch.get_rng_state()) and not vae.training
    assert all(torch.equal(p, q) and (p.grad == 1).all() for p, q in zip(vae.parameters(), before))
    torch.rand(3)
    again, other = (gradients(vae, X, "wake_sleep", num_repeats=20, seed=seed) for seed in (0, 1))
    assert all(torch.equal(first.mean[name], again.mean[name]) for name in first.mean)
    assert not all(torch.equal(first.mean[name], other.mean[name]) for name in first.mean)


def test_more_draws_drown_iwaes_signal_to_the_encoder_and_help_dreg():
    """Rainforth et al. (2018, theorem 1): for iwae as 1 / sqrt(K); Tucker et al. (2019): for dreg as sqrt(K).

    Ratios from K = 4 to K = 64 of 1/4 and 4, with an allowance for finite K; each has a standard error below 10 %.
    """
    x = np.random.RandomState(1).randn(60, 2) @ RANDOM.randn(2, 4) + 0.5 * RANDOM.randn(60, 4)
    ppca = pv.PPCA(2).fit(x)
    with torch.no_grad():
        ppca.encoder.linear.weight.add_(0.02 * torch.randn(2, 4))
        ppca.encoder.scale.mul_(1.1)
    snr = {
        (name, k): gradients(ppca, x, name, particles=k, num_repeats=300).parts["encoder"]
        for name in ("iwae", "dreg")
        for k in (4, 64)
    }
    falls = snr["iwae", 64].snr / snr["iwae", 4].snr
    rises = snr["dreg", 64].snr / snr["dreg", 4].snr
    assert falls < 0.5 and 2 < rises < 8


def test_parts_without_noise_or_gradient():
    ppca = pv.PPCA(2).fit(X)
    ppca.decoder.requires_grad_(False)
    found = gradients(ppca, X, "sticking_the_landing", num_repeats=20)
    assert list(found.parts) == ["encoder"] and found.parts["encoder"].variance < 1e-20
    still = pv.build(X, latent=2, hidden=(4,), posterior="delta", prior="flat", scale=1.0)
    part = gradients(still, X, num_repeats=20).parts["decoder"]
    assert part.snr > 1e5 and part.variance < 1e-10


def test_objectives_that_do_not_fit_are_refused(vae):
    with pytest.raises(pv.OptionError, match="num_repeats: got 19"):
        gradients(vae, X, num_repeats=19)
    with pytest.raises(pv.OptionError, match="objective: got 'nothing'"):
        gradients(vae, X, "nothing")
    with pytest.raises(pv.DataError, match="x0"):
        gradients(vae, X * np.nan)
