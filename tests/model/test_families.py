import copy
import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.testing.gof import auto_goodness_of_fit, multinomial_goodness_of_fit
from scipy import stats
from torch import nn

from ppl_vae.data.schema import Schema
from ppl_vae.errors import OptionError
from ppl_vae.model.conditional import Conditional
from ppl_vae.model.families import (
    LIKELIHOODS,
    LOG_VARIANCE_BOUND,
    LOGIT_BOUND,
    SCALE_FLOOR,
    SCALE_LINKS,
    UNIT,
    Head,
    Heads,
    Normal,
    expected,
    from_class,
    likelihood,
)
from ppl_vae.model.masses import ContinuousBernoulli, NegativeBinomial, Poisson
from ppl_vae.model.mixed import Mixed

PLAIN = Heads()
JOINT = ("low_rank_normal", "full_normal", "multinomial")


def columns(kind, d=1, levels=None, log_loc=1.5, log_scale=0.8, likelihoods=None):
    """A schema of d columns of one type, or of the types given."""
    kinds = (kind,) * d if isinstance(kind, str) else tuple(kind)
    return Schema(
        names=tuple(f"x{j}" for j in range(len(kinds))),
        kind="pandas",
        shape=(len(kinds),),
        types=kinds,
        levels=levels or tuple(tuple("abcde") if k in ("categorical", "ordinal") else None for k in kinds),
        log_loc=tuple(log_loc if k == "count" else 0.0 for k in kinds),
        log_scale=tuple(log_scale if k in ("count", "positive") else 1.0 for k in kinds),
        likelihoods=likelihoods,
    )


def make(name, d=1, heads=PLAIN, **columns_options):
    return likelihood(columns(LIKELIHOODS[name].type, d, **columns_options), name, heads)


def raws(name, n=4, d=1, heads=PLAIN, **options):
    """The family in float64, and some raw numbers for it (n, width)."""
    family = make(name, d, heads, **options).double()
    return family, torch.randn(n, family.width, dtype=torch.float64)


CONTINUOUS = ("real", "positive", "unit", "angle")
GREY = (torch.arange(256, dtype=torch.float64) - 127.5) / 127.5
VALUES = {
    "count": torch.arange(4000.0, dtype=torch.float64),
    "boolean": torch.arange(2.0, dtype=torch.float64),
    "categorical": torch.arange(5.0, dtype=torch.float64),
    "ordinal": torch.arange(5.0, dtype=torch.float64),
    "pixel": GREY,
}
DENSITIES = [name for name, entry in LIKELIHOODS.items() if entry.type in CONTINUOUS and name not in JOINT]
MASSES = [name for name, entry in LIKELIHOODS.items() if entry.type in VALUES and name not in JOINT]


# ---- each family is a distribution: oracles by integration and enumeration


def fitted(name):
    """The schema of some data of one column that the likelihood is for, not standardised before."""
    data = np.random.RandomState(0).randn(50, 1)
    own = {"real": 3 + 2.5 * data, "positive": 40 * np.exp(data), "unit": stats.norm.cdf(data), "angle": data}
    return Schema.fit(own[LIKELIHOODS[name].type], likelihood=name)


def integral(name, schema, distribution, of=torch.ones_like):
    """Of a function times the density of one column, in its own units: the trapezoid rule on a real t that x is mapped to.

    Positive numbers are exp(t), those of [0, 1] sigmoid(t), reals sinh(t) about the mean: each decays fast in t, but for a
    gamma's, as exp(c t): of concentrations c below 0.013 more than 1e-4 lies below the smallest float64.
    """
    kind = LIKELIHOODS[name].type
    center = float(own_mean(schema, distribution))
    t = torch.linspace(-690 if kind == "positive" else -36, 36, 200_001, dtype=torch.float64)
    own, slope = {
        "real": lambda: (center + t.sinh(), t.cosh()),
        "positive": lambda: (t.exp(), t.exp()),
        "unit": lambda: (torch.sigmoid(t), torch.sigmoid(t) * torch.sigmoid(-t)),
        "angle": lambda: (t / 36 * 0.9999999 * math.pi, torch.full_like(t, math.pi / 36)),
    }[kind]()
    inside = (own > 0) & (own < 1) if kind == "unit" else torch.ones_like(t, dtype=torch.bool)
    t, own, slope = t[inside], own[inside], slope[inside]
    x = schema.tensors(own[:, None].numpy(), dtype=torch.float64).x
    density = torch.exp(distribution.log_prob(x) + schema.log_jacobian).detach()
    return float(torch.trapezoid(of(own) * density * slope, t))


