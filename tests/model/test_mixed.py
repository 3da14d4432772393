import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from ppl_vae.errors import ProgramError
from ppl_vae.model.masses import DiscretizedLogistic
from ppl_vae.model.mixed import Columnwise, Mixed, averaged, expected


class Outputs(nn.Module):
    """A family of the protocol that takes its numbers apart."""

    outputs = 2

    def forward(self, loc, raw):
        return dist.Normal(loc, raw.exp()).to_event(1)


class Width(nn.Module):
    """A family of the protocol that takes them whole: three levels for each of some columns."""

    def __init__(self, columns):
        super().__init__()
        self.width = 3 * columns

    def forward(self, raw):
        return dist.Categorical(logits=raw.unflatten(-1, (-1, 3))).to_event(1)


def columnwise(*lead):
    """Columns 0 and 3 normal, 1 Poisson, 2 and 4 categorical, with their own parameters at every place."""
    parts = [
        dist.Normal(torch.randn(*lead, 2), torch.rand(*lead, 2) + 0.5),
        dist.Categorical(logits=torch.randn(*lead, 2, 3)),
        dist.Poisson(torch.rand(*lead, 1) + 0.5),
    ]
    return Columnwise(parts, torch.tensor([0, 3, 2, 4, 1]))


def by_hand(mixed, x):
    normal, categorical, poisson = mixed.parts
    columns = {0: (normal, 0), 3: (normal, 1), 2: (categorical, 0), 4: (categorical, 1), 1: (poisson, 0)}
    every = [
        part.log_prob(x[..., [j, j]] if part is not poisson else x[..., [j]])[..., k]
        for j, (part, k) in sorted(columns.items())
    ]
    return torch.stack(every, -1)


X = torch.tensor([0.3, 2.0, 1.0, -0.4, 2.0])


@pytest.mark.parametrize("lead", [(), (4,), (3, 4)])
def test_log_prob_is_each_columns_own(lead):
    mixed = columnwise(*lead)
    x = X.expand(*lead, 5)
    assert mixed.batch_shape == (*lead, 5) and mixed.event_shape == ()
    assert torch.allclose(mixed.log_prob(x), by_hand(mixed, x))
    assert torch.allclose(mixed.to_event(1).log_prob(x), by_hand(mixed, x).sum(-1))


def test_samples_lie_in_their_own_columns_and_follow_their_parts():
    """Means of 20,000 draws within 5 standard errors: fails by chance at 3e-6."""
    mixed = columnwise()
    x = mixed.sample((20_000,))
    assert x.shape == (20_000, 5) and mixed.support.check(x).all()
    normal, categorical, poisson = mixed.parts
    means = mixed.join([normal.mean, categorical.probs @ torch.arange(3.0), poisson.mean])
    assert ((x.mean(0) - means).abs() < 5 * x.std(0) / 20_000**0.5).all()
    assert not mixed.has_rsample
    reparameterized = Columnwise([dist.Normal(torch.zeros(1, requires_grad=True), 1.0)] * 2, torch.tensor([1, 0]))
    assert reparameterized.has_rsample and reparameterized.rsample((3,)).requires_grad


def test_split_and_join_are_inverse():
    mixed = columnwise(4)
    x = torch.randn(2, 4, 5)
    assert [part.shape[-1] for part in mixed.split(x)] == [2, 2, 1]
    assert torch.equal(mixed.split(x)[0], x[..., [0, 3]])
    assert torch.equal(mixed.join(mixed.split(x)), x)


def test_support_is_each_columns_own():
    mixed = columnwise(2)
    x = torch.tensor([[0.3, 2.0, 1.0, -0.4, 2.0], [torch.nan, 0.5, 3.0, 1e9, -1.0]])
    assert mixed.support.check(x).tolist() == [[True] * 5, [False, False, False, True, False]]
    assert mixed.to_event(1).support.check(x).tolist() == [True, False]
    assert not mixed.support.is_discrete
    assert Columnwise([dist.Poisson(torch.ones(1))], torch.tensor([0])).support.is_discrete
    assert torch.distributions.constraints.is_dependent(Columnwise.support)


