import copy
import inspect
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from scipy import integrate, stats
from torch import nn

from ppl_vae.errors import OptionError
from ppl_vae.model.conditional import distribution, width
from ppl_vae.model.posteriors import POSTERIORS
from ppl_vae.model.priors import PRIORS, Flat, NormalMixture, Setting, StandardNormal


class Encoder(nn.Module):
    """What a prior may ask of an encoder."""

    def __init__(self, latent, posterior="mean_field", inputs=4):
        super().__init__()
        self.family = POSTERIORS[posterior].make(latent, "softplus")
        self.net = nn.Linear(inputs, width(self.family, latent))

    def at(self, features):
        return distribution(self.family, self.net(features))


def setting(latent, posterior="mean_field", rows=60) -> Setting:
    return Setting(
        latent,
        encoder=Encoder(latent, posterior),
        rows=torch.randn(rows, 4),
        covariates=3,
        groups=4,
        first_layer=nn.Linear(latent, 5),
    )


GROUP, C = torch.tensor([0, 1, 3, -1, 2]), torch.randn(5, 3)


def at(prior) -> dist.Distribution:
    """The prior's distribution with what it asks for: five rows where they matter."""
    names = inspect.signature(prior.forward).parameters
    shared = prior.global_sites() if hasattr(prior, "global_sites") else None
    given = {"group": GROUP, "shared": shared, "c": C.to(next(prior.parameters(), C).dtype)}
    return prior(**{name: given[name] for name in names if name in given})


PROPER = [name for name in PRIORS if name != "flat"]
ON_LINE = [
    name for name in PROPER if name not in ("bernoulli", "categorical", "logistic_normal", "dirichlet", "sphere")
]


@pytest.mark.parametrize("name", PROPER)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_prior_draws_and_scores_at_any_leading_shape(name, dtype):
    settings = setting(3)
    settings.encoder.to(dtype)
    prior = PRIORS[name].make(settings._replace(rows=settings.rows.to(dtype))).to(dtype)
    p = at(prior)
    assert p.event_shape == (3,) and p.batch_shape in ((), (5,))
    expanded = p.expand((2, 5))
    z = expanded.sample()
    assert z.shape == (2, 5, 3) and z.dtype == dtype
    assert expanded.log_prob(z).shape == (2, 5) and expanded.log_prob(z).isfinite().all()
    assert expanded.log_prob(z).dtype == dtype


LEARNED = ("normal", "mixture", "enumerated_mixture", "vamp", "flow", "bernoulli", "categorical", "conditional")


@pytest.mark.parametrize("name", PRIORS)
def test_gradients_reach_every_parameter(name):
    prior = PRIORS[name].make(setting(3))
    assert bool(list(prior.parameters())) == (name in LEARNED)
    if name not in LEARNED:
        return

    def model():
        with pyro.plate("data", 5, dim=-1):
            pyro.sample("z", at(prior), obs=z)

    z = at(prior).expand((5,)).sample()
    poutine.trace(model).get_trace().log_prob_sum().backward()
    assert all(q.grad is not None and q.grad.abs().sum() > 0 for q in prior.parameters())


@pytest.mark.parametrize("name", ON_LINE)
def test_densities_on_the_line_integrate_to_one(name):
    p = at(PRIORS[name].make(setting(1)).double() if name != "vamp" else PRIORS[name].make(setting(1)))
    x = torch.linspace(-60, 60, 24001)[:, None].to(torch.float32 if name == "vamp" else torch.float64)
    x = x.reshape(-1, *(1 for _ in p.batch_shape), 1)
    total = p.log_prob(x).exp().sum(0) * 120 / 24000
    assert torch.allclose(total, torch.ones_like(total), atol=1e-3)


@pytest.mark.parametrize("name", ["mixture", "vamp", "flow", "laplace", "student_t", "normal"])
def test_draws_follow_the_density(name, goodness_of_fit):
    """Each fails by chance at 1e-4."""
    assert goodness_of_fit(at(PRIORS[name].make(setting(2))), dim=2) > 1e-4


def test_existing_priors_keep_their_names():
    assert set(StandardNormal(3).state_dict()) == {"loc", "scale"} and not Flat(2).state_dict()
    assert torch.equal(Flat(2)().log_prob(torch.randn(5, 2)), torch.zeros(5))


def test_fixed_families_are_scipys():
    z = torch.randn(6, 2)
    laplace, student = PRIORS["laplace"].make(Setting(2)), PRIORS["student_t"].make(Setting(2), df=4)
    assert torch.allclose(laplace().log_prob(z), torch.as_tensor(stats.laplace.logpdf(z).sum(-1)).float(), atol=1e-5)
    assert torch.allclose(student().log_prob(z), torch.as_tensor(stats.t.logpdf(z, 4).sum(-1)).float(), atol=1e-5)
    with pytest.raises(OptionError, match="df"):
        PRIORS["student_t"].make(Setting(2), df=0)


