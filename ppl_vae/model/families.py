"""Likelihoods and the scales of normals: raw numbers of a net to a Pyro distribution with its event dimension declared.

A family is a function that makes the distribution, and a `Head` for each of its parameters.
"""

import math
from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import biject_to, constraints
from torch.nn.functional import logsigmoid, pad, softplus

from ppl_vae.data.schema import Schema
from ppl_vae.errors import OptionError, choose, number, whole
from ppl_vae.model.masses import (
    ContinuousBernoulli,
    DiscretizedLogistic,
    NegativeBinomial,
    OpenBeta,
    Poisson,
    RowMultinomial,
    ZeroInflated,
)
from ppl_vae.model.mixed import Mixed
from ppl_vae.model.mixed import expected as expected
from ppl_vae.model.student_t import StudentT
from ppl_vae.plugins import part

SCALE_FLOOR = 1e-3
"""Smallest standard deviation unless told otherwise, in encoded units; also the smallest concentration."""
LOG_VARIANCE_BOUND = 14.0
"""The log_variance link clamps from above to this: a standard deviation of 1.1e3."""
CONCENTRATION_BOUND = 1e4
"""Largest concentration (of gamma, beta, von Mises), total count or degrees of freedom: float32 gets a log density wrong
by their size times 6e-8, and without a bound a likelihood grows without bound."""
LOG_MEAN_BOUND = 20.0
"""Means of positive and count columns stay within this many nats of the column's typical value."""
LOGIT_BOUND = 16.0
"""Of the continuous Bernoulli: its scale at an end is at least 1/16. torch's probabilities saturate there in float32."""
NEVER = -1e9
"""Logit of a level that a column does not have."""


def softplus_scale(raw: Tensor, floor: float = SCALE_FLOOR) -> Tensor:
    """Standard deviation from an unbounded number: softplus(raw) + floor."""
    return softplus(raw) + floor


def log_variance_scale(raw: Tensor, floor: float = SCALE_FLOOR) -> Tensor:
    """Standard deviation from a log-variance head, clamped (Kingma & Welling 2013, appendix C.2)."""
    return torch.exp(0.5 * raw.clamp(2 * math.log(floor), LOG_VARIANCE_BOUND))


SCALE_LINKS: dict[str, Callable[..., Tensor]] = {"softplus": softplus_scale, "log_variance": log_variance_scale}
UNIT = {"softplus": 0.5413, "log_variance": 0.0}
"""The raw value at which each link gives a standard deviation of 1, where learned scales start."""


class Heads(NamedTuple):
    """What `build` says of every family.

    Attributes:
        scale: where scales and concentrations come from: "row" (the net), "feature" (a parameter for each column),
            "shared" (one parameter), or a number, the scale in encoded units (concentrations are then a parameter for
            each column).
        link: of scales, a name in `SCALE_LINKS`.
        floor: smallest learned scale, in encoded units.
        options: further options by name; a family takes those that its factory names.
    """

    scale: str | float = "row"
    link: str = "softplus"
    floor: float = SCALE_FLOOR
    options: dict[str, Any] = {}  # noqa: RUF012 - never written to


def identity(raw: Tensor) -> Tensor:
    """The link of an unbounded parameter."""
    return raw


class Head(NamedTuple):
    """How one parameter of a family comes about.

    Attributes:
        link: raw numbers to the parameter.
        source: "row" (the net gives it), "feature" (learned, one for each feature), "shared" (learned, one for all), or
            the parameter itself, a number or a tensor.
        start: raw value where it is learned.
        size: numbers a feature, in a last dimension; 0: one number, and no such dimension.
        number: what stands for the number of features, if it is another.
    """

    link: Callable[[Tensor], Tensor] = identity
    source: Any = "row"
    start: float | Tensor = 0.0
    size: int = 0
    number: int | None = None