def test_expected_is_mean_or_most_probable_code():
    mixed = columnwise(6)
    got = expected(mixed.mask(torch.ones(6, 5, dtype=torch.bool)).to_event(1))
    normal, categorical, poisson = mixed.parts
    assert torch.equal(got[:, [0, 3]], normal.mean) and torch.equal(got[:, 1:2], poisson.mean)
    assert torch.equal(got[:, [2, 4]], categorical.probs.argmax(-1).float())
    ordered = dist.OrderedLogistic(torch.tensor([-9.0, 0.0, 9.0]), torch.tensor([-1.0, 1.0]))
    assert expected(ordered).tolist() == [0.0, 1.0, 2.0]
    assert expected(dist.VonMises(torch.tensor([2.0]), torch.tensor([1.0])).to_event(1)).tolist() == [2.0]


def test_it_can_be_masked_expanded_and_observed_in_plates():
    mixed = columnwise(4)
    mask = torch.rand(4, 5) > 0.5
    x = X.expand(4, 5)
    masked = mixed.mask(mask).to_event(1)
    oracle = (by_hand(mixed, x) * mask).sum(-1)
    assert torch.allclose(masked.log_prob(x), oracle)
    assert torch.allclose(masked.expand_by((3,)).log_prob(x), oracle.expand(3, 4))
    assert masked.expand_by((3,)).sample().shape == (3, 4, 5)
    assert columnwise().to_event(1).expand((7,)).sample().shape == (7, 5)

    def model(obs):
        with pyro.plate("draws", 3, dim=-2), pyro.plate("data", 4, dim=-1):
            pyro.sample("x", masked, obs=obs)
            pyro.sample("y", masked)

    trace = poutine.trace(model).get_trace(x)
    trace.compute_log_prob()
    assert torch.allclose(trace.nodes["x"]["log_prob"], oracle.expand(3, 4))
    assert trace.nodes["y"]["value"].shape == (3, 4, 5)


def test_parts_of_other_leading_dimensions_are_broadcast():
    parts = [dist.Normal(torch.zeros(3, 4, 1), 1.0), dist.Poisson(torch.ones(2))]
    mixed = Columnwise(parts, torch.tensor([1, 0, 2]))
    assert mixed.batch_shape == (3, 4, 3) and mixed.log_prob(torch.ones(3, 4, 3)).shape == (3, 4, 3)


def test_families_of_both_protocols_get_their_own_numbers():
    """The first family's numbers come first; gradients reach each part from its own columns only."""
    family = Mixed([([0, 2], Outputs()), ([1], Width(1))])
    assert family.width == 7
    raw = torch.randn(5, 7, requires_grad=True)
    x = torch.tensor([0.5, 2.0, -0.5]).expand(5, 3)
    mixed = family(raw)
    normal = dist.Normal(raw[:, :2], raw[:, 2:4].exp()).log_prob(x[:, [0, 2]])
    categorical = dist.Categorical(logits=raw[:, 4:]).log_prob(x[:, 1])
    assert torch.allclose(mixed.log_prob(x), normal.sum(-1) + categorical)
    (gradient,) = torch.autograd.grad(mixed.base_dist.log_prob(x)[:, 1].sum(), raw)
    assert (gradient[:, :4] == 0).all() and (gradient[:, 4:] != 0).all()
    assert family.double()(raw.double()).sample().shape == (5, 3)


def test_a_joint_part_is_refused():
    class Joint(nn.Module):
        outputs = 1

        def forward(self, loc):
            return dist.MultivariateNormal(loc, torch.eye(2))

    with pytest.raises(ProgramError, match="got MultivariateNormal of event shape"):
        Mixed([([0, 2], Joint()), ([1], Width(1))])(torch.zeros(5))


def test_pixels_count_as_discrete():
    assert DiscretizedLogistic(torch.zeros(1), torch.ones(1)).support.is_discrete


def test_the_average_over_draws_is_that_of_the_mixture():
    """Means; of codes the most probable one under the mean of the probabilities; of angles the mean direction."""
    mixed = columnwise(6, 5)
    normal, categorical, poisson = mixed.parts
    found = averaged(mixed.mask(True).to_event(1))
    assert torch.allclose(found[:, [0, 3]], normal.loc.mean(0)) and torch.allclose(found[:, [1]], poisson.rate.mean(0))
    assert torch.equal(found[:, [2, 4]], categorical.probs.mean(0).argmax(-1).float())
    loc, concentration = torch.tensor([[2.0], [-3.0], [0.1]]), torch.tensor([[2.0], [2.0], [0.01]])
    angle = averaged(dist.VonMises(loc, concentration).to_event(1))
    draws = dist.VonMises(loc, concentration).sample((20000,))
    assert angle > 2.0  # not near -0.3, the mean of the three numbers
    assert abs(angle - torch.atan2(draws.sin().mean(), draws.cos().mean())) < 0.05  # its standard error is 0.006
