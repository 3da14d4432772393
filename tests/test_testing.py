"""The contract checks pass every part of this library's and some of a user's, and say what is wrong with faulty ones."""

import random

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import constraints

import ppl_vae as pv
from ppl_vae.errors import OptionError
from ppl_vae.infer.noise import draw
from ppl_vae.model.families import LIKELIHOODS
from ppl_vae.model.posteriors import POSTERIORS
from ppl_vae.model.priors import PRIORS, Prior
from ppl_vae.testing import check_fit, check_likelihood, check_posterior, check_prior, example

SMALL = {"flow_hidden": (8,), "transforms": 1}
FLOWS = {"flow": SMALL, "iaf": SMALL, "spline_flow": SMALL}


@pytest.mark.parametrize("name", PRIORS)
def test_our_priors(name):
    found = check_prior(name, **FLOWS.get(name, {}))
    assert found["state"] == "state_dict, save and load" and found["spaces"].startswith("goes with ")


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_our_likelihoods(name):
    found = check_likelihood(name)
    assert found["outside"].startswith("refused in 'x1': ") and found["state"] == "state_dict, save and load"


@pytest.mark.parametrize("options", [{"scale": "feature"}, {"scale": "shared"}, {"scale": 0.5}], ids=str)
def test_scales_of_our_likelihoods(options):
    for name in ("normal", "full_normal", "low_rank_normal"):
        check_likelihood(name, features=3, **options)


@pytest.mark.parametrize("name", POSTERIORS)
def test_our_posteriors(name):
    found = check_posterior(name, **FLOWS.get(name, {}))
    assert found["state"] == "state_dict, save and load" and "goes with " in found["spaces"]


def test_a_part_of_one_dimension():
    assert check_prior("laplace", latent=1)["spaces"].startswith("goes with mean_field")
    assert check_posterior("full_rank", latent=1) and check_likelihood("gamma", features=1)


# ---- a user's own, sound or with a fault


class Learned(nn.Module):
    """A sound prior: what the faulty ones are made from."""

    def __init__(self):
        super().__init__()
        self.loc, self.raw = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))

    def forward(self):
        return self.made(self.loc, self.raw.exp()).to_event(1)

    made = dist.Normal


class Own(nn.Module):
    """A sound family of two numbers per feature, for likelihoods and posteriors."""

    outputs = 2

    def __init__(self, made=dist.Normal):
        super().__init__()
        self.made = made

    def forward(self, loc, raw):
        return self.made(loc, raw.exp()).to_event(1)


def test_sound_parts_of_ones_own():
    assert check_prior(Learned())["gradients"] == "log_prob and draws"
    assert check_prior(lambda: dist.Normal(torch.zeros(2), 1.0).to_event(1))["state"] == "state_dict"
    assert check_likelihood(lambda features: Own())["state"] == "state_dict"
    assert check_likelihood(dist.LogNormal)["outside"] == "refused in 'x1': -1.0, 0.0"
    assert check_posterior(Own())["spaces"].startswith("goes with standard_normal; refused dirichlet")