class Family(nn.Module):
    """A distribution from the raw numbers of a net, and from learned and fixed parameters.

    The net's `width` numbers are, head after head in the order given, those of every feature (for a head of some size:
    the first number of every feature, then the second, ...).

    Args:
        make: the parameters by name to a distribution of batch (..., d) and event (), or of event (d,).
        features: d.
        heads: one for each parameter.

    Raises: OptionError.

    Example:
        >>> family = Family(dist.Normal, 2, loc=Head(), scale=Head(torch.exp, "shared"))
        >>> family.width, family(torch.zeros(5, 2)).batch_shape, len(list(family.parameters()))
        (2, torch.Size([5]), 1)
    """

    def __init__(self, make: Callable[..., Any], features: int, **heads: Head) -> None:
        super().__init__()
        self.make, self.heads = make, heads
        counts = {name: features if head.number is None else head.number for name, head in heads.items()}
        self.sizes = [counts[name] * (head.size or 1) for name, head in heads.items() if _is(head.source, "row")]
        self.width = sum(self.sizes)
        for name, head in heads.items():
            if isinstance(head.source, Tensor):
                self.register_buffer(name, head.source)
            elif not isinstance(head.source, str):
                self.register_buffer(name, torch.tensor([number(name, head.source)]))
            elif head.source != "row":
                count = choose(name, head.source, {"feature": counts[name], "shared": 1, "row": 0})
                shape = (count, head.size) if head.size else (count,)
                start = torch.as_tensor(head.start, dtype=torch.get_default_dtype())
                self.register_parameter(name, nn.Parameter(start.expand(shape).clone()))

    def forward(self, raw: Tensor) -> dist.Distribution:
        """raw (..., width) to p(.|.), batch (...) and event (d,)."""
        parts = iter(raw.split(self.sizes, -1) if len(self.sizes) > 1 else [raw])
        values = {name: self._value(name, head, parts) for name, head in self.heads.items()}
        made = self.make(**values)
        return made.to_event(1 - made.event_dim)

    def _value(self, name: str, head: Head, parts: Any) -> Tensor:
        if not isinstance(head.source, str):
            return getattr(self, name)
        if head.source != "row":
            return head.link(getattr(self, name))
        raw = next(parts)
        return head.link(raw.unflatten(-1, (head.size, -1)).mT if head.size else raw)


def _is(value: Any, name: str) -> bool:
    return isinstance(value, str) and value == name


# ---- heads


def scale_head(heads: Heads) -> Head:
    """A standard deviation, or what does its work, as the options say."""
    if isinstance(heads.scale, str) and heads.scale not in ("row", "feature", "shared"):
        raise OptionError(f"scale: got {heads.scale!r}, expected 'row', 'feature', 'shared' or a positive number")
    link = choose("scale_link", heads.link, SCALE_LINKS)
    return Head(partial(link, floor=number("scale_floor", heads.floor)), heads.scale, UNIT[heads.link])


def concentration(raw: Tensor) -> Tensor:
    """A number in [1e-3, 1e4] from an unbounded one."""
    return softplus(raw).clamp(max=CONCENTRATION_BOUND) + SCALE_FLOOR


def concentration_head(heads: Heads) -> Head:
    """From where the scale comes, but learned for each column where that is a number: another unit."""
    source = scale_head(heads).source
    return Head(concentration, source if isinstance(source, str) else "feature", UNIT["softplus"])


def above_two(raw: Tensor) -> Tensor:
    """Degrees of freedom with a finite variance."""
    return 2 + softplus(raw).clamp(max=CONCENTRATION_BOUND)


def log_heads(schema: Schema) -> dict[str, Head]:
    """Mean (log1p of counts) and standard deviation of each column's logarithm, as the schema has them."""
    default = {"log_loc": 0.0, "log_scale": 1.0}
    return {n: Head(source=_vector(getattr(schema, n) or (one,) * schema.width)) for n, one in default.items()}


def _vector(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.get_default_dtype())


# ---- densities on the reals


class Normal(Family):
    """Normal with a diagonal scale, learned per row and feature, per feature, shared, or fixed.

    Args:
        features: d.
        scale: "row" (the net gives it), "feature", "shared", or a number, the standard deviation in encoded units.
        link: a name in `SCALE_LINKS`.
        floor: smallest learned standard deviation, in encoded units.
    """

    def __init__(
        self, features: int, scale: str | float = "row", link: str = "softplus", floor: float = SCALE_FLOOR
    ) -> None:
        super().__init__(dist.Normal, features, loc=Head(), scale=scale_head(Heads(scale, link, floor)))


