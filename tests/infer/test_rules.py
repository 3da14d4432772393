import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from scipy import special, stats
from torch import distributions

from ppl_vae.infer.noise import Keyed, draw, row_keys

N = 20_000
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
KEYS = row_keys(X, 3)


def keyed(family, draws=None, rows=slice(None), **options):
    """Draws of a family from the noise of the rows: (rows, ...), or (draws, rows, ...)."""

    def program():
        with pyro.plate("data", len(KEYS[rows]), dim=-1):
            return pyro.sample("z", family)

    with Keyed(KEYS[rows], **options):
        return program() if draws is None else pyro.plate("draws", draws, dim=-2)(program)()


def t(*values):
    return torch.tensor(values)


CORRELATED = t([1.0, 0.0], [0.8, 0.5])
MIXTURE = dist.MixtureSameFamily(
    dist.Categorical(t(0.3, 0.7)), dist.Normal(t([-2.0, 0.0], [1.0, 3.0]), t([1.0, 0.5], [0.5, 1.0])).to_event(1)
)
DIAGONAL = dist.MixtureOfDiagNormals(t([-2.0, 0.0], [1.0, 3.0]), t([1.0, 0.5], [0.5, 1.0]), t(0.3, 0.7).log())
MARGINALS = [
    lambda v: 0.3 * stats.norm.cdf(v, -2, 1) + 0.7 * stats.norm.cdf(v, 1, 0.5),
    lambda v: 0.3 * stats.norm.cdf(v, 0, 0.5) + 0.7 * stats.norm.cdf(v, 3, 1),
]

