"""A draw of each family as a function of its parameters and of uniform noise: one rule a family.

Continuous families are drawn with gradients to their parameters. Noise is float64; a draw has the parameters' type.
"""

import math
from collections.abc import Callable
from functools import singledispatch
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions.diag_normal_mixture import _MixDiagNormalSample
from pyro.distributions.relaxed_straight_through import QuantizeBernoulli, QuantizeCategorical
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.ops.tensor_utils import safe_normalize
from scipy import special
from torch import Tensor, distributions
from torch.distributions.utils import clamp_probs
from torch.nn.functional import one_hot

from ppl_vae.model.flows import FlowDistribution
from ppl_vae.model.mixed import Columnwise
from ppl_vae.model.mixture import Mixture
from ppl_vae.model.sphere import PowerSpherical, UniformSphere
from ppl_vae.model.weights import ManyNormals

Uniform = Callable[..., Tensor]


@singledispatch
def draw(distribution: Any, uniform: Uniform) -> Tensor | None:
    """A draw from `distribution`, made of noise; None for a family without a rule. Register a rule to add one.

    Without a rule of its own a family is drawn by its inverse cumulative distribution function, if it has one.

    Args:
        uniform: gives the noise, in (0, 1), fresh numbers each call: `uniform()` of the shape of a draw, batch + event;
            `uniform(m)` of shape batch + (m,), `uniform(m, r)` of batch + (m, r) for a rule that needs another size.

    Example:
        >>> rule = draw.register(dist.Geometric, lambda d, uniform: (uniform().log() / (-d.probs).log1p()).floor())
        >>> draw(dist.Geometric(torch.tensor([0.5, 0.5])), lambda *shape: torch.tensor([0.4, 0.9]).double()).tolist()
        [1.0, 0.0]
    """
    try:
        return distribution.icdf(uniform()).to(_dtype(distribution))
    except (NotImplementedError, AttributeError):
        return None