def normal(schema: Schema, heads: Heads) -> Family:
    """Factory of `Normal`."""
    return Normal(schema.width, *heads[:3])


def laplace(schema: Schema, heads: Heads) -> Family:
    """Laplace; its scale is the mean absolute deviation."""
    return Family(dist.Laplace, schema.width, loc=Head(), scale=scale_head(heads))


def student_t(schema: Schema, heads: Heads, *, df: str | float = "feature") -> Family:
    """Student's t; degrees of freedom above 2, from 3 on, learned (df "feature", "shared", "row") or a number above 1."""
    source = choose("df", df, {k: k for k in ("row", "feature", "shared")}) if isinstance(df, str) else None
    freedom = Head(above_two, source or number("df", df, 1.0), UNIT["softplus"])
    return Family(StudentT, schema.width, loc=Head(), scale=scale_head(heads), df=freedom)


def low_rank_normal(schema: Schema, heads: Heads, *, rank: int = 2) -> Family:
    """N(loc, D (I + F F') D), D = diag(scale): factor F (d, rank) from the net for scale="row", else learned."""
    d, columns = schema.width, whole("rank", rank)
    if _is(heads.scale, "row"):
        factor = Head(size=columns)
    else:  # at 0 its gradient would be 0
        factor = Head(source="feature", start=0.1 * torch.randn(d, columns), size=columns)
    return Family(_low_rank, d, loc=Head(), scale=scale_head(heads), factor=factor)


def _low_rank(loc: Tensor, scale: Tensor, factor: Tensor) -> dist.Distribution:
    """The factor in units of the noise: I + F'F, which has to be inverted, is then free of the scale."""
    scale = scale.expand(*scale.shape[:-1], loc.shape[-1])
    return dist.LowRankMultivariateNormal(loc, factor * scale[..., None], scale**2)


def full_normal(schema: Schema, heads: Heads) -> Family:
    """N(loc, D L L' D), D = diag(scale), L unit lower triangular: from the net for scale="row", else learned."""
    below = schema.width * (schema.width - 1) // 2
    source = "row" if _is(heads.scale, "row") else "feature"
    rest = {"below": Head(source=source, number=below)} if below else {}
    return Family(_full, schema.width, loc=Head(), scale=scale_head(heads), **rest)


def _full(loc: Tensor, scale: Tensor, below: Tensor | None = None) -> dist.Distribution:
    d = loc.shape[-1]
    unit = torch.eye(d, dtype=loc.dtype, device=loc.device)
    if below is not None:
        row, column = torch.tril_indices(d, d, -1, device=loc.device)
        unit = unit.expand(*below.shape[:-1], d, d).clone()
        unit[..., row, column] = below
    return dist.MultivariateNormal(loc, scale_tril=scale[..., None] * unit)


# ---- densities above 0, on [0, 1], on the circle


def log_mean(loc: Tensor, log_scale: Tensor) -> Tensor:
    """log of a mean over the column's typical value, from a number in units of the spread of its logarithms."""
    return (log_scale * loc).clamp(-LOG_MEAN_BOUND, LOG_MEAN_BOUND)


def log_normal(schema: Schema, heads: Heads) -> Family:
    """log x ~ N(log_scale loc, (log_scale scale)^2): loc and scale in standard deviations of the column's log."""
    log_scale = log_heads(schema)["log_scale"]
    return Family(_log_normal, schema.width, loc=Head(), scale=scale_head(heads), log_scale=log_scale)


def _log_normal(loc: Tensor, scale: Tensor, log_scale: Tensor) -> dist.Distribution:
    return dist.LogNormal(log_scale * loc, log_scale * scale)


def gamma(schema: Schema, heads: Heads) -> Family:
    """Gamma by its mean exp(log_scale loc), clamped, and its concentration, whose inverse is (sd / mean)^2."""
    shape, log_scale = concentration_head(heads), log_heads(schema)["log_scale"]
    return Family(_gamma, schema.width, loc=Head(), concentration=shape, log_scale=log_scale)