def own_mean(schema, distribution):
    """E[x|z] in own units."""
    return schema.decode(expected(distribution).detach()[None])[0, 0]


@pytest.mark.parametrize("name", DENSITIES)
def test_densities_integrate_to_one_in_own_units(name):
    schema = fitted(name)
    family = likelihood(schema, name).double()
    for row in spread(name, family):
        assert integral(name, schema, family(row)) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("name", DENSITIES)
def test_expected_is_the_mean_of_the_density(name):
    """An angle's by its first trigonometric moment."""
    schema = fitted(name)
    family = likelihood(schema, name, Heads(options={"df": 5.0})).double()
    for row in spread(name, family):
        of = [torch.sin, torch.cos] if name == "von_mises" else [lambda own: own]
        moments = [integral(name, schema, family(row), function) for function in of]
        mean = math.atan2(*moments) if name == "von_mises" else moments[0]
        assert float(own_mean(schema, family(row))) == pytest.approx(mean, rel=1e-3, abs=1e-3)


def spread(name, family):
    """Raw numbers of four rows; a beta's concentration above 1, since a pole at 1 has no floating numbers near it."""
    raw = torch.randn(4, family.width, dtype=torch.float64)
    return raw + torch.tensor([0.0, 3.0], dtype=torch.float64) if name == "beta" else raw