def base(fn: Any) -> Any:
    """The family under event dimensions, masks and expansion."""
    while isinstance(fn, distributions.Independent | dist.MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
    return fn


def _dtype(distribution: Any) -> torch.dtype:
    """That of the parameters."""
    dtypes = [v.dtype for v in vars(distribution).values() if isinstance(v, Tensor) and v.is_floating_point()]
    return dtypes[0] if dtypes else torch.get_default_dtype()


def _within(outer: Any, inner: Any, uniform: Uniform) -> Uniform:
    """The noise of `outer` as the rule of a distribution inside it asks for it.

    What is a batch dimension inside may be an event dimension outside: its numbers come as part of the size.
    """
    more = tuple(inner.batch_shape[len(outer.batch_shape) :])

    def inside(*shape: int) -> Tensor:
        shape = more + (shape or tuple(inner.event_shape))
        if shape == tuple(outer.event_shape):
            return uniform()
        return uniform(*shape) if shape else uniform(1)[..., 0]

    return inside


# ---- wrappers


@draw.register(distributions.Independent)
@draw.register(dist.MaskedDistribution)
@draw.register(ExpandedDistribution)
def _(wrapped: Any, uniform: Uniform) -> Tensor | None:
    return draw(wrapped.base_dist, _within(wrapped, wrapped.base_dist, uniform))


@draw.register
def _(transformed: distributions.TransformedDistribution, uniform: Uniform) -> Tensor | None:
    value = draw(transformed.base_dist, _within(transformed, transformed.base_dist, uniform))
    for transform in transformed.transforms if value is not None else ():
        value = transform(value)
    return value


@draw.register
def _(delta: dist.Delta, uniform: Uniform) -> Tensor:
    return delta.v


# ---- normals


@draw.register
def _(normal: dist.Normal, uniform: Uniform) -> Tensor:
    return normal.loc + normal.scale * torch.special.ndtri(uniform()).to(normal.loc.dtype)


@draw.register
def _(many: ManyNormals, uniform: Uniform) -> Tensor:
    """By Box & Muller (1958), from the halves of a number's 52 bits: a net's weights may cost more to draw than to use."""
    size = many.event_shape.numel()
    high = uniform((size + 1) // 2) * 2**26
    angle = high.floor()
    radius = (high - angle).to(_dtype(many.base_dist)).log_().mul_(-2).sqrt_()  # of a number in (0, 1), never 0
    angle = angle.to(radius.dtype).mul_(2 * math.pi / 2**26)
    noise = torch.cat([radius * angle.cos(), radius * angle.sin()], -1)[..., :size]
    return many.base_dist.loc + many.base_dist.scale * noise.reshape(many.batch_shape + many.event_shape)


@draw.register
def _(normal: distributions.MultivariateNormal, uniform: Uniform) -> Tensor:
    noise = torch.special.ndtri(uniform()).to(normal.loc.dtype)
    return normal.loc + (normal.scale_tril @ noise[..., None])[..., 0]


@draw.register
def _(normal: distributions.LowRankMultivariateNormal, uniform: Uniform) -> Tensor:
    rank = normal.cov_factor.shape[-1]
    noise = torch.special.ndtri(uniform(rank + normal.event_shape[0])).to(normal.loc.dtype)
    factors, own = noise[..., :rank, None], noise[..., rank:]
    return normal.loc + (normal.cov_factor @ factors)[..., 0] + normal.cov_diag.sqrt() * own


@draw.register
def _(direction: dist.ProjectedNormal, uniform: Uniform) -> Tensor:
    noise = torch.special.ndtri(uniform()).to(direction.concentration.dtype)
    return safe_normalize(direction.concentration + noise)


@draw.register
def _(t: distributions.StudentT, uniform: Uniform) -> Tensor:
    noise = torch.special.ndtri(uniform())
    half = t.df.double() / 2
    ratio = noise * (0.5 * (half.log() - _log_gamma(half, uniform()))).exp()
    return t.loc + t.scale * ratio.to(t.loc.dtype)


# ---- gammas


class _LogGamma(torch.autograd.Function):
    """Log of a standard gamma variate: by inversion, with the implicit gradient of Figurnov et al. 2018, eq. 5.

    Where the variate is far below 1 its distribution function is u = x^a / (a Gamma(a)), which has a log at any size.
    """

    @staticmethod
    def forward(ctx: Any, concentration: Tensor, u: Tensor) -> Tensor:
        a = concentration.cpu()
        x = torch.as_tensor(special.gammaincinv(a.numpy(), u.cpu().numpy()))
        log_x = torch.where(x < 1e-30, (u.cpu().log() + torch.lgamma(a + 1)) / a, x.log())
        ctx.save_for_backward(a, x, log_x)
        return log_x.to(u.device)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        a, x, log_x = ctx.saved_tensors
        tail = (torch.digamma(a + 1) - log_x) / a
        slope = torch.where(x < 1e-30, tail, torch._standard_gamma_grad(a, x.clamp(min=1e-30)) / x)
        return grad * slope.to(grad.device), None


def _log_gamma(concentration: Tensor, u: Tensor) -> Tensor:
    """Log of Gamma(concentration, 1) at noise u, float64: small concentrations give numbers that only a log can hold."""
    return _LogGamma.apply(*torch.broadcast_tensors(concentration.double(), u))


def _above(value: Tensor, like: Tensor) -> Tensor:
    """float64 as the type of another, and above 0, as densities there need it."""
    return value.to(like.dtype).clamp(min=torch.finfo(like.dtype).tiny)


@draw.register
def _gamma(gamma: distributions.Gamma, uniform: Uniform) -> Tensor:
    return _above((_log_gamma(gamma.concentration, uniform()) - gamma.rate.double().log()).exp(), gamma.rate)


@draw.register
def _(simplex: distributions.Dirichlet, uniform: Uniform) -> Tensor:
    shares = _log_gamma(simplex.concentration, uniform()).softmax(-1)
    return _above(shares, simplex.concentration)


@draw.register
def _(beta: distributions.Beta, uniform: Uniform) -> Tensor:
    both = beta._dirichlet.concentration
    share = _log_gamma(both, uniform(2)).softmax(-1)[..., 0]
    return _above(share, both).clamp(max=1 - torch.finfo(both.dtype).eps / 2)


# ---- intervals


@draw.register
def _(interval: distributions.Uniform, uniform: Uniform) -> Tensor:
    last = torch.nextafter(interval.high.detach(), interval.low.detach())  # rounding may reach the open end
    return torch.minimum(interval.icdf(uniform()).to(last.dtype), last)


@draw.register
def _(angle: distributions.VonMises, uniform: Uniform) -> Tensor:
    from scipy import stats  # slow to import

    u, concentration = uniform(), angle.concentration.detach().double().cpu().numpy()
    low, high = torch.full_like(u, -math.pi), torch.full_like(u, math.pi)
    for _ in range(50):  # halvings: down to float64
        middle = (low + high) / 2
        above = torch.as_tensor(stats.vonmises.cdf(middle.cpu().numpy(), concentration), device=u.device) > u
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (angle.loc + low.to(angle.loc.dtype) + math.pi) % (2 * math.pi) - math.pi


# ---- discrete


@draw.register
def _(coin: distributions.Bernoulli, uniform: Uniform) -> Tensor:
    return (uniform() < coin.probs).to(coin.probs.dtype)


def _code(probs: Tensor, u: Tensor) -> Tensor:
    """The category at noise u (...), by inversion; probs (..., categories)."""
    below = probs.detach().double().cumsum(-1)
    return (u[..., None] * below[..., -1:] >= below[..., :-1]).sum(-1)


@draw.register
def _(categories: distributions.Categorical, uniform: Uniform) -> Tensor:
    return _code(categories.probs, uniform())


@draw.register
def _one_hot(categories: distributions.OneHotCategorical, uniform: Uniform) -> Tensor:
    code = _code(categories.probs, uniform(1)[..., 0])
    return one_hot(code, categories.event_shape[0]).to(categories.probs.dtype)


@draw.register
def _(categories: distributions.OneHotCategoricalStraightThrough, uniform: Uniform) -> Tensor:
    return _one_hot(categories, uniform) + (categories.probs - categories.probs.detach())


@draw.register
def _(counts: distributions.Multinomial, uniform: Uniform) -> Tensor:
    codes = _code(counts.probs[..., None, :], uniform(counts.total_count))
    return one_hot(codes, counts.event_shape[0]).sum(-2).to(counts.probs.dtype)


def _count(cdf: Callable[..., np.ndarray], high: Tensor, u: Tensor, *parameters: Tensor) -> Tensor:
    """Smallest whole number, at most `high`, whose distribution function reaches the noise: by bisection, exact."""
    noise, *numbers = (p.detach().double().cpu().numpy() for p in (u, *parameters))
    most = np.broadcast_to(high.detach().double().cpu().numpy(), noise.shape)
    least = np.full_like(most, -1.0)
    while (most - least > 1).any():
        middle = np.floor((least + most) / 2)
        reached = cdf(middle, *numbers) >= noise
        least, most = np.where(reached, least, middle), np.where(reached, middle, most)
    return torch.tensor(most).to(u.device, parameters[-1].dtype)


def _poisson(rate: Tensor, u: Tensor) -> Tensor:
    return _count(special.pdtr, (rate.double() + 12 * rate.double().sqrt() + 40).ceil(), u, rate)


@draw.register
def _(counts: distributions.Poisson, uniform: Uniform) -> Tensor:
    return _poisson(counts.rate, uniform())


@draw.register
def _(counts: distributions.NegativeBinomial, uniform: Uniform) -> Tensor:
    return _poisson(_gamma(counts._gamma, uniform), uniform())


@draw.register
def _(counts: distributions.Binomial, uniform: Uniform) -> Tensor:
    n = counts.total_count
    return _count(lambda k, n, p: special.betaincc(k + 1, n - k, p), n, uniform(), n, counts.probs)


@draw.register
def _(inflated: dist.ZeroInflatedDistribution, uniform: Uniform) -> Tensor | None:
    value = draw(inflated.base_dist, uniform)
    return None if value is None else value * (uniform() >= inflated.gate)


@draw.register
def _(columns: Columnwise, uniform: Uniform) -> Tensor | None:
    axis = len(columns.batch_shape) - 1
    own = zip(columns.parts, columns.split_columns())
    drawn = [draw(part, lambda *shape, at=at: uniform(*shape).index_select(axis, at)) for part, at in own]
    known = [value for value in drawn if value is not None]
    return columns.join(known) if len(known) == len(drawn) else None


# ---- relaxed


@draw.register
def _logit(relaxed: distributions.relaxed_bernoulli.LogitRelaxedBernoulli, uniform: Uniform) -> Tensor:
    return (relaxed.logits + torch.logit(uniform()).to(relaxed.logits.dtype)) / relaxed.temperature


@draw.register
def _(relaxed: dist.RelaxedBernoulliStraightThrough, uniform: Uniform) -> Tensor:
    return QuantizeBernoulli.apply(clamp_probs(_logit(relaxed.base_dist, uniform).sigmoid()))


@draw.register
def _log_shares(relaxed: distributions.relaxed_categorical.ExpRelaxedCategorical, uniform: Uniform) -> Tensor:
    gumbel = -torch.log(-torch.log(uniform()))
    return ((relaxed.logits + gumbel) / relaxed.temperature).log_softmax(-1).to(relaxed.logits.dtype)


@draw.register
def _shares(relaxed: distributions.RelaxedOneHotCategorical, uniform: Uniform) -> Tensor:
    return _above(_log_shares(relaxed.base_dist, uniform).exp(), relaxed.logits)


@draw.register
def _(relaxed: dist.RelaxedOneHotCategoricalStraightThrough, uniform: Uniform) -> Tensor:
    return QuantizeCategorical.apply(clamp_probs(_shares(relaxed, uniform)))


# ---- mixtures


@draw.register
def _(mixture: distributions.MixtureSameFamily, uniform: Uniform) -> Tensor | None:
    code = _code(mixture.mixture_distribution.probs, uniform(1)[..., 0])
    family = mixture.component_distribution
    value = draw(family, _within(mixture, family, uniform))
    return None if value is None else _pick(value, code, len(mixture.event_shape))


class _MixtureOfDiagNormals(_MixDiagNormalSample):
    """Pyro's pathwise gradient (Jankowiak & Karaletsos 2019) at a draw made elsewhere."""

    @staticmethod
    def forward(ctx: Any, locs: Tensor, scales: Tensor, logits: Tensor, probs: Tensor, _: None, z: Tensor) -> Tensor:
        apart = 1e-9 * torch.arange(locs.shape[-2], device=z.device)[:, None]  # Pyro divides by the distance of locs
        ctx.save_for_backward(z, scales, locs + apart, logits, probs)
        return z.clone()


@draw.register
def _(mixture: dist.MixtureOfDiagNormals, uniform: Uniform) -> Tensor:
    noise = torch.special.ndtri(uniform())
    code = _code(mixture.probs, uniform(1)[..., 0])
    parameters = [p.double() for p in (mixture.locs, mixture.coord_scale, mixture.component_logits, mixture.probs)]
    loc, scale = (_pick(p.detach(), code, 1) for p in parameters[:2])  # float64: densities underflow in the gradient
    return _MixtureOfDiagNormals.apply(*parameters, None, loc + scale * noise).to(mixture.locs.dtype)


def _pick(values: Tensor, code: Tensor, event_dim: int) -> Tensor:
    """Of values batch + (components,) + event, those of component `code`, of shape batch."""
    index = code.reshape(code.shape + (1,) * (1 + event_dim))
    return torch.take_along_dim(values, index, dim=-1 - event_dim).squeeze(-1 - event_dim)


# ---- this library's own


@draw.register
def _(flow: FlowDistribution, uniform: Uniform) -> Tensor | None:
    value = draw(flow.base, _within(flow, flow.base, uniform))
    return None if value is None else flow.push(value)


@draw.register
def _(mixture: Mixture, uniform: Uniform) -> Tensor | None:
    code = _code(mixture.logits.softmax(-1), uniform(1)[..., 0])
    value = draw(mixture.components, _within(mixture, mixture.components, uniform))
    if value is None:
        return None
    value = _pick(value, code, 1)
    return mixture.attach(value) if mixture.has_rsample and torch.is_grad_enabled() else value


@draw.register
def _(sphere: UniformSphere, uniform: Uniform) -> Tensor:
    return safe_normalize(torch.special.ndtri(uniform()).to(sphere.centre.dtype))


@draw.register
def _(spherical: PowerSpherical, uniform: Uniform) -> Tensor | None:
    fraction = draw(spherical.radial, _within(spherical, spherical.radial, uniform))
    noise = torch.special.ndtri(uniform()).to(spherical.direction.dtype)
    return None if fraction is None else spherical.place(fraction, noise)