def _gamma(loc: Tensor, concentration: Tensor, log_scale: Tensor) -> dist.Distribution:
    return dist.Gamma(concentration, concentration * torch.exp(-log_mean(loc, log_scale)))


def beta(schema: Schema, heads: Heads) -> Family:
    """Beta(m c, (1 - m) c), each plus 1e-3: mean m by the logistic function, concentration c. Refuses 0 and 1."""
    return Family(_beta, schema.width, logit=Head(), concentration=concentration_head(heads))


def _beta(logit: Tensor, concentration: Tensor) -> dist.Distribution:
    one, zero = (concentration * torch.sigmoid(sign * logit) + SCALE_FLOOR for sign in (1, -1))
    return OpenBeta(one, zero)


def continuous_bernoulli(schema: Schema, heads: Heads) -> Family:
    """Continuous Bernoulli from logits: a density on [0, 1] for grey values (Loaiza-Ganem & Cunningham 2019).

    Far from 0 it is exponential at one end with scale 1 / |logit|, so that a grey value seen again and again, as the black
    of a background, would drive its density without bound: logits are bounded.
    """
    return Family(ContinuousBernoulli, schema.width, logits=Head(bounded_logits))


def bounded_logits(raw: Tensor) -> Tensor:
    """The net's logits up to half of `LOGIT_BOUND`; from there on they approach it, smoothly."""
    half = LOGIT_BOUND / 2
    inner = raw.clamp(-half, half)
    return inner + half * torch.tanh((raw - inner) / half)


def von_mises(schema: Schema, heads: Heads) -> Family:
    """Von Mises: the direction of a point (cos, sin) from the net, and a concentration."""
    return Family(_von_mises, schema.width, point=Head(size=2), concentration=concentration_head(heads))


def _von_mises(point: Tensor, concentration: Tensor) -> dist.Distribution:
    cos, sin = point.unbind(-1)
    origin = (cos.abs() < 1e-6) & (sin.abs() < 1e-6)  # no direction, and no gradient of one
    return dist.VonMises(torch.atan2(sin, torch.where(origin, 1.0, cos)), concentration)


# ---- masses


def bernoulli(schema: Schema, heads: Heads) -> Family:
    """Bernoulli from logits, on {0, 1}: log p(x|z) = sum x log p + (1-x) log(1-p) (Kingma & Welling 2013, C.1)."""
    return Family(dist.Bernoulli, schema.width, logits=Head())


def categorical(schema: Schema, heads: Heads) -> Family:
    """Categorical from a logit for each level of each column, in this order: all first levels, all second ones, ..."""
    levels = level_counts(schema)
    return Family(_categorical, schema.width, logits=Head(number=sum(levels)), index=Head(source=_ragged(levels)))


def _categorical(logits: Tensor, index: Tensor) -> dist.Distribution:
    return dist.Categorical(logits=pad(logits, (0, 1), value=NEVER)[..., index])


def ordinal(schema: Schema, heads: Heads) -> Family:
    """Ordered logits: P(code > j) = sigmoid(loc - cut_j), cuts learned for each column (McCullagh 1980)."""
    levels = level_counts(schema, 2)
    index = _ragged([count - 1 for count in levels])
    start = torch.zeros(sum(levels) - len(levels))  # cuts at which every level is equally probable where loc is 0
    for own, count in zip(index, levels):
        even = torch.logit(torch.arange(1, count) / count)
        start[own[: count - 1]] = torch.cat([even[:1], torch.log(torch.expm1(even.diff()))])
    cuts = Head(source="feature", start=start, number=len(start))
    return Family(_ordinal, schema.width, loc=Head(), cuts=cuts, index=Head(source=index))