@pytest.mark.parametrize("name", MASSES)
def test_masses_sum_to_one_and_mean_is_their_mean(name):
    """Counts up to 4000, whose tail at these means is below 1e-8."""
    family, raw = raws(name, n=6)
    values = VALUES[LIKELIHOODS[name].type]
    for row in raw:
        distribution = family(row)
        mass = distribution.log_prob(values[:, None]).exp().detach()
        assert float(mass.sum()) == pytest.approx(1.0, abs=1e-6)
        mean = values[mass.argmax()] if name in ("categorical", "ordinal") else (mass * values).sum()
        assert float(expected(distribution)) == pytest.approx(float(mean), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("scale", ["row", "feature", "shared", 0.7])
@pytest.mark.parametrize("name", ["low_rank_normal", "full_normal"])
def test_joint_normals_have_the_covariance_they_say(name, scale):
    family, raw = raws(name, d=3, heads=Heads(scale))
    for row in raw:
        distribution = family(row)
        x = torch.randn(3, dtype=torch.float64)
        mean, covariance = distribution.mean.detach(), distribution.covariance_matrix.detach()
        oracle = stats.multivariate_normal(mean, covariance)
        assert float(distribution.log_prob(x).detach()) == pytest.approx(oracle.logpdf(x), abs=1e-8)
        off = covariance - torch.diag(covariance.diagonal())
        assert off.abs().max() > (1e-4 if name == "low_rank_normal" or scale == "row" else -1)


def test_joint_normals_match_numpy():
    """(I + F F') and L L' between the scales, by hand."""
    family, raw = raws("low_rank_normal", d=2, n=1, heads=Heads(options={"rank": 1}))
    loc, scale, factor = raw[0].split(2)
    d = torch.diag(nn.functional.softplus(scale) + SCALE_FLOOR)
    covariance = d @ (torch.eye(2) + torch.outer(factor, factor)) @ d
    assert torch.allclose(family(raw[0]).covariance_matrix, covariance)
    assert torch.allclose(family(raw[0]).mean, loc)
    family, raw = raws("full_normal", d=2, n=1)
    loc, scale, below = raw[0].split([2, 2, 1])
    d = torch.diag(nn.functional.softplus(scale) + SCALE_FLOOR)
    unit = torch.tensor([[1.0, 0.0], [float(below), 1.0]], dtype=torch.float64)
    assert torch.allclose(family(raw[0]).covariance_matrix, d @ unit @ unit.T @ d)


def test_multinomial_sums_to_one_over_the_compositions_of_each_total():
    family, raw = raws("multinomial", d=3, n=2)
    for total in (0, 1, 6):
        rows = [(a, b, total - a - b) for a in range(total + 1) for b in range(total + 1 - a)]
        for row in raw:
            mass = family(row).log_prob(torch.tensor(rows, dtype=torch.float64)).exp()
            assert float(mass.sum()) == pytest.approx(1.0, abs=1e-12)
            probs = torch.softmax(row, 0).numpy()
            assert float(mass[-1]) == pytest.approx(stats.multinomial(total, probs).pmf(rows[-1]), rel=1e-9)
    family = make("multinomial", 3, Heads(options={"total": 17}))
    drawn = family(torch.randn(5, 3)).sample((4,))
    assert drawn.shape == (4, 5, 3) and drawn.sum(-1).eq(17).all()


def test_ordinal_is_pyros_ordered_logistic():
    family, raw = raws("ordinal", n=7, d=3, levels=(tuple("abc"),) * 3)
    cuts = torch.cumsum(torch.rand(3, 2, dtype=torch.float64), -1)
    family.cuts.data = torch.cat([cuts[:, 0], torch.log(torch.expm1(cuts.diff()[:, 0] - 1e-6))])
    oracle = dist.OrderedLogistic(raw, cuts)
    for code in range(3):
        x = torch.full((7, 3), float(code), dtype=torch.float64)
        assert torch.allclose(family(raw).base_dist.log_prob(x), oracle.log_prob(x), atol=1e-8)


@pytest.mark.parametrize("name", ["categorical", "ordinal"])
def test_columns_of_unequal_levels_are_each_complete(name):
    """An absent level has mass 0 and the present ones have all; a learned ordinal column starts uniform at 0."""
    levels = (tuple("ab"), tuple("abcd"), tuple("abc"))
    family, raw = raws(name, n=5, d=3, levels=levels)
    if name == "categorical":
        assert family.width == 9
        logits = [raw[:, [0, 3]], raw[:, [1, 4, 6, 8]], raw[:, [2, 5, 7]]]
    codes = torch.arange(4.0, dtype=torch.float64)[:, None, None].expand(4, 5, 3)
    mass = family(raw).base_dist.log_prob(codes).exp()
    for j, own in enumerate(levels):
        assert torch.allclose(mass[: len(own), :, j].sum(0), torch.ones(5, dtype=torch.float64))
        assert mass[len(own) :, :, j].sum() == 0
        if name == "categorical":
            assert torch.allclose(mass[: len(own), :, j].T, torch.softmax(logits[j], -1))
        else:
            even = family(torch.zeros(3, dtype=torch.float64)).base_dist.probs[j, : len(own)]
            assert torch.allclose(even, torch.full_like(even, 1 / len(own)), atol=1e-5)


def test_discretized_logistic_is_the_difference_of_scipys_logistic():
    family, raw = raws("discretized_logistic", n=1)
    loc, scale = float(raw[0, 0]), float(nn.functional.softplus(raw[0, 1])) + SCALE_FLOOR
    edges = np.concatenate([[-np.inf], (np.arange(1, 256) - 128) / 127.5, [np.inf]])
    mass = np.diff(stats.logistic(loc, scale).cdf(edges))
    assert np.allclose(family(raw[0]).log_prob(GREY[:, None]).exp().numpy(), mass, atol=1e-12)
    inner = family(raw[0]).base_dist
    for inside in (-0.9 / 255, 0.9 / 255):  # the edges of a level
        assert torch.allclose(inner.icdf(torch.as_tensor(stats.logistic(loc, scale).cdf(GREY.numpy() + inside))), GREY)
    assert float(inner.icdf(torch.tensor(0.0))) == -1 and float(inner.icdf(torch.tensor(1.0))) == 1
    support = inner.support
    assert support.check(GREY.float()).all()
    assert not support.check(torch.tensor([0.0, 1.1, -1.01, math.nan])).any()


def test_zero_inflated_counts_are_the_mixture():
    for name, plain in (
        ("zero_inflated_poisson", "poisson"),
        ("zero_inflated_negative_binomial", "negative_binomial"),
    ):
        family, raw = raws(name, n=5)
        gate = torch.sigmoid(raw[:, -1:])
        inner = make(plain).double()(raw[:, :-1])
        for x in (0.0, 3.0):
            value = torch.full((5, 1), x, dtype=torch.float64)
            oracle = gate[:, 0] * (x == 0) + (1 - gate[:, 0]) * inner.log_prob(value).exp()
            assert torch.allclose(family(raw).log_prob(value).exp(), oracle)


def test_count_and_positive_means_are_in_the_units_of_their_columns():
    raw = torch.tensor([[0.5, -1.0], [0.5, -1.0]])
    for name in ("poisson", "negative_binomial", "zero_inflated_negative_binomial"):
        family = make(name, 2, Heads("feature"), log_loc=2.0, log_scale=0.7)
        given = raw[:1] if family.width == 2 else torch.tensor([[0.5, -1.0, -90.0, -90.0]])
        assert torch.allclose(expected(family(given)), torch.exp(2 + 0.7 * raw[:1]), rtol=1e-4)
    assert torch.allclose(expected(make("gamma", 2, Heads("feature"))(raw)), torch.exp(0.8 * raw))
    assert torch.allclose(make("log_normal", 2, Heads(0.5))(raw).base_dist.loc, 0.8 * raw)
    assert torch.allclose(make("log_normal", 2, Heads(0.5))(raw).base_dist.scale, torch.tensor(0.4))
    assert float(make("gamma", 2, Heads(0.5))(raw).base_dist.concentration.detach()[0, 0]) == pytest.approx(1, abs=2e-3)


def test_means_keep_within_twenty_nats_of_the_typical_value():
    for sign in (-1, 1):
        raw = torch.full((1, 1), sign * 1e3)
        assert float(make("poisson", 1)(raw).base_dist.rate.log()) == pytest.approx(1.5 + sign * 20, rel=1e-5)
        assert float(make("gamma", 1, Heads("shared"))(raw).mean.detach().log()) == pytest.approx(sign * 20, rel=1e-5)


def test_heads_say_what_they_name():
    """Mean of a beta, direction of a von Mises: first all cosines, then all sines; degrees of freedom from 3."""
    raw = torch.tensor([0.4, -1.0, 3.0, 3.0], dtype=torch.float64)
    assert torch.allclose(make("beta", 2)(raw).mean, torch.sigmoid(raw[:2]), atol=1e-3)
    raw = torch.tensor([0.4, -1.0, 2.0, -3.0, 0.0, 0.0])
    oracle = torch.tensor([math.atan2(2.0, 0.4), math.atan2(-3.0, -1.0)])
    assert torch.allclose(expected(make("von_mises", 2)(raw)), oracle)
    df = make("student_t", 2)(torch.zeros(4)).base_dist.df.detach()
    assert torch.allclose(df, torch.full((2,), 3.0), atol=1e-3)
    assert make("student_t", 1, Heads(options={"df": "row"}))(torch.tensor([0.0, 0.0, -50.0])).base_dist.df == 2
    assert make("student_t", 2, Heads(options={"df": 5}))(torch.zeros(4)).base_dist.df.tolist() == [5, 5]


def test_a_point_without_direction_has_no_gradient():
    for value in (0.0, 1e-25, 1e-20):
        raw = torch.full((3,), value, requires_grad=True)
        make("von_mises")(raw).log_prob(torch.ones(1)).backward()
        assert raw.grad.isfinite().all()


def test_beta_refuses_the_ends_and_negative_binomial_has_its_variance():
    support = make("beta")(torch.zeros(2)).base_dist.support
    assert support.check(torch.tensor([0.0, 0.5, 1.0, math.nan])).tolist() == [False, True, False, False]
    family = make("negative_binomial", 1, Heads("feature"))
    inner = family(torch.tensor([0.3])).base_dist
    assert torch.allclose(inner.variance, inner.mean + inner.mean**2 / inner.total_count)


# ---- samplers


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_samples_follow_the_density(name):
    """Pearson's test of Pyro's goodness-of-fit helper; fails by chance at 1e-4.

    Of joint normals Kolmogorov's, of -2 log p and of both whitened coordinates, at 3e-5 each: in two dimensions Pyro's
    helper, by nearest neighbours, is below 1e-4 in 3 % of samples.
    """
    torch.manual_seed(3)
    d = 2 if name in JOINT else 1
    family = make(name, d, Heads(options={"df": 5.0, "total": 4})).double()
    distribution = family(torch.linspace(-0.4, 0.8, family.width, dtype=torch.float64))
    x = distribution.sample((10_000,))
    if name in ("low_rank_normal", "full_normal"):
        mean = distribution.mean
        white = torch.linalg.solve_triangular(
            torch.linalg.cholesky(distribution.covariance_matrix), (x - mean).T, upper=False
        )
        depths = 2 * (distribution.log_prob(mean) - distribution.log_prob(x))
        tested = [(depths, stats.chi2(2)), *((one, stats.norm) for one in white)]
        assert all(stats.kstest(one.detach().numpy(), law.cdf).pvalue > 3e-5 for one, law in tested)
        return
    p = distribution.log_prob(x).exp().detach()
    if LIKELIHOODS[name].type in CONTINUOUS:
        assert auto_goodness_of_fit(x.squeeze(-1), p) > 1e-4
        return
    values, counts = x[:, 0].unique(return_counts=True)
    if name == "multinomial":
        probs = distribution.log_prob(torch.stack([values, 4 - values], -1)).exp()
    else:
        probs = distribution.log_prob(values[:, None]).exp()
    enough = probs > 1e-3
    assert probs[enough].sum() > 0.9
    assert multinomial_goodness_of_fit(probs[enough].detach(), counts[enough], total_count=10_000) > 1e-4


# ---- nets, gradients, extremes


def typical(name, n, d):
    """Values of the family's support (n, d), among them 0 and large counts."""
    torch.manual_seed(5)
    values = {
        "real": torch.randn(n, d),
        "positive": torch.randn(n, d).exp(),
        "unit": torch.rand(n, d) * 0.98 + 0.01,
        "boolean": torch.randint(2, (n, d)).float(),
        "categorical": torch.randint(5, (n, d)).float(),
        "ordinal": torch.randint(5, (n, d)).float(),
        "count": torch.randint(6, (n, d)).float(),
        "pixel": (torch.randint(256, (n, d)) - 127.5) / 127.5,
        "angle": torch.rand(n, d) * 6 - 3,
    }[LIKELIHOODS[name].type]
    if LIKELIHOODS[name].type == "count":
        values[0], values[1] = 0.0, 1e6
    if LIKELIHOODS[name].type == "pixel":
        values[0], values[1] = -1.0, 1.0
    return values


@pytest.mark.parametrize("scale", ["row", "feature", "shared", 0.3])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_gradients_reach_the_net_and_every_parameter(name, scale):
    """Of an odd number of terms: a Laplace's gradient is a sum of signs, which as many of each would cancel."""
    family = make(name, 3, Heads(scale))
    net = nn.Linear(2, family.width)
    x = typical(name, 21, 3)
    distribution = Conditional(net, family)(torch.randn(5, 21, 2))
    assert (distribution.batch_shape, distribution.event_shape) == ((5, 21), (3,))
    assert distribution.sample().shape == distribution.expand((4, 5, 21)).sample().shape[1:] == (5, 21, 3)
    distribution.log_prob(x).sum().backward()
    assert expected(distribution).shape == (5, 21, 3)
    for parameter in [*net.parameters(), *family.parameters()]:
        assert parameter.grad.isfinite().all()
        assert (parameter.grad.reshape(parameter.shape[0], -1).abs().sum(-1) > 0).all()


@pytest.mark.parametrize("link", SCALE_LINKS)
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_extreme_raw_numbers_stay_finite(name, link):
    family = make(name, 3, Heads("row", link))
    x = typical(name, 20, 3)
    signs = torch.randint(2, (20, family.width)) * 2.0 - 1
    for raw in (30.0 * signs, torch.full_like(signs, 30.0), torch.full_like(signs, -30.0), torch.zeros_like(signs)):
        raw.requires_grad_()
        log_p = family(raw).log_prob(x)
        log_p.sum().backward()
        assert log_p.isfinite().all() and raw.grad.isfinite().all()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_learned_parameters_at_extremes_stay_finite(name):
    for value in (-30.0, 30.0):
        family = make(name, 3, Heads("feature"))
        for parameter in family.parameters():
            nn.init.constant_(parameter, value)
        log_p = family(torch.zeros(20, family.width)).log_prob(typical(name, 20, 3))
        assert log_p.isfinite().all()
        if list(family.parameters()):
            log_p.sum().backward()
            assert all(p.grad.isfinite().all() for p in family.parameters())


@pytest.mark.parametrize("scale", ["row", "feature", 0.5])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_families_copy_change_dtype_and_load(name, scale):
    family = make(name, 2, Heads(scale))
    other = copy.deepcopy(family).double()
    raw = torch.randn(3, family.width)
    x = typical(name, 3, 2)
    assert torch.allclose(family(raw).log_prob(x).double(), other(raw.double()).log_prob(x.double()), rtol=1e-4, atol=3)
    with torch.device("meta"):  # as a saved model is loaded
        empty = make(name, 2, Heads(scale))
    empty.load_state_dict(family.state_dict(), assign=True)
    assert torch.equal(empty(raw).log_prob(x), family(raw).log_prob(x))


# ---- the normal, its scales and links


def test_normal_is_the_normal_of_scipy():
    loc, raw, x = torch.randn(3, 4), torch.randn(3, 4), torch.randn(3, 4)
    scale = nn.functional.softplus(raw) + SCALE_FLOOR
    oracle = stats.norm.logpdf(x, loc, scale).sum(-1)
    assert torch.allclose(Normal(4)(torch.cat([loc, raw], -1)).log_prob(x), torch.as_tensor(oracle).float(), atol=1e-4)


def test_normal_is_bit_for_bit_location_then_raw_scale_and_draws_no_random_number():
    before = torch.get_rng_state()
    family = Normal(4)
    assert torch.equal(torch.get_rng_state(), before)
    raw = torch.randn(3, 8)
    entries = family(raw).base_dist
    loc, scale = raw.chunk(2, -1)
    assert torch.equal(entries.loc, loc) and torch.equal(entries.scale, nn.functional.softplus(scale) + SCALE_FLOOR)


def test_log_variance_link_is_kingma_and_wellings_c2_and_is_clamped():
    raw = torch.tensor([-1e9, -2.0, 0.0, 3.0, 1e9])
    oracle = torch.exp(0.5 * torch.tensor([2 * math.log(SCALE_FLOOR), -2.0, 0.0, 3.0, LOG_VARIANCE_BOUND]))
    assert torch.allclose(SCALE_LINKS["log_variance"](raw), oracle)


@pytest.mark.parametrize("link", SCALE_LINKS)
def test_links_have_their_floor(link):
    assert float(SCALE_LINKS[link](torch.tensor(-1e9))) == pytest.approx(SCALE_FLOOR)
    assert float(Normal(1, "row", link, floor=0.2)(torch.tensor([0.0, -1e9])).stddev) == pytest.approx(0.2)
    with pytest.raises(OptionError, match="scale_floor: got 0"):
        Normal(1, floor=0)


@pytest.mark.parametrize("link", SCALE_LINKS)
def test_learned_scales_start_at_one(link):
    for scale in ("feature", "shared"):
        assert torch.allclose(Normal(3, scale, link)(torch.zeros(2, 3)).stddev, torch.ones(2, 3), atol=2e-3)
    assert float(SCALE_LINKS[link](torch.tensor(UNIT[link]))) == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize(
    ("scale", "parameters", "width"), [("row", 0, 6), ("feature", 3, 3), ("shared", 1, 3), (0.5, 0, 3)]
)
def test_scales_have_the_parameters_that_their_names_say(scale, parameters, width):
    family = Normal(3, scale)
    assert sum(p.numel() for p in family.parameters()) == parameters
    assert family.width == width
    if scale == 0.5:
        assert torch.equal(family(torch.zeros(2, 3)).stddev, torch.full((2, 3), 0.5))


@pytest.mark.parametrize("scale", ["rows", 0, -1.0, math.inf, None, True])
@pytest.mark.parametrize("name", ["normal", "low_rank_normal", "student_t"])
def test_bad_scales_are_refused(name, scale):
    with pytest.raises(OptionError, match="scale"):
        make(name, 3, Heads(scale))


@pytest.mark.parametrize("options", [{"df": 1}, {"df": "rows"}, {"rank": 0}, {"rank": 1.5}, {"total": 0}])
def test_bad_options_are_refused(options):
    name = {"df": "student_t", "rank": "low_rank_normal", "total": "multinomial"}[next(iter(options))]
    with pytest.raises(OptionError, match=next(iter(options))):
        make(name, 3, Heads(options=options))


def test_continuous_bernoulli_is_loaiza_ganem_and_cunninghams():
    p, x = 0.3, 0.8
    constant = 2 * math.atanh(1 - 2 * p) / (1 - 2 * p)
    got = make("continuous_bernoulli")(torch.logit(torch.tensor([p]))).log_prob(torch.tensor([x]))
    assert float(got) == pytest.approx(math.log(constant * p**x * (1 - p) ** (1 - x)), abs=1e-5)


def test_bernoulli_is_stable_and_sums_to_one():
    for logit in (-200.0, -1.0, 0.0, 200.0):
        both = [float(make("bernoulli")(torch.tensor([logit])).log_prob(torch.tensor([x]))) for x in (0.0, 1.0)]
        assert math.exp(both[0]) + math.exp(both[1]) == pytest.approx(1.0)
        assert all(math.isfinite(value) for value in both)


# ---- a user's class


@pytest.mark.parametrize("scale", ["row", "feature", "shared", 0.4])
@pytest.mark.parametrize(("cls", "name"), [(dist.Normal, "normal"), (dist.Laplace, "laplace")])
def test_a_class_is_the_family_of_its_name(cls, name, scale):
    mine, ours = from_class(cls, 3, Heads(scale)), make(name, 3, Heads(scale))
    raw, x = torch.randn(5, ours.width), torch.randn(5, 3)
    assert torch.equal(mine(raw).log_prob(x), ours(raw).log_prob(x))


@pytest.mark.parametrize(
    ("cls", "names"),
    [
        (dist.StudentT, ["df", "loc", "scale"]),
        (dist.NegativeBinomial, ["total_count", "logits"]),
        (dist.ZeroInflatedPoisson, ["rate", "gate_logits"]),
        (dist.ZeroInflatedNegativeBinomial, ["total_count", "logits", "gate_logits"]),
        (dist.Beta, ["concentration1", "concentration0"]),
        (dist.Geometric, ["logits"]),
        (dist.Weibull, ["scale", "concentration"]),
        (dist.Gumbel, ["loc", "scale"]),
        (dist.GammaPoisson, ["concentration", "rate"]),
    ],
)
def test_classes_get_their_links_from_their_constraints(cls, names):
    family = likelihood(columns("real", 2), cls)
    assert sorted(family.heads) == sorted(names) and family.width == 2 * len(names)
    raw = (5 * torch.randn(50, family.width)).clamp(-15, 15)  # beyond, float32 has probabilities of 1, refused by Pyro
    distribution = family(raw)
    for name in names:
        assert cls.arg_constraints[name].check(getattr(distribution.base_dist, name)).all()
    assert distribution.event_shape == (2,)


@pytest.mark.parametrize(
    ("cls", "match"),
    [
        (dist.Uniform, "parameter 'low' has no constraint"),
        (dist.Binomial, "parameter 'total_count' is"),
        (dist.MultivariateNormal, "MultivariateNormal, expected a distribution of single numbers"),
        (dist.Dirichlet, "Dirichlet, expected"),
        (dist.Categorical, "parameter 'logits' is"),
        (dist.ZeroInflatedDistribution, "parameter 'base_dist' has no constraint"),
        (torch.distributions.Normal, "expected a class of pyro.distributions"),
    ],
)
def test_classes_without_links_are_refused(cls, match):
    with pytest.raises(OptionError, match=match):
        likelihood(columns("real", 2), cls)


def test_a_constraint_with_another_bound_is_kept():
    class Shifted(dist.Normal):
        arg_constraints = {  # noqa: RUF012
            "loc": torch.distributions.constraints.interval(-2.0, 3.0),
            "scale": torch.distributions.constraints.greater_than(4.0),
        }

    entries = from_class(Shifted, 2, Heads())(torch.randn(100, 4) * 20).base_dist
    assert entries.loc.min() >= -2 and entries.loc.max() <= 3 and entries.scale.min() > 4


# ---- a choice a column


def test_one_choice_for_all_columns_is_that_family_alone():
    schema = columns("real", 2, likelihoods=("normal", "normal"))
    for choice in ("normal", {"x0": "normal", "x1": "normal"}, None):
        assert type(likelihood(schema, choice)) is Normal


def test_choices_by_column_are_grouped():
    schema = columns(("real", "count", "real", "categorical"))
    own = from_class(dist.Laplace, 1, Heads())
    family = likelihood(schema, {"x0": "normal", "x1": "poisson", "x2": "normal", "x3": "categorical"})
    assert isinstance(family, Mixed) and family.widths == [4, 1, 5]
    family = likelihood(schema, {"x0": dist.StudentT, "x1": "poisson", "x2": lambda d: own, "x3": "categorical"})
    assert family.width == 3 + 1 + 2 + 5 and any(part is own for part in family.families)
    assert family(torch.zeros(6, 11)).log_prob(torch.zeros(6, 4)).shape == (6,)


def test_options_reach_the_families_that_take_them():
    schema = columns(("real", "count"))
    family = likelihood(schema, {"x0": "student_t", "x1": "poisson"}, Heads(options={"df": 7.0, "rank": 3}))
    assert family(torch.zeros(3)).base_dist.parts[0].df == 7


def test_a_module_that_takes_its_numbers_apart_is_still_a_family():
    class Own(nn.Module):
        outputs = 2

        def forward(self, loc, raw):
            return dist.Normal(loc, raw.exp()).to_event(1)

    assert likelihood(columns("real", 3), lambda d: Own()).outputs == 2


@pytest.mark.parametrize(
    ("choice", "match"),
    [
        ("gaussian", "likelihood: got 'gaussian'"),
        (nn.Linear(1, 1), "expected a name"),
        (3, "expected a name"),
        (lambda d: 3, "expected a module with .outputs"),
        ({"x0": "normal"}, r"got columns \['x0'\], expected each of \['x0', 'x1'\]"),
        ({"x0": "normal", "x1": "categorical"}, "column 'x1': got no levels"),
        ({"x0": "normal", "x1": "full_normal"}, "column 'x1': got 'full_normal', a joint family"),
        ({"x0": "multinomial", "x1": "normal"}, "column 'x0': got 'multinomial', a joint family"),
        (None, "expected each of"),
    ],
)
def test_choices_that_cannot_be_are_refused(choice, match):
    with pytest.raises(OptionError, match=match):
        likelihood(columns("real", 2), choice)


def test_an_ordinal_column_needs_two_levels():
    with pytest.raises(OptionError, match="column 'x0': got 1 level"):
        make("ordinal", 1, levels=(("a",),))
    assert float(make("categorical", 1, levels=(("a",),))(torch.zeros(1)).log_prob(torch.zeros(1))) == 0


def test_every_likelihood_says_what_it_is_for():
    assert all(entry.text and entry.type in (*CONTINUOUS, *VALUES) for entry in LIKELIHOODS.values())
    assert Head().source == "row"


@pytest.mark.parametrize("logit", [-900.0, -40.0, -20.0, -0.6, -0.3, 0.0, 1e-4, 0.45, 2.0, 16.0, 77.0, 1000.0])
def test_a_continuous_bernoulli_is_a_density_at_any_logit(logit):
    """Mass, mean, variance and quantiles by quadrature on a grid that is fine at both ends."""
    p = ContinuousBernoulli(logits=torch.tensor(logit, dtype=torch.float64))
    end = torch.logspace(-9, math.log10(0.5), 20_001, dtype=torch.float64)
    x = torch.cat([torch.zeros(1).double(), end, (1 - end[:-1]).flip(0), torch.ones(1).double()])
    density = p.log_prob(x).exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-6)
    mean = torch.trapezoid(x * density, x)
    assert p.mean.item() == pytest.approx(mean.item(), abs=1e-6)
    assert p.variance.item() == pytest.approx(torch.trapezoid((x - mean) ** 2 * density, x).item(), abs=1e-6)
    cdf = torch.cumulative_trapezoid(density, x)
    u = torch.tensor([0.001, 0.3, 0.5, 0.9, 0.999], dtype=torch.float64)
    assert np.allclose(np.interp(p.icdf(u), x[1:], cdf), u, atol=2e-6)
    single = ContinuousBernoulli(logits=torch.tensor(logit))
    grid = torch.linspace(0, 1, 11)
    assert torch.allclose(single.log_prob(grid).double(), p.log_prob(grid.double()), rtol=1e-5, atol=1e-5)
    assert torch.allclose(single.mean.double(), p.mean, atol=1e-6)