SOUND = {
    "heavy tails": dist.StudentT(2.1, torch.zeros(3), 1.0),
    "no mean": dist.Cauchy(torch.zeros(2), 1.0),
    "scales far apart": dist.Normal(torch.tensor([-5.0, 0.0, 100.0]), torch.tensor([0.01, 1.0, 100.0])),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_draws_pass_with_any_seed(name):
    prior = SOUND[name].to_event(1)
    for seed in (2, 3):  # sound ones fail at 2e-6 a seed
        assert check_prior(prior, latent=prior.event_shape[0], seed=seed)["shapes"]


def test_a_chance_is_at_most_one(monkeypatch):
    monkeypatch.setattr("ppl_vae.testing._continuous", lambda p, z: 1.4)
    assert check_prior("laplace")["draws"] == "p = 1"


@pytest.mark.parametrize("size", [0, 5, 2.5])
def test_sizes_at_which_the_tests_of_draws_fail_are_refused(size):
    for name, check, options in (
        ("latent", check_prior, {"prior": "laplace", "latent": size}),
        ("latent", check_posterior, {"posterior": "full_rank", "latent": size}),
        ("features", check_likelihood, {"likelihood": "gamma", "features": size}),
    ):
        with pytest.raises(OptionError, match=f"^{name}: got {size}, expected "):
            check(**options)


class Positive(Learned):
    """Goes with none of our posteriors."""

    made = dist.LogNormal


class Counts(nn.Module):
    """Goes with none of our priors."""

    outputs = 1

    def forward(self, raw):
        return dist.Poisson(raw.exp()).to_event(1)


def test_a_part_that_none_of_ours_goes_with_is_checked_alone():
    for found in (check_prior(Positive()), check_prior(dist.Gamma(torch.ones(2), 1.0).to_event(1))):
        assert found["spaces"].startswith("goes with none of these; refused mean_field, ")
        assert found["state"] == "state_dict"
    found = check_posterior(Counts())
    assert found["spaces"].startswith("goes with none of these; ") and found["state"] == "state_dict"


class Peaked(dist.Normal):
    """Its density is a tenth too high."""

    def log_prob(self, value):
        return super().log_prob(value) + 0.05  # in each of two dimensions


class Shifted(dist.Normal):
    """Its draws are a little off."""

    def sample(self, sample_shape=torch.Size()):  # noqa: B008
        return super().sample(sample_shape) + 0.15


class Wide(dist.Normal):
    """Its draws are a tenth too wide."""

    def sample(self, sample_shape=torch.Size()):  # noqa: B008
        return self.loc + 1.1 * (super().sample(sample_shape) - self.loc)


class Stuck(dist.Normal):
    """Its draws are its location."""

    def sample(self, sample_shape=torch.Size()):  # noqa: B008
        return self.loc.detach().expand(self._extended_shape(sample_shape))


class Loose(dist.Normal):
    """Its draws leave the support that it claims."""

    support = constraints.positive


class Unmapped(dist.Normal):
    """Python's control flow on a value."""

    def log_prob(self, value):
        return super().log_prob(value) if value.sum() < 1e9 else value


class Summed(dist.Normal):
    """One number for all rows."""

    def log_prob(self, value):
        return super().log_prob(value).mean(0, keepdim=True).expand(value.shape)


class Undefined(dist.LogNormal):
    """No density where its support says that there is one."""

    support = constraints.real


def cut(loc, scale):
    """Without a gradient to the scale."""
    return dist.Normal(loc, scale.detach())


class Rough(dist.Normal):
    """Draws whose gradient does not reach its location."""


@draw.register
def _(rough: Rough, uniform):
    return rough.loc.detach() + rough.scale * torch.special.ndtri(uniform()).to(rough.loc)


class Narrow(dist.Normal):
    """Keyed draws of another scale."""


@draw.register
def _(narrow: Narrow, uniform):
    return narrow.loc + 0.8 * narrow.scale * torch.special.ndtri(uniform()).to(narrow.loc)


class Copied(dist.Normal):
    """Keyed draws with the same noise in all dimensions."""


@draw.register
def _(copied: Copied, uniform):
    noise = torch.special.ndtri(uniform()[..., :1])
    return copied.loc + copied.scale * noise.to(copied.loc)


class Outside(dist.LogNormal):
    """Keyed draws off its support."""


@draw.register
def _(outside: Outside, uniform):
    return outside.loc + outside.scale * torch.special.ndtri(uniform()).to(outside.loc)


class Unruled(dist.Normal):
    """Neither a rule for keyed draws nor an inverse distribution function."""


draw.register(Unruled, lambda unruled, uniform: None)

FAMILIES = {
    Peaked: "its draws do not follow its log_prob",
    Shifted: "its draws do not follow its log_prob",
    Wide: "its draws do not follow its log_prob",
    Stuck: "its draws do not follow its log_prob",
    Outside: "keyed draws outside its own support",
    Loose: "draws outside its own support",
    Unmapped: "log_prob failed under torch.func.vmap",
    Summed: "log densities depend on the leading shape",
    Narrow: "its keyed draws do not follow its log_prob",
    Copied: "its keyed draws do not follow its log_prob",
}


def family(made):
    return type("Faulty", (Learned,), {"made": made})()


@pytest.mark.parametrize("made", FAMILIES, ids=lambda made: made.__name__)
def test_a_faulty_family_is_caught_wherever_it_stands(made):
    for kind, check in (
        ("prior", lambda: check_prior(family(made))),
        ("likelihood", lambda: check_likelihood(lambda features: Own(made))),
        ("posterior", lambda: check_posterior(Own(made))),
    ):
        with pytest.raises(AssertionError, match=f"^{kind}: .*{FAMILIES[made]}"):
            check()


def test_a_missing_event_dimension_is_caught():
    class Bare(Own):
        def forward(self, loc, raw):
            return dist.Normal(loc, raw.exp())

    for check in (
        lambda: check_prior(lambda: dist.Normal(torch.zeros(2), 1.0)),
        lambda: check_likelihood(lambda features: Bare()),
        lambda: check_posterior(Bare()),
    ):
        with pytest.raises(AssertionError, match=r"got event shape \(\), expected \(2,\); declare it with .to_event"):
            check()


def test_a_part_that_is_random_itself_is_caught():
    class Random(Own):
        def forward(self, loc, raw):
            return super().forward(loc + 0.1 * torch.randn(2), raw)

    for kind, check in (
        ("prior", lambda: check_prior(lambda: dist.Normal(torch.randn(2), 1.0).to_event(1))),
        ("likelihood", lambda: check_likelihood(lambda features: Random())),
        ("posterior", lambda: check_posterior(Random())),
    ):
        with pytest.raises(AssertionError, match=f"^{kind}: got other log densities of the same values from a second"):
            check()


@pytest.mark.parametrize("keep", [False, True])
def test_a_family_that_mixes_rows_is_caught(keep):
    class Mean(Own):
        def forward(self, loc, raw):
            return super().forward(loc.mean(-2, keepdim=keep) + 0 * loc if keep else loc.mean(-2), raw.mean(-2, keep))

    for check in (lambda: check_likelihood(lambda features: Mean()), lambda: check_posterior(Mean())):
        with pytest.raises(AssertionError, match="leading dimensions"):
            check()


def test_a_parameter_that_is_not_registered_is_caught():
    hidden = torch.zeros(2, requires_grad=True)

    class Hidden(Own):
        def forward(self, loc, raw):
            return super().forward(loc + hidden, raw)

    for check in (
        lambda: check_prior(lambda: dist.Normal(hidden, 1.0).to_event(1)),
        lambda: check_likelihood(lambda features: Hidden()),
        lambda: check_posterior(Hidden()),
    ):
        with pytest.raises(AssertionError, match=r"tensor of shape \(2,\) that takes gradients and is no parameter"):
            check()


def test_a_gradient_that_is_missing_is_caught():
    with pytest.raises(AssertionError, match="prior: log_prob has no gradient to the parameter 'raw'"):
        check_prior(family(staticmethod(cut)))
    with pytest.raises(AssertionError, match=r"likelihood: log_prob has no gradient to the net's outputs \[2, 3\]"):
        check_likelihood(lambda features: Own(cut))
    for check in (
        lambda: check_prior(family(lambda self, loc, raw: dist.Normal(loc.detach(), raw.detach()))),
        lambda: check_likelihood(lambda features: Own(lambda loc, raw: dist.Normal(loc.detach(), raw.detach()))),
        lambda: check_posterior(Own(lambda loc, raw: dist.Normal(loc.detach(), raw.detach()))),
    ):
        with pytest.raises(AssertionError, match=r"log_prob has no gradient to the .*: detached"):
            check()
    with pytest.raises(AssertionError, match=r"posterior: a draw has no gradient to the net's outputs \[0, 1\]"):
        check_posterior(Own(Rough))


def test_a_posterior_without_keyed_draws_is_caught():
    with pytest.raises(AssertionError, match="posterior: Unruled has no rule for keyed draws; register one"):
        check_posterior(Own(Unruled))
    assert check_prior(family(Unruled))["keyed draws"] == "no rule"


def test_a_support_that_is_too_wide_is_caught():
    with pytest.raises(AssertionError, match="prior: with 'mean_field' got log weights that are not finite"):
        check_prior(family(Undefined))


def test_a_likelihood_that_takes_what_is_outside_its_support_is_caught():
    class Dependent(dist.ContinuousBernoulli):
        @constraints.dependent_property(is_discrete=False, event_dim=0)
        def support(self):
            return constraints.interval(1e-9, 1.0)

    class Grey(nn.Module):
        outputs = 1

        def forward(self, logits):
            return Dependent(logits=logits).to_event(1)

    def grey(features):
        return Grey()

    grey.type = "unit"
    with pytest.raises(AssertionError, match=r"likelihood: fit took 0.0 in column 'x1', which is outside Interval"):
        check_likelihood(grey)


def test_a_likelihood_that_does_not_tell_its_type_is_told_how():
    def counts(features):
        return Counts()

    with pytest.raises(AssertionError, match=r"needs an attribute `type` on what is given.*column 'x0': got -"):
        check_likelihood(counts)
    counts.type = "count"
    assert check_likelihood(counts)["outside"] == "refused in 'x1': 0.5, -1.0"


def test_a_state_that_is_not_kept_is_caught(monkeypatch):
    class Forgetful(Learned):
        def _load_from_state_dict(self, *args):
            pass

    class Random(Learned):
        def __init__(self):
            super().__init__()
            shift = random.random()
            self.made = lambda loc, scale: dist.Normal(loc + shift, scale)

    class Alone(Forgetful):
        made = dist.LogNormal

    for prior in (Forgetful(), Alone()):
        with pytest.raises(AssertionError, match="prior: got other scores from the same state_dict"):
            check_prior(prior)
    monkeypatch.setitem(PRIORS, "random", Prior(lambda setting: Random(), ""))
    with pytest.raises(AssertionError, match="prior: got other scores once saved and loaded"):
        check_prior("random")


def test_a_part_that_is_no_distribution_is_caught():
    with pytest.raises(AssertionError, match=r"prior: got tensor\(\[0., 0.\]\), expected a Pyro distribution"):
        check_prior(lambda: torch.zeros(2))


# ---- training


@pytest.fixture
def rows():
    return example({"a": "real", "b": "real", "c": "count"})[["a", "b", "c"]]


@pytest.fixture
def vae(rows):
    return pv.build(rows, latent=2, hidden=(8,), likelihood={"c": "poisson"})


def test_training_is_seen_and_undone(vae, rows):
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    found = check_fit(vae, rows, "iwae", particles=3)
    assert float(found["gain"]) > 3 * float(found["error"]) and found["steps"] == "12"
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


def test_bounds_of_many_particles_have_a_standard_error(vae, rows):
    found = check_fit(vae, rows, "iwae", particles=70)
    assert float(found["gain"]) > 3 * float(found["error"]) > 0


def test_a_parameter_that_stays_is_caught(vae, rows):
    vae.decoder.unused = nn.Parameter(torch.zeros(1))
    with pytest.raises(AssertionError, match=r"after 240 steps the parameter 'decoder.unused' did not move$"):
        check_fit(vae, rows)


def test_a_bound_that_falls_is_caught(vae, rows):
    for parameter in vae.parameters():
        parameter.register_hook(lambda gradient: -gradient)
    with pytest.raises(AssertionError, match=r"after 240 steps the bound rose by -"):
        check_fit(vae, rows, lr=1e-3)


# ---- manners


def test_checks_leave_random_states_alone():
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    check_prior("mixture"), check_likelihood("poisson"), check_posterior("delta")
    assert torch.equal(torch.get_rng_state(), states[0]) and (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]


def test_the_same_seed_finds_the_same():
    assert check_posterior("mixture", seed=1) == check_posterior("mixture", seed=1) != check_posterior("mixture")


def test_examples_have_the_types_that_are_asked_for():
    frame = example({"a": "positive", "b": "ordinal", "c": "boolean"}, rows=500)
    assert (frame["a"] > 0).all() and frame["b"].dtype.ordered and set(frame["c"]) == {0.0, 1.0}
    assert np.corrcoef(np.log(frame["a"]), frame["age"])[0, 1] > 0.4  # a common factor moves them
    assert example({"a": "real"}).equals(example({"a": "real"}))