def _ordinal(loc: Tensor, cuts: Tensor, index: Tensor) -> dist.Distribution:
    """Log masses from sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)), which does not cancel."""
    real = index < len(cuts)  # (d, K - 1), whether a column has this cut
    raw = pad(cuts, (0, 1))[index]
    gaps = softplus(raw[:, 1:]) + 1e-6
    above = loc[..., None] - torch.cat([raw[:, :1], raw[:, :1] + gaps.cumsum(-1)], -1)
    between = torch.log(-torch.expm1(-gaps)).masked_fill(~real[:, 1:], 0.0)
    logits = pad(logsigmoid(above), (1, 0)) + pad(between, (1, 1))
    logits = logits + pad(logsigmoid(-above).masked_fill(~real, 0.0), (0, 1))
    return dist.Categorical(logits=logits.masked_fill(~pad(real, (1, 0), value=True), NEVER))


def level_counts(schema: Schema, least: int = 1) -> list[int]:
    """The number of levels of each column.

    Raises: OptionError naming the first column without a list of levels.
    """
    counts = [None if levels is None else len(levels) for levels in schema.levels or (None,) * schema.width]
    for name, count in zip(schema.names, counts):
        if count is None or count < least:
            got = "no levels" if count is None else f"{count} level"
            raise OptionError(f"likelihood: column {name!r}: got {got}, expected a column of {least} level(s) or more")
    return counts  # type: ignore[return-value]


def _ragged(counts: list[int]) -> Tensor:
    """Where in one vector number k of each column stands, (d, most): first numbers first; past the end where absent."""
    real = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    index = real.T.flatten().cumsum(0).reshape(max(counts), -1).T - 1
    return index.masked_fill(~real, sum(counts)).contiguous()


def poisson(schema: Schema, heads: Heads) -> Family:
    """Poisson; log rate = log_loc + log_scale loc, clamped."""
    return Family(_poisson, schema.width, loc=Head(), **log_heads(schema))


def _rate(loc: Tensor, log_loc: Tensor, log_scale: Tensor) -> Tensor:
    return log_loc + log_mean(loc, log_scale)


def _poisson(**logs: Tensor) -> dist.Distribution:
    return Poisson(_rate(**logs).exp())


def negative_binomial(schema: Schema, heads: Heads) -> Family:
    """Negative binomial by its mean, as of `poisson`, and total count r: variance = mean + mean^2 / r."""
    r = concentration_head(heads)
    return Family(_negative_binomial, schema.width, loc=Head(), total_count=r, **log_heads(schema))


def _negative_binomial(total_count: Tensor, **logs: Tensor) -> dist.Distribution:
    return NegativeBinomial(total_count, logits=_rate(**logs) - total_count.log())


def zero_inflated_poisson(schema: Schema, heads: Heads) -> Family:
    """0 with a probability from the net, by its logit, else Poisson."""
    return Family(_zero_inflated_poisson, schema.width, loc=Head(), gate_logits=Head(), **log_heads(schema))


def _zero_inflated_poisson(gate_logits: Tensor, **logs: Tensor) -> dist.Distribution:
    return ZeroInflated(Poisson(_rate(**logs).exp()), gate_logits=gate_logits)


def zero_inflated_negative_binomial(schema: Schema, heads: Heads) -> Family:
    """0 with a probability from the net, by its logit, else negative binomial."""
    own = {"loc": Head(), "total_count": concentration_head(heads), "gate_logits": Head()}
    return Family(_zero_inflated_negative_binomial, schema.width, **own, **log_heads(schema))


def _zero_inflated_negative_binomial(total_count: Tensor, gate_logits: Tensor, **logs: Tensor) -> dist.Distribution:
    return ZeroInflated(_negative_binomial(total_count, **logs), gate_logits=gate_logits)


def multinomial(schema: Schema, heads: Heads, *, total: int | None = None) -> Family:
    """Multinomial given the row's own total; draws and means have `total`, else about the data's mean total."""
    if total is None:
        logs = zip(schema.log_loc or (0.0,) * schema.width, schema.log_scale or (1.0,) * schema.width)
        total = max(1, round(sum(math.expm1(loc + scale**2 / 2) for loc, scale in logs)))  # were 1 + count log-normal
    return Family(partial(RowMultinomial, whole("total", total)), schema.width, logits=Head())


