"""Draws of z for given rows, and every log density at them: computed once, read many times."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_vae.errors import DataError, PplVaeError, ProgramError, first_line, whole
from ppl_vae.infer.noise import Keyed, base, row_keys
from ppl_vae.infer.scope import isolated

T = TypeVar("T")
Observe = Callable[[Any], Tensor]
DENSITIES = ("log_lik", "log_prior", "log_q", "log_weight")


class Draws(NamedTuple):
    """S draws from q(z|x) for each of n rows; log densities in nats of the data in its own units.

    Attributes:
        z: (S, n, k).
        sites: {name: (S, n, ...)} of every latent site.
        log_lik: log p(x|z), (S, n) float64.
        log_prior: log p(z), (S, n) float64.
        log_q: log q(z|x), (S, n) float64.
        log_weight: log p(x, z) - log q(z|x), (S, n) float64.
        observed: what a function of the likelihood's site gave, (S, n, ...), else None.
        stats: further facts of the method that drew them.
    """

    z: Tensor
    sites: dict[str, Tensor]
    log_lik: Tensor
    log_prior: Tensor
    log_q: Tensor
    log_weight: Tensor
    observed: Tensor | None = None
    stats: dict[str, Any] = {}  # noqa: RUF012


def draws(vae: Any, data: Any, num_draws: int = 64, seed: int = 0) -> Draws:
    """Draw z from the guide for every row, and weigh each draw by model and guide.

    A draw is a function of its row, the model and the seed alone: the same whatever other rows come along.

    Args:
        vae: a model with its guide.
        data: n rows.
        num_draws: S.
        seed: of the noise.

    Example:
        >>> import numpy as np
        >>> from ppl_vae.model.linear import PPCA
        >>> x = np.random.RandomState(0).randn(50, 4)
        >>> ppca = PPCA(2).fit(x)
        >>> d = draws(ppca, x, num_draws=3)
        >>> bool(np.allclose(d.log_weight, ppca.log_prob(x), atol=1e-8))  # the guide is exact
        True
    """
    return joined(each_block(vae, vae.batch(data).x, num_draws, seed, lambda block: block), 1)


def joined(parts: list[Draws], along: int, rows: slice = slice(None)) -> Draws:
    """Draws of several groups of draws (along 0) or rows (along 1) as one, or some rows of it."""

    def cat(values: Iterable[Tensor]) -> Tensor:
        return torch.cat(list(values), along)[:, rows]

    sites = {name: cat(p.sites[name] for p in parts) for name in parts[0].sites}
    log_lik, log_prior, log_q, log_weight = (cat(getattr(p, name) for p in parts) for name in DENSITIES)
    observed = [p.observed for p in parts if p.observed is not None]
    return Draws(
        cat(p.z for p in parts), sites, log_lik, log_prior, log_q, log_weight, cat(observed) if observed else None
    )


def each_block(
    vae: Any, x: Tensor, num_draws: int, seed: int, read: Callable[[Draws], T], observe: Observe | None = None
) -> list[T]:
    """`read` the draws of some rows at a time, so that memory holds one block of them only.

    Args:
        x: encoded rows (n, d).
        observe: a function of the likelihood's site, (S, n, ...); what it gives is in `Draws.observed`.

    Returns: what `read` gave, block by block, in the order of the rows.
    """
    num_draws = whole("num_draws", num_draws)
    with isolated(vae, seed), torch.no_grad(), in_mode(vae, training=False):
        check(vae, x)
        return [read(block) for block in row_blocks(vae, x, num_draws, seed, observe)]


def row_blocks(
    vae: Any,
    x: Tensor,
    num_draws: int,
    seed: int,
    observe: Observe | None = None,
    *,
    pad: bool = True,
    strict: bool = True,
) -> Iterator[Draws]:
    """Draws for encoded rows x (n, d), to be called inside `isolated`.

    Every block has the same shape, the last one filled up: matrix products choose their kernel by the number of rows, and
    only then is a row's result independent of how many others come along.
    """
    n, d = x.shape
    chunk = min(num_draws, 128)
    height = max(2, min(max(2**20 // d, 1024), 8192) // chunk)
    jacobian = vae.schema.log_jacobian if vae.schema is not None else 0.0
    for start in range(0, n, height):
        stop = min(start + height, n)
        where = torch.arange(start, start + height if pad else stop, device=x.device).clamp(max=n - 1)
        block = x[where]
        keys = row_keys(block, seed)
        firsts = range(0, num_draws, chunk)
        parts = [_draws(vae, block, keys, min(chunk, num_draws - f), f, jacobian, observe, strict) for f in firsts]
        yield joined(parts, 0, slice(stop - start))


def _draws(
    vae: Any,
    x: Tensor,
    keys: Tensor,
    num_draws: int,
    first: int,
    jacobian: float,
    observe: Observe | None,
    strict: bool,
) -> Draws:
    guide, model = traces(vae, x, keys, num_draws, first, strict)
    observed = model.pop("x")
    log_q, log_prior = (torch.stack([_log_prob(s).double() for s in sites.values()]).sum(0) for sites in (guide, model))
    log_lik = _log_prob(observed).double() + jacobian
    return Draws(
        guide["z"]["value"],
        {name: site["value"] for name, site in guide.items()},
        log_lik,
        log_prior,
        log_q,
        log_lik + log_prior - log_q,
        observe(observed) if observe else None,
    )


def traces(
    vae: Any, x: Tensor, keys: Tensor, num_draws: int, first: int = 0, strict: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run guide and model on x (n, d) with S vectorised draws: the sample sites of each, by name."""

    def plated(program: Callable) -> Callable:
        return pyro.plate("draws", num_draws, dim=-2)(program)

    with Keyed(keys, first=first, strict=strict):
        guide = poutine.trace(plated(vae.guide)).get_trace(x)
        model = poutine.trace(poutine.replay(plated(vae.model), trace=guide)).get_trace(x)
    return _sites(guide), _sites(model)


