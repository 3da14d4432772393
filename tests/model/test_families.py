import math

import pytest
import torch
from scipy import integrate, stats

from ppl_vae.errors import OptionError
from ppl_vae.model.families import (
    LIKELIHOODS,
    LOG_VARIANCE_BOUND,
    SCALE_FLOOR,
    SCALE_LINKS,
    UNIT,
    Conditional,
    Normal,
)


def test_normal_is_the_normal_of_scipy():
    loc, raw, x = torch.randn(3, 4), torch.randn(3, 4), torch.randn(3, 4)
    family = Normal(4)
    scale = torch.nn.functional.softplus(raw) + SCALE_FLOOR
    expected = stats.norm.logpdf(x, loc, scale).sum(-1)
    assert torch.allclose(family(loc, raw).log_prob(x), torch.as_tensor(expected).float(), atol=1e-4)


def test_log_variance_link_is_kingma_and_wellings_c2_and_is_clamped():
    raw = torch.tensor([-1e9, -2.0, 0.0, 3.0, 1e9])
    expected = torch.exp(0.5 * torch.tensor([2 * math.log(SCALE_FLOOR), -2.0, 0.0, 3.0, LOG_VARIANCE_BOUND]))
    assert torch.allclose(SCALE_LINKS["log_variance"](raw), expected)


@pytest.mark.parametrize("link", SCALE_LINKS)
def test_links_have_their_floor(link):
    assert float(SCALE_LINKS[link](torch.tensor(-1e9))) == pytest.approx(SCALE_FLOOR)
    assert float(Normal(1, "row", link, floor=0.2)(torch.zeros(1), torch.tensor([-1e9])).stddev) == pytest.approx(0.2)
    with pytest.raises(OptionError, match="scale_floor: got 0"):
        Normal(1, floor=0)


@pytest.mark.parametrize("link", SCALE_LINKS)
def test_learned_scales_start_at_one(link):
    for scale in ("feature", "shared"):
        assert torch.allclose(Normal(3, scale, link)(torch.zeros(2, 3)).stddev, torch.ones(2, 3), atol=2e-3)
    assert float(SCALE_LINKS[link](torch.tensor(UNIT[link]))) == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize(
    ("scale", "parameters", "outputs"), [("row", 0, 2), ("feature", 3, 1), ("shared", 1, 1), (0.5, 0, 1)]
)
def test_scales_have_the_parameters_that_their_names_say(scale, parameters, outputs):
    family = Normal(3, scale)
    assert sum(p.numel() for p in family.parameters()) == parameters
    assert family.outputs == outputs
    if scale == 0.5:
        assert torch.equal(family(torch.zeros(2, 3)).stddev, torch.full((2, 3), 0.5))


@pytest.mark.parametrize("scale", ["rows", 0, -1.0, math.inf, None, True])
def test_bad_scales_are_refused(scale):
    with pytest.raises(OptionError, match="scale"):
        Normal(3, scale)


@pytest.mark.parametrize("logit", [-5.0, -0.3, 0.0, 1e-3, 2.0, 8.0])
def test_continuous_bernoulli_integrates_to_one(logit):
    family = LIKELIHOODS["continuous_bernoulli"](1, "row", "softplus", 1e-3)

    def density(x):
        return math.exp(float(family(torch.tensor([logit]).double()).log_prob(torch.tensor([x]).double())))

    assert integrate.quad(density, 0, 1)[0] == pytest.approx(1.0, abs=1e-4)


def test_continuous_bernoulli_is_loaiza_ganem_and_cunninghams():
    p, x = 0.3, 0.8
    constant = 2 * math.atanh(1 - 2 * p) / (1 - 2 * p)
    family = LIKELIHOODS["continuous_bernoulli"](1, "row", "softplus", 1e-3)
    got = family(torch.logit(torch.tensor([p]))).log_prob(torch.tensor([x]))
    assert float(got) == pytest.approx(math.log(constant * p**x * (1 - p) ** (1 - x)), abs=1e-5)


def test_bernoulli_is_stable_and_sums_to_one():
    family = LIKELIHOODS["bernoulli"](1, "row", "softplus", 1e-3)
    for logit in (-200.0, -1.0, 0.0, 200.0):
        both = [float(family(torch.tensor([logit])).log_prob(torch.tensor([x]))) for x in (0.0, 1.0)]
        assert math.exp(both[0]) + math.exp(both[1]) == pytest.approx(1.0)
        assert all(math.isfinite(value) for value in both)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_likelihood_declares_its_event_and_reaches_its_net(name):
    family = LIKELIHOODS[name](3, "row", "softplus", 1e-3)
    net = torch.nn.Linear(2, 3 * family.outputs)
    distribution = Conditional(net, family)(torch.randn(5, 4, 2))
    assert distribution.batch_shape == (5, 4)
    assert distribution.event_shape == (3,)
    distribution.log_prob(torch.ones(5, 4, 3)).sum().backward()
    assert net.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_samples_follow_the_density(name):
    """Kolmogorov-Smirnov or frequency against the density's own integral, n = 20,000; fails by chance at 1e-4."""
    torch.manual_seed(1)
    distribution = LIKELIHOODS[name](1, 0.7, "softplus", 1e-3)(torch.tensor([0.4]))
    x = distribution.sample((20000,))[:, 0]
    if name == "bernoulli":
        k = int(x.sum())
        assert stats.binomtest(k, 20000, 1 / (1 + math.exp(-0.4))).pvalue > 1e-4
    else:
        assert stats.kstest(x.numpy(), lambda v: distribution.base_dist.cdf(torch.as_tensor(v)).numpy()).pvalue > 1e-4