def discretized_logistic(schema: Schema, heads: Heads) -> Family:
    """Logistic rounded to 256 grey levels (Salimans et al. 2017, eq. 2, one component)."""
    return Family(DiscretizedLogistic, schema.width, loc=Head(), scale=scale_head(heads))


# ---- by name, by class, by column


class Likelihood(NamedTuple):
    """A family by name.

    Attributes:
        make: (schema of its columns, `Heads`, *, further options by keyword) to a module.
        type: of the columns that it is for, a name in `data.columns.TYPES`.
        text: what it is, in a line.
        joint: whether the entries of a row depend on each other given z: then it takes all columns or none.
    """

    make: Callable[..., Any]
    type: str
    text: str
    joint: bool = False


LIKELIHOODS: dict[str, Likelihood] = {
    "normal": Likelihood(
        normal, "real", "normal, its scale per row and column, per column, shared or fixed (Kingma & Welling 2013, C.2)"
    ),
    "low_rank_normal": Likelihood(
        low_rank_normal, "real", "normal with a covariance of low rank plus a diagonal", True
    ),
    "full_normal": Likelihood(full_normal, "real", "normal with a full covariance", True),
    "student_t": Likelihood(student_t, "real", "Student's t: robust to outliers (Lange et al. 1989)"),
    "laplace": Likelihood(laplace, "real", "Laplace: absolute instead of squared deviations"),
    "log_normal": Likelihood(log_normal, "positive", "normal on the log scale"),
    "gamma": Likelihood(gamma, "positive", "gamma by mean and concentration"),
    "beta": Likelihood(
        beta, "unit", "beta by mean and concentration, above 0 and below 1 (Ferrari & Cribari-Neto 2004)"
    ),
    "bernoulli": Likelihood(bernoulli, "boolean", "Bernoulli (Kingma & Welling 2013, C.1)"),
    "continuous_bernoulli": Likelihood(
        continuous_bernoulli, "unit", "a density for grey values (Loaiza-Ganem & Cunningham 2019, eq. 8)"
    ),
    "categorical": Likelihood(categorical, "categorical", "one of several levels"),
    "ordinal": Likelihood(ordinal, "ordinal", "one of several ordered levels, by ordered logits (McCullagh 1980)"),
    "poisson": Likelihood(poisson, "count", "Poisson"),
    "negative_binomial": Likelihood(negative_binomial, "count", "counts with more spread than Poisson's"),
    "zero_inflated_poisson": Likelihood(zero_inflated_poisson, "count", "Poisson with further zeros (Lambert 1992)"),
    "zero_inflated_negative_binomial": Likelihood(
        zero_inflated_negative_binomial, "count", "negative binomial with further zeros (Lopez et al. 2018)"
    ),
    "multinomial": Likelihood(multinomial, "count", "the counts of a row, given their total (Liang et al. 2018)", True),
    "discretized_logistic": Likelihood(
        discretized_logistic, "pixel", "256 grey levels (Salimans et al. 2017, eq. 2, one component)"
    ),
    "von_mises": Likelihood(von_mises, "angle", "angles in radians"),
}