def test_dirichlet_and_logistic_normal_take_their_options():
    theta = torch.tensor([0.2, 0.3, 0.5])
    p = PRIORS["dirichlet"].make(Setting(3), concentration=0.5)()
    assert float(p.log_prob(theta)) == pytest.approx(stats.dirichlet.logpdf([0.2, 0.3, 0.5], [0.5] * 3), abs=1e-4)
    q = PRIORS["logistic_normal"].make(Setting(3), alpha=4.0)()
    assert torch.allclose(q.base_dist.base_dist.scale, torch.full((2,), 0.5))


@pytest.mark.parametrize("name", ["logistic_normal", "dirichlet", "sphere", "categorical"])
def test_one_dimension_is_refused_where_two_are_needed(name):
    with pytest.raises(OptionError, match=f"latent: got 1, expected at least 2 with '{name}'"):
        PRIORS[name].make(Setting(1))


# ---- mixtures


def test_learned_mixture_is_the_sum_over_its_components_by_hand():
    mixture = NormalMixture(2, components=3)
    with torch.no_grad():
        mixture.logits.copy_(torch.tensor([0.3, -0.5, 1.0]))
    z = torch.randn(7, 2)
    scale = torch.nn.functional.softplus(mixture.raw) + 1e-3
    assert torch.allclose(scale, torch.ones(3, 2), atol=2e-3)  # unit scales at the start
    joint = mixture.logits.softmax(-1) * dist.Normal(mixture.loc, scale).log_prob(z[:, None]).sum(-1).exp()
    assert torch.allclose(mixture().log_prob(z), joint.sum(-1).log(), atol=1e-5)
    assert torch.allclose(mixture.responsibilities(z), joint / joint.sum(-1, keepdim=True), atol=1e-5)


def test_enumerated_mixture_has_the_marginal_density():
    """TraceEnum_ELBO with z given sums the component out: its value is the mixture's log density."""
    torch.manual_seed(3)
    prior = PRIORS["enumerated_mixture"].make(Setting(2), components=4)
    with torch.no_grad():
        prior.logits.copy_(torch.randn(4))
        prior.raw.copy_(torch.randn(4, 2))
    z = torch.randn(6, 2)

    def model():
        with pyro.plate("data", 6, dim=-1):
            pyro.sample("z", prior(), obs=z)

    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(config_enumerate(model), lambda: None)
    assert torch.allclose(-loss, prior.marginal().log_prob(z).sum(), atol=1e-4)


@pytest.mark.parametrize("shape", [(), (5,), (2, 5), (4, 1), (4, 1, 1)])
def test_enumerated_mixture_takes_a_component_of_any_shape(shape):
    prior = NormalMixture(3, components=4, enumerated=True)
    component = torch.randint(4, shape) if len(shape) < 2 or shape[0] != 4 else torch.arange(4).reshape(shape)
    p = poutine.condition(prior, data={"component": component})()
    assert p.batch_shape == shape and p.event_shape == (3,)
    assert torch.equal(p.base_dist.loc, prior.loc[component])


def test_vamp_is_the_mean_of_the_posteriors_and_is_tied():
    settings = setting(2)
    prior = PRIORS["vamp"].make(settings, components=5)
    z = torch.randn(7, 2)
    expected = torch.stack([settings.encoder.at(u).log_prob(z) for u in prior.pseudo_inputs]).logsumexp(0) - math.log(5)
    assert torch.allclose(prior().log_prob(z), expected, atol=1e-5)
    assert [name for name, _ in prior.named_parameters()] == ["pseudo_inputs"]
    assert prior.responsibilities(z).shape == (7, 5)
    both = nn.ModuleDict({"encoder": settings.encoder, "prior": prior})
    assert len(list(both.parameters())) == 3
    copied = copy.deepcopy(both)
    assert copied["prior"]._encoder[0] is copied["encoder"] is not settings.encoder
    prior().log_prob(z).sum().backward()
    assert settings.encoder.net.weight.grad.abs().sum() > 0


def test_vamp_starts_from_rows_with_jitter_where_they_are_too_few():
    settings = setting(2, rows=10)
    rows = settings.rows
    few = PRIORS["vamp"].make(settings, components=10).pseudo_inputs
    assert sorted(map(tuple, few.tolist())) == sorted(map(tuple, rows.tolist()))
    many = PRIORS["vamp"].make(settings._replace(rows=lambda: rows), components=30).pseudo_inputs
    nearest = torch.cdist(many, rows).min(1).values
    assert len({tuple(u) for u in many.tolist()}) == 30 and 0 < nearest.min() and nearest.max() < 1


@pytest.mark.parametrize("posterior", [name for name in POSTERIORS if name != "delta"])
def test_vamp_mixes_any_posterior(posterior):
    prior = PRIORS["vamp"].make(setting(3, posterior), components=6)
    p = prior().expand((2, 5))
    z = p.sample()
    p.log_prob(z).sum().backward()
    assert z.shape == (2, 5, 3) and prior.pseudo_inputs.grad.abs().sum() > 0