def _sites(trace: Any) -> dict[str, Any]:
    return {n: s for n, s in trace.nodes.items() if s["type"] == "sample" and not site_is_subsample(s)}


def _log_prob(site: Any) -> Tensor:
    return site["fn"].log_prob(site["value"])


def log_prob_per_feature(site: Any) -> Tensor:
    """log p(x_j|z) (S, n, d) of the likelihood's site, in encoded units."""
    fn = site["fn"]
    if not isinstance(fn, torch.distributions.Independent):
        raise ProgramError(f"site 'x': got {type(fn).__name__}, whose log density is no sum over features")
    return fn.base_dist.log_prob(site["value"]).double()


def likelihood_mean(site: Any) -> Tensor:
    """E[x|z] (S, n, d) of the likelihood's site, in encoded units."""
    return site["fn"].mean


def minus_squared_error(site: Any) -> Tensor:
    """-(x_j - E[x_j|z])^2 (S, n, d) of the likelihood's site, in squared encoded units."""
    return -((site["value"] - site["fn"].mean).double() ** 2)


class Facts(NamedTuple):
    """What a pair of programs is: `point`, every guide site is a point mass; `proper`, every prior integrates to 1."""

    point: bool
    proper: bool


def facts(vae: Any, x: Tensor) -> Facts:
    """Look at the distributions that the programs use for encoded rows x (n, d)."""
    x = x[:2]
    with isolated(vae), torch.no_grad(), in_mode(vae, training=False):
        guide, model = traces(vae, x, row_keys(x, 0), 1)
    return Facts(
        point=all(isinstance(base(s["fn"]), dist.Delta) for s in guide.values()),
        proper=not any(isinstance(base(s["fn"]), dist.ImproperUniform) for s in model.values()),
    )


def check(vae: Any, x: Tensor, strict: bool = True) -> None:
    """Run the programs on two rows, and refuse rows x (n, d) outside the likelihood's support.

    Raises: ProgramError naming the site, DataError naming the first column at fault.
    """
    try:
        guide, model = traces(vae, x[:2], row_keys(x[:2], 0), TRIAL, strict=strict)
        shapes = {name: _log_prob(site).shape for name, site in (guide | model).items()}
    except PplVaeError:
        raise
    except Exception as error:  # whatever a user's program may raise
        raise ProgramError(f"model or guide failed on rows of {x.shape[1]} columns: {first_line(error)}") from error
    for name, shape in shapes.items():
        if shape != (TRIAL, len(x[:2])):
            raise ProgramError(
                f"site {name!r}: got log densities of shape {tuple(shape)}, expected one for each draw and row, "
                f"{(TRIAL, len(x[:2]))}; declare the event dimension with .to_event(1)"
            )
    for name in model.keys() - {"x"}:
        if name not in guide:
            raise ProgramError(f"site {name!r}: got it in the model alone, expected the guide to sample it too")
        inside = model[name]["fn"].support.check(guide[name]["value"])
        if not inside.all():  # the prior's density means nothing there
            raise ProgramError(
                f"site {name!r}: got {guide[name]['value'][~inside][0].tolist()} from the guide's "
                f"{type(base(guide[name]['fn'])).__name__}, expected values in the support of the prior's "
                f"{type(base(model[name]['fn'])).__name__}"
            )
    family = base(model["x"]["fn"])
    constraint = torch.distributions.constraints
    if constraint.is_dependent(type(family).support) or family.support is constraint.real or family.event_dim:
        return  # depends on the parameters, or on a row as a whole
    expected = f"{_describe(family.support)}, the support of the likelihood {type(family).__name__}"
    refuse_first(vae, x, ~family.support.check(x), expected + (GREY if isinstance(family, dist.Bernoulli) else ""))


def refuse_first(vae: Any, x: Tensor, wrong: Tensor, expected: str) -> None:
    """Raise a `DataError` that names the first cell of x (n, d) at fault, if any is."""
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        name = f"x{column}" if vae.schema is None else vae.schema.names[column]
        raise DataError(f"column {name!r}: got {x[row, column].item():.6g} in row {row}, expected {expected}")


TRIAL = 64
"""Draws of two rows on which programs are checked."""
GREY = ". For grey values: likelihood='continuous_bernoulli', or fit(binarize=...) and datasets.binarize"


def _describe(support: Any) -> str:
    if support is torch.distributions.constraints.boolean:
        return "0 or 1"
    if support is torch.distributions.constraints.unit_interval:
        return "a value in [0, 1]"
    return str(support)


@contextmanager
def in_mode(vae: Any, training: bool) -> Iterator[None]:
    """Modules in training or evaluation mode inside, each in its own mode again after."""
    modes = [(module, module.training) for module in vae.modules()]
    try:
        for module, _ in modes:
            module.training = training
        yield
    finally:
        for module, mode in modes:
            module.training = mode
