import itertools

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from ppl_vae.errors import ProgramError
from ppl_vae.model.discrete import MOST_BITS, BitVector, relaxed


def test_enumerates_every_vector_once_and_they_sum_to_one():
    bits = BitVector(torch.randn(2, 5, 3))
    support = bits.enumerate_support()
    assert support.shape == (8, 2, 5, 3) and bits.enumerate_support(expand=False).shape == (8, 1, 1, 3)
    assert [tuple(v) for v in support[:, 0, 0].int().tolist()] == list(itertools.product((0, 1), repeat=3))
    assert torch.allclose(bits.log_prob(support).exp().sum(0), torch.ones(2, 5))
    assert torch.allclose((bits.log_prob(support).exp()[..., None] * support).sum(0), bits.mean, atol=1e-6)


def test_log_prob_is_the_sum_of_bernoullis():
    logits, x = torch.randn(4, 3), torch.randint(2, (6, 4, 3)).float()
    p = torch.sigmoid(logits)
    expected = (x * p.log() + (1 - x) * (1 - p).log()).sum(-1)
    assert torch.allclose(BitVector(logits).log_prob(x), expected, atol=1e-5)


def test_kl_is_the_sum_over_the_support():
    p, q = BitVector(torch.randn(3).double()), BitVector(torch.randn(3).double())
    x = p.enumerate_support()
    expected = (p.log_prob(x).exp() * (p.log_prob(x) - q.log_prob(x))).sum()
    assert torch.allclose(kl_divergence(p, q), expected)


def test_samples_have_their_frequencies():
    """Five standard errors over 8 cells: fails by chance at 5e-6."""
    bits = BitVector(torch.tensor([-1.0, 0.0, 2.0]))
    n = 20000
    codes = (bits.sample((n,)) * torch.tensor([4, 2, 1])).sum(-1).long()
    expected = bits.log_prob(bits.enumerate_support()).exp()
    frequency = torch.bincount(codes, minlength=8) / n
    assert ((frequency - expected).abs() < 5 * (expected * (1 - expected) / n).sqrt()).all()


def test_shapes_types_and_support():
    bits = BitVector(torch.zeros(5, 3).double()).expand((2, 5))
    assert isinstance(bits, BitVector) and bits.batch_shape == (2, 5) and bits.event_shape == (3,)
    assert bits.sample((4,)).shape == (4, 2, 5, 3) and bits.sample().dtype == torch.float64
    assert bits.mean.shape == (2, 5, 3) and not bits.has_rsample and bits.has_enumerate_support
    with pytest.raises(ValueError, match="support"):
        bits.log_prob(torch.full((2, 5, 3), 0.5).double())


def test_too_many_bits_are_refused():
    with pytest.raises(ProgramError, match=f"got {MOST_BITS + 1} bits"):
        BitVector(torch.zeros(MOST_BITS + 1)).enumerate_support()


@pytest.mark.parametrize("make", [BitVector, lambda logits: dist.OneHotCategorical(logits=logits)])
def test_relaxed_draws_have_gradients_and_tend_to_the_discrete(make):
    """Frequencies of the rounded draws within five standard errors: 2e-6."""
    n = 20000
    logits = torch.tensor([-1.0, 0.0, 0.5]).expand(n, 3).clone().requires_grad_()
    soft = relaxed(make(logits), torch.tensor(0.1))
    assert soft.batch_shape == (n,) and soft.event_shape == (3,)
    z = soft.rsample()
    z.square().sum().backward()
    assert logits.grad.abs().sum() > 0 and soft.log_prob(z).shape == (n,)
    hard = z.detach().round() if make is BitVector else torch.nn.functional.one_hot(z.argmax(-1), 3).float()
    p = make(logits[0]).mean.detach()
    assert ((hard.mean(0) - p).abs() < 5 * (p * (1 - p) / n).sqrt()).all()


def test_a_family_without_a_relaxation_is_refused():
    with pytest.raises(ProgramError, match="Normal"):
        relaxed(dist.Normal(0.0, 1.0), torch.tensor(0.5))