def test_vamp_refuses_a_point_posterior_and_missing_parts():
    with pytest.raises(OptionError, match="point posterior"):
        PRIORS["vamp"].make(setting(3, "delta"))
    for absent in (Setting(3), Setting(3, encoder=Encoder(3)), Setting(3, encoder=Encoder(3), rows=lambda: None)):
        with pytest.raises(OptionError, match="training rows"):
            PRIORS["vamp"].make(absent)


# ---- what rows share


def test_conditional_moves_with_its_covariates_and_starts_near_unit_scale():
    prior = PRIORS["conditional"].make(Setting(2, covariates=3))
    p = prior(torch.randn(4, 5, 3))
    assert p.batch_shape == (4, 5) and p.base_dist.loc.std() > 0
    assert (prior(torch.zeros(1, 3)).base_dist.scale - 1).abs().max() < 0.5
    with pytest.raises(OptionError, match=r"conditional.*covariates"):
        PRIORS["conditional"].make(Setting(2))


def hierarchical(draws=None, **options):
    prior = PRIORS["hierarchical"].make(Setting(2, groups=4), **options)

    def program():
        if draws is None:
            return prior.global_sites()
        with pyro.plate("draws", draws, dim=-2):
            return prior.global_sites()

    return prior, poutine.trace(program).get_trace()


def test_hierarchical_effects_by_hand():
    prior, trace = hierarchical(within=0.5)
    shared = {name: trace.nodes[name]["value"] for name in ("location", "spread", "offsets")}
    assert [shared[name].shape for name in shared] == [(2,), (2,), (4, 2)]
    p = prior(torch.tensor([2, 0, -1]), shared)
    effects = [shared["location"] + shared["spread"] * shared["offsets"][g] for g in (2, 0)]
    assert torch.allclose(p.base_dist.loc, torch.stack([*effects, shared["location"]]))
    assert torch.allclose(p.base_dist.scale[:2], torch.full((2, 2), 0.5))
    assert torch.allclose(p.base_dist.scale[2], (0.25 + shared["spread"] ** 2).sqrt())


def test_hierarchical_under_a_plate_of_draws_is_each_draw_alone():
    prior, trace = hierarchical(draws=3)
    shared = {name: trace.nodes[name]["value"] for name in ("location", "spread", "offsets")}
    assert [shared[name].shape for name in shared] == [(3, 1, 2), (3, 1, 2), (3, 4, 2)]
    group = torch.tensor([3, -1, 1, 1, 0])
    p = prior(group, shared)
    assert p.batch_shape == (3, 5)
    for s in range(3):
        one = {"location": shared["location"][s, 0], "spread": shared["spread"][s, 0], "offsets": shared["offsets"][s]}
        assert torch.allclose(p.base_dist.loc[s], prior(group, one).base_dist.loc)
        assert torch.allclose(p.base_dist.scale[s], prior(group, one).base_dist.scale)
    assert prior(None, shared).batch_shape == (3, 1)


def test_an_unseen_group_is_the_population_integrated_over_its_effect():
    prior, trace = hierarchical()
    shared = {name: trace.nodes[name]["value"].double() for name in ("location", "spread", "offsets")}
    z = torch.tensor([0.7, -0.4]).double()
    got = prior(torch.tensor([-1]), shared).log_prob(z)
    by_hand = 0.0
    for i in range(2):
        m, s = float(shared["location"][i]), float(shared["spread"][i])
        by_hand += math.log(
            integrate.quad(lambda e: stats.norm.pdf(float(z[i]), e, 1) * stats.norm.pdf(e, m, s), -20, 20)[0]  # noqa: B023
        )
    assert float(got) == pytest.approx(by_hand, abs=1e-5)


def test_hierarchical_sites_have_their_priors():
    _, trace = hierarchical()
    trace.compute_log_prob()
    sites = trace.nodes
    total = sum(sites[name]["log_prob_sum"] for name in ("location", "spread", "offsets"))
    value = {name: sites[name]["value"] for name in ("location", "spread", "offsets")}
    expected = stats.norm.logpdf(value["location"]).sum() + stats.norm.logpdf(value["offsets"]).sum()
    expected += stats.halfnorm.logpdf(value["spread"]).sum()
    assert float(total) == pytest.approx(expected, abs=1e-4)


def test_hierarchical_without_groups_is_refused():
    with pytest.raises(OptionError, match=r"hierarchical.*group"):
        PRIORS["hierarchical"].make(Setting(2))


# ---- the table


def test_factories_name_their_options_and_say_what_they_make():
    for name, prior in PRIORS.items():
        first, *options = inspect.signature(prior.make).parameters.values()
        assert first.name == "setting" and prior.text, name
        assert all(o.kind is o.KEYWORD_ONLY and o.default is not o.empty for o in options), name


@pytest.mark.parametrize("name", PROPER)
def test_state_goes_from_one_to_another(name):
    one, other = PRIORS[name].make(setting(3)), PRIORS[name].make(setting(3))
    other.load_state_dict(one.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))
    copy.deepcopy(one)