CONTINUOUS = {  # family, its marginal distribution function in each dimension
    "gamma": (dist.Gamma(t(0.1, 2.5), t(1.0, 3.0)).to_event(1), [stats.gamma(0.1).cdf, stats.gamma(2.5, 0, 1 / 3).cdf]),
    "gamma of many": (
        dist.Gamma(t(1.0, 500.0), t(2.0, 3.0)).to_event(1),
        [stats.expon(0, 0.5).cdf, stats.gamma(500, 0, 1 / 3).cdf],
    ),
    "chi2": (dist.Chi2(t(3.0, 5.0)).to_event(1), [stats.chi2(3).cdf, stats.chi2(5).cdf]),
    "inverse gamma": (
        dist.InverseGamma(t(3.0, 5.0), t(1.0, 2.0)).to_event(1),
        [stats.invgamma(3).cdf, stats.invgamma(5, 0, 2).cdf],
    ),
    "beta": (dist.Beta(t(0.5, 3.0), t(2.0, 1.5)).to_event(1), [stats.beta(0.5, 2).cdf, stats.beta(3, 1.5).cdf]),
    "dirichlet": (dist.Dirichlet(t(0.5, 2.0, 1.0)), [stats.beta(a, 3.5 - a).cdf for a in (0.5, 2.0, 1.0)]),
    "student t": (
        dist.StudentT(t(1.5, 8.0), t(1.0, -1.0), t(2.0, 0.5)).to_event(1),
        [stats.t(1.5, 1, 2).cdf, stats.t(8, -1, 0.5).cdf],
    ),
    "low rank": (
        dist.LowRankMultivariateNormal(t(1.0, 2.0), t([1.0], [0.8]), t(0.1, 0.2)),
        [stats.norm(1, 1.1**0.5).cdf, stats.norm(2, 0.84**0.5).cdf],
    ),
    "normal": (
        dist.MultivariateNormal(t(1.0, 2.0), scale_tril=CORRELATED),
        [stats.norm(1, 1).cdf, stats.norm(2, 0.89**0.5).cdf],
    ),
    "mixture": (MIXTURE, MARGINALS),
    "mixture of normals": (DIAGONAL, MARGINALS),
    "mixture of numbers": (
        dist.MixtureSameFamily(dist.Categorical(t(0.3, 0.7)), dist.Normal(t(-2.0, 1.0), t(1.0, 0.5))),
        MARGINALS[:1],
    ),
    "log-normal": (
        dist.LogNormal(t(0.0, 1.0), t(0.5, 0.2)).to_event(1),
        [stats.lognorm(0.5).cdf, stats.lognorm(0.2, 0, math.e).cdf],
    ),
    "von mises": (
        dist.VonMises(t(0.0, 1.0), t(0.5, 60.0)).to_event(1),
        [stats.vonmises(0.5).cdf, stats.vonmises(60, 1).cdf],
    ),
    "uniform": (dist.Uniform(t(0.0, -1.0), t(1.0, 3.0)).to_event(1), [stats.uniform.cdf, stats.uniform(-1, 4).cdf]),
    "continuous bernoulli": (
        dist.ContinuousBernoulli(t(0.2, 0.9)).to_event(1),
        [lambda v: dist.ContinuousBernoulli(t(0.2)).cdf(torch.as_tensor(v)).numpy()],
    ),
    "expanded": (
        ExpandedDistribution(dist.Gamma(t(2.0, 3.0), t(1.0, 1.0)).to_event(1)),
        [stats.gamma(2).cdf, stats.gamma(3).cdf],
    ),
}
INDEPENDENT = set(CONTINUOUS) - {
    "dirichlet",
    "low rank",
    "normal",
    "mixture",
    "mixture of normals",
    "mixture of numbers",
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_draws_follow_their_family(name):
    """About 35 Kolmogorov-Smirnov tests at 1e-4 and 11 correlations of ranks at 5 standard errors."""
    family, marginals = CONTINUOUS[name]
    z = keyed(family, draws=2, rows=slice(N // 2))
    assert z.shape == (2, N // 2, *family.event_shape) and z.dtype == torch.float32
    z = z.reshape(N, -1).double().numpy()
    for column, cdf in zip(z.T, marginals):
        assert stats.kstest(column, cdf).pvalue > 1e-4
    if name in INDEPENDENT:
        assert abs(stats.spearmanr(*z.T).statistic) * N**0.5 < 5
    assert abs(stats.spearmanr(z[: N // 2, 0], z[N // 2 :, 0]).statistic) * (N / 2) ** 0.5 < 5  # two draws of a row


@pytest.mark.parametrize("name", ["low rank", "mixture", "mixture of normals"])
def test_joint_draws_have_their_covariance(name):
    """Within 5 standard errors, of the mean of the product of two deviations."""
    family, _ = CONTINUOUS[name]
    z = keyed(family).double().numpy()
    exact = 0.8 if name == "low rank" else 0.3 * 0.7 * 3 * 3
    products = (z[:, 0] - float(family.mean[0] if name != "mixture of normals" else 0.1)) * (
        z[:, 1] - float(family.mean[1] if name != "mixture of normals" else 2.1)
    )
    assert abs(products.mean() - exact) < 5 * products.std() / N**0.5


DISCRETE = {
    "bernoulli": (dist.Bernoulli(t(0.1, 0.7)).to_event(1), [stats.bernoulli(0.1).pmf, stats.bernoulli(0.7).pmf]),
    "categorical": (
        dist.Categorical(t([0.1, 0.2, 0.7], [0.5, 0.0, 0.5])).to_event(1),
        [t(0.1, 0.2, 0.7).numpy(), t(0.5, 0, 0.5).numpy()],
    ),
    "one-hot": (dist.OneHotCategorical(t(0.1, 0.2, 0.7)), [stats.bernoulli(p).pmf for p in (0.1, 0.2, 0.7)]),
    "straight through": (
        dist.OneHotCategoricalStraightThrough(t(0.1, 0.2, 0.7)),
        [stats.bernoulli(p).pmf for p in (0.1, 0.2, 0.7)],
    ),
    "relaxed straight through": (
        dist.RelaxedOneHotCategoricalStraightThrough(t(0.5), t(0.1, 0.2, 0.7)),
        [stats.bernoulli(p).pmf for p in (0.1, 0.2, 0.7)],
    ),
    "relaxed coin straight through": (
        dist.RelaxedBernoulliStraightThrough(t(0.5), t(0.1, 0.7)).to_event(1),
        [stats.bernoulli(p).pmf for p in (0.1, 0.7)],
    ),
    "ordinal": (
        dist.OrderedLogistic(t(0.0), t(-1.0, 1.0)),
        [special.expit(np.array([-1, 1, np.inf])) - special.expit(np.array([-np.inf, -1, 1]))],
    ),
    "poisson": (dist.Poisson(t(0.3, 20.0)).to_event(1), [stats.poisson(0.3).pmf, stats.poisson(20).pmf]),
    "binomial": (dist.Binomial(t(10, 3), t(0.3, 0.9)).to_event(1), [stats.binom(10, 0.3).pmf, stats.binom(3, 0.9).pmf]),
    "negative binomial": (
        dist.NegativeBinomial(t(0.5, 4.0), t(0.7, 0.4)).to_event(1),
        [stats.nbinom(0.5, 0.3).pmf, stats.nbinom(4, 0.6).pmf],
    ),
    "zero-inflated": (
        dist.ZeroInflatedPoisson(t(2.0, 5.0), gate=t(0.4, 0.1)).to_event(1),
        [
            lambda k: 0.4 * (k == 0) + 0.6 * stats.poisson(2).pmf(k),
            lambda k: 0.1 * (k == 0) + 0.9 * stats.poisson(5).pmf(k),
        ],
    ),
    "multinomial": (dist.Multinomial(8, t(0.2, 0.3, 0.5)), [stats.binom(8, p).pmf for p in (0.2, 0.3, 0.5)]),
}


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_draws_follow_their_family(name):
    """About 27 chi-square tests at 1e-4, values of fewer than 5 expected draws together in one cell."""
    family, masses = DISCRETE[name]
    z = keyed(family).reshape(N, -1)
    for column, mass in zip(z.T.double().numpy(), masses):
        counts = np.bincount(column.astype(int))
        assert np.array_equal(column, column.astype(int))
        expected = N * (mass(np.arange(len(counts))) if callable(mass) else mass[: len(counts)])
        kept = expected >= 5
        assert not counts[expected == 0].any()
        counts, expected = np.append(counts[kept], N - counts[kept].sum()), np.append(expected[kept], 0.0)
        expected[-1] = N - expected.sum()
        cells = slice(None) if expected[-1] > 1 else slice(-1)
        freedom = len(expected[cells]) - 1
        assert stats.chi2(freedom).sf(((counts - expected)[cells] ** 2 / expected[cells]).sum()) > 1e-4


RELAXED = {
    "coin": dist.RelaxedBernoulli(t(0.5), logits=t(-1.0, 2.0)).to_event(1),
    "simplex": dist.RelaxedOneHotCategorical(t(0.5), logits=t(-1.0, 2.0)),
}


def test_relaxed_draws_follow_their_family():
    """The logit of a relaxed coin is logistic, and so is that of a simplex of two; four tests at 1e-4."""
    coins = torch.logit(keyed(RELAXED["coin"]).double()) * 0.5 - t(-1.0, 2.0)
    pairs = torch.logit(keyed(RELAXED["simplex"])[:, 0].double()) * 0.5 + 3.0
    for logits in (*coins.T, pairs):
        assert stats.kstest(logits.clamp(-15, 15).numpy(), stats.logistic.cdf).pvalue > 1e-4  # float32 ends near 16
    three = keyed(dist.RelaxedOneHotCategorical(t(0.5), t(0.1, 0.2, 0.7))).argmax(-1)
    assert stats.chisquare(np.bincount(three), N * np.array([0.1, 0.2, 0.7])).pvalue > 1e-4


def test_a_logistic_normal_has_one_number_less_than_dimensions():
    """Its inverse is normal: two tests at 1e-4, and one correlation."""
    family = dist.LogisticNormal(t(0.5, -0.5), t(1.0, 0.3))
    z = keyed(family)
    assert z.shape == (N, 3)
    x = family.transforms[0].inv(z.double()).numpy()
    assert stats.kstest(x[:, 0], stats.norm(0.5, 1).cdf).pvalue > 1e-4
    assert stats.kstest(x[:, 1], stats.norm(-0.5, 0.3).cdf).pvalue > 1e-4
    assert abs(np.corrcoef(x.T)[0, 1]) * N**0.5 < 5


def test_a_projected_normal_has_its_direction():
    """Two tests of angles at 1e-4: uniform at concentration 0, else as Pyro's own draws."""
    z = keyed(dist.ProjectedNormal(torch.zeros(2)))
    assert stats.kstest(torch.atan2(z[:, 1], z[:, 0]).numpy(), stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-4
    torch.manual_seed(0)
    family = dist.ProjectedNormal(t(1.0, -2.0, 0.5))
    assert stats.ks_2samp(keyed(family)[:, 0].numpy(), family.sample((N,))[:, 0].numpy()).pvalue > 1e-4


# ---- gradients: their means over draws against the gradient of an expectation in closed form


def leaves(*values, dtype=torch.float32):
    """Parameters of their own for every row, so that each row has a gradient."""
    return [torch.tensor(v, dtype=dtype).expand(N, *np.shape(v)).clone().requires_grad_() for v in values]


def agree(family, function, parameters, exact):
    """Mean gradients of E[function(z)] within 5 standard errors (6e-7 an entry) of the exact ones."""
    z = keyed(family)
    for gradient, expected in zip(torch.autograd.grad(function(z).sum(), parameters), exact):
        gradient, expected = gradient.double(), torch.as_tensor(expected).double()
        error = gradient.std(0) / N**0.5 + 1e-6
        assert torch.all((gradient.mean(0) - expected).abs() < 5 * error), (gradient.mean(0), expected, error)


@pytest.mark.parametrize("a", [0.3, 1.0, 4.0, 50.0])
def test_gradients_of_a_gamma(a):
    p = leaves(a, 2.0)
    agree(dist.Gamma(*p), lambda z: z, p, [1 / 2.0, -a / 4.0])
    agree(dist.Gamma(*p), torch.log, p, [special.polygamma(1, a), -1 / 2.0])


def test_gradients_of_a_gamma_where_it_is_near_0():
    """3 % of the draws are below 1e-30, where the gradient is that of the tail."""
    p = leaves(0.05, 1.0, dtype=torch.float64)
    assert 0.02 < (keyed(dist.Gamma(*p)) < 1e-30).double().mean() < 0.04
    agree(dist.Gamma(*p), torch.log, p, [special.polygamma(1, 0.05), -1.0])


def test_each_gradient_of_a_gamma_is_that_of_its_quantile():
    """By finite differences; torch's approximation of the implicit gradient is good to 1e-3."""
    a = torch.tensor([0.001, 0.02, 0.3, 2.0, 9.0, 80.0], dtype=torch.float64).expand(1000, 6).clone().requires_grad_()
    u, h = torch.linspace(0.02, 0.98, 1000, dtype=torch.float64)[:, None].expand(1000, 6), 1e-5

    def z(concentration):
        family = dist.Dirichlet(torch.stack([concentration, torch.full_like(concentration, 0.7)], -1))
        return torch.logit(draw(family, lambda *shape: torch.stack([u, torch.full_like(u, 0.5)], -1))[..., 0])

    value = z(a)
    (gradient,) = torch.autograd.grad(value.sum(), a)
    inside = (value > -600) & (value < 30)  # the rest is clamped, or rounds
    finite = (z(a * (1 + h)) - z(a * (1 - h))) / (2 * h * a)
    assert inside.double().mean() > 0.85
    assert torch.allclose(gradient[inside], finite.detach()[inside], rtol=3e-3, atol=1e-5)


def test_gradients_of_a_beta():
    a, b = 0.7, 2.0
    p = leaves(a, b)
    agree(dist.Beta(*p), lambda z: z, p, [b / (a + b) ** 2, -a / (a + b) ** 2])
    trigamma = special.polygamma(1, [a, a + b])
    agree(dist.Beta(*p), torch.log, p, [trigamma[0] - trigamma[1], -trigamma[1]])


def test_gradients_of_a_dirichlet():
    a, weight = np.array([0.5, 2.0, 1.0]), np.array([1.0, -2.0, 0.5])
    p = leaves(a.tolist())
    exact = (weight * a.sum() - weight @ a) / a.sum() ** 2
    agree(dist.Dirichlet(*p), lambda z: z @ torch.tensor(weight).float(), p, [exact])


def test_gradients_of_a_student_t():
    p = leaves(12.0, 1.0, 2.0)
    agree(dist.StudentT(*p), lambda z: z**2, p, [4 * -2 / 10**2, 2.0, 4 * 12 / 10])


def test_gradients_of_a_low_rank_normal():
    w, factor = np.array([1.0, -2.0, 0.5]), np.array([[1.0, 0.0], [0.8, -0.3], [0.2, 0.5]])
    p = leaves([0.0, 1.0, 2.0], factor.tolist(), [0.1, 0.2, 0.3])
    exact = [2 * (w @ [0.0, 1.0, 2.0]) * w, 2 * np.outer(w, w) @ factor, w**2]
    agree(dist.LowRankMultivariateNormal(*p), lambda z: (z @ torch.tensor(w).float()) ** 2, p, exact)


def test_gradients_of_a_mixture_of_normals():
    probs, locs, scales = np.array([0.3, 0.7]), np.array([[-1.0, 0.0], [1.0, 0.5]]), np.array([[1.0, 0.5], [0.5, 1.0]])
    p = leaves(locs.tolist(), scales.tolist(), np.log(probs).tolist())
    moments = (locs**2 + scales**2).sum(1)
    exact = [probs[:, None] * 2 * locs, probs[:, None] * 2 * scales, probs * (moments - probs @ moments)]
    agree(dist.MixtureOfDiagNormals(*p), lambda z: (z**2).sum(-1), p, exact)


def test_a_family_without_a_pathwise_gradient_gives_none():
    logits = torch.zeros(N, 2, requires_grad=True)
    loc = torch.zeros(N, 2, requires_grad=True)
    for family in (
        dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(loc, 1.0)),
        dist.VonMises(loc[:, 0], 1.0),
        dist.NegativeBinomial(loc[:, 0].exp(), logits=logits[:, 0]),
        dist.OneHotCategorical(logits=logits),
    ):
        assert not family.has_rsample and not keyed(family).requires_grad
    for family in (
        dist.OneHotCategoricalStraightThrough(logits=logits),
        dist.RelaxedOneHotCategoricalStraightThrough(t(0.5), logits=logits),
        dist.RelaxedBernoulliStraightThrough(t(0.5), logits=logits).to_event(1),
    ):
        z = keyed(family)
        (gradient,) = torch.autograd.grad(z[:, 0].sum(), logits)
        assert (gradient[:, 0] > 0).float().mean() > 0.9 and torch.isfinite(family.log_prob(z)).all()


EXTREME = {  # at three parameters a row, the float32 ends of each family
    "gamma": lambda p: dist.Gamma(p.exp() * 1e-3, t(1.0)).to_event(1),
    "beta": lambda p: dist.Beta(p.exp() * 1e-2, t(0.01)).to_event(1),
    "dirichlet": lambda p: dist.Dirichlet(p.exp() * 1e-3),
    "student t": lambda p: dist.StudentT(p.exp() + 0.5, p, 1.0).to_event(1),
    "relaxed coin": lambda p: dist.RelaxedBernoulli(t(0.05), logits=20 * p).to_event(1),
    "relaxed simplex": lambda p: dist.RelaxedOneHotCategorical(t(0.05), logits=20 * p),
    "relaxed coin straight through": lambda p: dist.RelaxedBernoulliStraightThrough(t(0.05), logits=20 * p).to_event(1),
    "relaxed straight through": lambda p: dist.RelaxedOneHotCategoricalStraightThrough(t(0.05), logits=20 * p),
    "mixture of normals": lambda p: dist.MixtureOfDiagNormals(
        torch.stack([p, -p], 1).repeat(1, 1, 50), p.exp()[:, None].repeat(1, 2, 50), p[:, :2]
    ),
    "mixture of equals": lambda p: dist.MixtureOfDiagNormals(
        torch.stack([p, p], 1), torch.ones(len(p), 2, 3), p[:, :2]
    ),
    "low rank": lambda p: dist.LowRankMultivariateNormal(p, p[..., None], p.exp() * 1e-3),
    "uniform": lambda p: dist.Uniform(p, p + 1e-3).to_event(1),
}


@pytest.mark.parametrize("name", EXTREME)
def test_draws_at_the_ends_have_finite_densities_and_gradients(name):
    p = X[:500].clone().requires_grad_()
    family = EXTREME[name](p)
    z = keyed(family, rows=slice(500))
    density = family.log_prob(z)
    assert family.support.check(z.detach()).all() and torch.isfinite(density).all()
    (gradient,) = torch.autograd.grad(density.sum() + z.sum(), p)
    assert torch.isfinite(gradient).all()


def test_draws_stay_inside_their_interval_at_the_first_and_last_noise():
    u = torch.tensor([2.0**-53, 0.5, 1 - 2.0**-53], dtype=torch.float64)
    family = dist.Uniform(t(-1.0, 0.0, -1.0), t(3.0, 1.0, 3.0))
    assert torch.isfinite(family.log_prob(draw(family, lambda: u))).all()
    assert draw(dist.VonMises(torch.full((3,), 3.0), 0.5), lambda: u).abs().max() <= math.pi


BY_ROW = {
    **EXTREME,
    "mixture": lambda p: dist.MixtureSameFamily(
        dist.Categorical(logits=p), dist.Gamma(p.exp()[..., None], 1.0).to_event(1)
    ),
    "projected normal": lambda p: dist.ProjectedNormal(p),
    "logistic normal": lambda p: dist.LogisticNormal(p, p.exp()),
    "one-hot": lambda p: dist.OneHotCategorical(logits=p),
    "categorical": lambda p: dist.Categorical(logits=p),
    "bernoulli": lambda p: dist.Bernoulli(logits=p).to_event(1),
    "multinomial": lambda p: dist.Multinomial(4, logits=p),
    "poisson": lambda p: dist.Poisson(p.exp()).to_event(1),
    "negative binomial": lambda p: dist.NegativeBinomial(p.exp(), logits=p).to_event(1),
    "zero-inflated": lambda p: dist.ZeroInflatedPoisson(p.exp(), gate_logits=p).to_event(1),
    "von mises": lambda p: dist.VonMises(p, p.exp()).to_event(1),
    "masked": lambda p: dist.Beta(p.exp(), 1.0).mask(p > 0).to_event(1),
}


@pytest.mark.parametrize("name", BY_ROW)
def test_a_rows_draw_is_its_own_whatever_the_company_and_the_number_of_draws(name):
    make, p = BY_ROW[name], X[:40]
    z = keyed(make(p), draws=5, rows=slice(40))
    assert torch.equal(keyed(make(p[17:18]), draws=5, rows=slice(17, 18)), z[:, 17:18])
    assert torch.equal(keyed(make(p[17:40]), draws=2, rows=slice(17, 40), first=3), z[3:, 17:])


def test_a_rule_is_a_function_of_uniform_noise_of_any_size():
    """What a user writes; under an event dimension, a mask and an expansion it gets numbers of its own shape."""

    class Sum(dist.Normal):
        """The sum of a number and of the largest of four others; two calls."""

    shapes = []

    @draw.register
    def _(family: Sum, uniform):
        first, four = uniform(), uniform(4)
        shapes.append((first.shape, four.shape))
        return first + four.amax(-1)

    family = Sum(torch.zeros(N, 2), 1.0)
    z = keyed(family.mask(torch.ones(2).bool()).to_event(1), draws=1)
    assert shapes == [((1, N, 2), (1, N, 2, 4))] and len(z.unique()) == 2 * N
    one, largest = stats.uniform, stats.beta(4, 1)  # their sum, through its mean and variance at 5 standard errors
    assert abs(float(z.mean()) - one.mean() - largest.mean()) < 5 * float(z.std()) / (2 * N) ** 0.5
    assert float(z.var()) == pytest.approx(one.var() + largest.var(), rel=0.03)
    assert distributions.Normal in Sum.__mro__