def from_class(cls: Any, features: int, heads: Heads) -> Family:
    """A family made of a Pyro distribution: links from its `arg_constraints`, everything from the net.

    A positive parameter named `scale` follows the options of the scale. Of two ways to say the same, logits are taken.

    Args:
        cls: a class of pyro.distributions whose values are single numbers.
        features: d.

    Raises: OptionError naming the parameter and its constraint.

    Example:
        >>> family = from_class(dist.StudentT, 3, Heads())
        >>> list(family.heads), family.width
        (['df', 'loc', 'scale'], 9)
    """
    if not (isinstance(cls, type) and issubclass(cls, TorchDistributionMixin)):
        raise OptionError(f"likelihood: got {cls!r}, expected a class of pyro.distributions")
    takes = [p for p in signature(cls).parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    known = cls.arg_constraints if isinstance(cls.arg_constraints, dict) else {}  # Uniform's depend on each other
    names = {p.name for p in takes if p.name in known}
    names -= {n for n in names if n != "logits" and {n.replace("probs", "logits"), f"{n}_logits"} & (names - {n})}
    for p in takes:
        if p.default is p.empty and p.name not in known:
            raise OptionError(f"likelihood: got {cls.__name__}, whose parameter {p.name!r} has no constraint{CALLABLE}")
    if getattr(cls.support, "event_dim", 1):
        raise OptionError(f"likelihood: got {cls.__name__}, expected a distribution of single numbers{CALLABLE}")
    return Family(cls, features, **{n: _head(cls, n, heads) for n in known if n in names})


CALLABLE = "; write a callable of the number of columns, which returns a module, instead"


def _head(cls: Any, name: str, heads: Heads) -> Head:
    constraint: Any = cls.arg_constraints[name]
    try:
        if constraint.is_discrete or constraint.event_dim:
            raise NotImplementedError
        if isinstance(constraint, constraints.greater_than | constraints.greater_than_eq):
            own = name == "scale" and constraint.lower_bound == 0
            return scale_head(heads) if own else Head(partial(_bounded, lower=constraint.lower_bound))
        return Head(biject_to(constraint))
    except NotImplementedError:
        raise OptionError(
            f"likelihood: got {cls.__name__}, whose parameter {name!r} is {constraint}, expected one that is real or "
            f"bounded{CALLABLE}"
        ) from None


def _bounded(raw: Tensor, lower: float) -> Tensor:
    return lower + softplus(raw).clamp(max=CONCENTRATION_BOUND) + SCALE_FLOOR


Choice = Any
"""A name in `LIKELIHOODS`, a class of pyro.distributions, or a callable of the number of columns."""


def likelihood(schema: Schema, choice: Choice | dict[str, Choice] | None = None, heads: Heads = Heads()) -> Any:  # noqa: B008
    """The family of some columns.

    Args:
        schema: of the columns.
        choice: a name in `LIKELIHOODS` or of an installed package, a class of pyro.distributions, or a callable of the
            number of columns that returns a module with `.outputs` or `.width`; or one of these for each column, by its
            name; or None for those that the schema names. Columns of the same choice are one family together.
        heads: options; each family takes those further ones that its factory names.

    Returns: a module, raw numbers (..., width) to p(x|z) of event (d,).

    Raises: OptionError.
    """
    if choice is None:
        choice = dict(zip(schema.names, schema.likelihoods or ()))
    if not isinstance(choice, dict):
        return _family(schema, choice, heads)
    if set(choice) != set(schema.names):
        raise OptionError(f"likelihood: got columns {sorted(choice)}, expected each of {sorted(schema.names)}")
    groups: dict[Any, list[int]] = {}
    for j, name in enumerate(schema.names):
        groups.setdefault(choice[name], []).append(j)
    if len(groups) == 1:
        return _family(schema, next(iter(groups)), heads)
    for own, columns in groups.items():
        if isinstance(own, str) and getattr(part("likelihood", own, LIKELIHOODS), "joint", False):
            raise OptionError(
                f"likelihood: column {schema.names[columns[0]]!r}: got {own!r}, a joint family, beside others; expected one "
                "distribution a column, or this family for all columns"
            )
    return Mixed([(columns, _family(schema.take(columns), own, heads)) for own, columns in groups.items()])


def _family(schema: Schema, choice: Choice, heads: Heads) -> Any:
    if isinstance(choice, str):
        entry = part("likelihood", choice, LIKELIHOODS)
        make = getattr(entry, "make", entry)
        return make(schema, heads, **{k: v for k, v in heads.options.items() if k in signature(make).parameters})
    if isinstance(choice, type) and issubclass(choice, torch.distributions.Distribution):
        return from_class(choice, schema.width, heads)
    if not callable(choice) or isinstance(choice, nn.Module):
        raise OptionError(
            f"likelihood: got {choice!r}, expected a name, a class of pyro.distributions or a callable of the number "
            "of columns"
        )
    family = choice(schema.width)
    if not callable(family) or not (hasattr(family, "outputs") or hasattr(family, "width")):
        raise OptionError(
            f"likelihood: got {family!r}, expected a module with .outputs, its inputs per feature, or .width, all of them"
        )
    return family