def test_a_continuous_bernoulli_has_finite_gradients_everywhere():
    logits = torch.tensor([-1000.0, -20.0, -0.5, 0.0, 1e-8, 0.5, 20.0, 1000.0], requires_grad=True)
    p = ContinuousBernoulli(logits=logits)
    (p.log_prob(torch.tensor(0.3)) + p.mean + p.icdf(torch.tensor(0.2))).sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert torch.allclose(torch.autograd.grad(p.log_prob(torch.tensor(0.3)).sum(), logits)[0], 0.3 - p.mean, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 30, 10_000, 1_000_000])
def test_masses_of_large_counts_in_float32(count):
    """Against SciPy at the same parameters, which float32 has rounded: 1e-5 nats."""
    value, rate = torch.tensor(float(count)), torch.tensor(0.9 * count + 1)
    expected = stats.poisson(rate.item()).logpmf(count)
    assert Poisson(rate).log_prob(value).item() == pytest.approx(expected, rel=1e-6, abs=1e-5)
    total, logits = torch.tensor(5.5), torch.log(rate / 5.5)
    probability = 1 / (1 + math.exp(logits.item()))
    expected = stats.nbinom(5.5, probability).logpmf(count)
    assert NegativeBinomial(total, logits=logits).log_prob(value).item() == pytest.approx(expected, rel=1e-6, abs=1e-5)


def test_grey_logits_are_bounded_and_keep_a_gradient():
    raw = torch.tensor([-1000.0, -30.0, -8.0, -1.0, 0.0, 8.0, 30.0], requires_grad=True)
    logits = make("continuous_bernoulli", 7)(raw).base_dist.logits
    assert torch.equal(logits[2:6], raw[2:6]) and (logits.abs() <= LOGIT_BOUND).all() and logits[6] > 15.9
    logits.sum().backward()
    assert torch.allclose(raw.grad[2:6], torch.ones(4)) and 0 < raw.grad[1] < 0.1
