"""Draws of z for given rows, and every log density at them: computed once, read many times."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_vae.data.schema import Batch
from ppl_vae.data.tables import Table, in_parts
from ppl_vae.errors import DataError, OptionError, PplVaeError, ProgramError, first_line, whole
from ppl_vae.infer import noise
from ppl_vae.infer.noise import Keyed, base
from ppl_vae.infer.scope import reading
from ppl_vae.model.mixed import Columnwise, expected

T = TypeVar("T")
Observe = Callable[[Any], Tensor]
DENSITIES = ("log_lik", "log_prior", "log_q", "log_weight")


class Draws(NamedTuple):
    """S draws from q(z|x) for each of n rows; log densities in nats of the data in its own units, per row.

    Attributes:
        z: (S, n, k).
        sites: {name: (S, n, ...)} of every latent site of the rows; for a site of the model that is summed out, such as a
            mixture's component, the probabilities of its values given z and x, (S, n, values).
        log_lik: log p(x|z), (S, n) float64; of the observed cells.
        log_prior: log p(z), (S, n) float64.
        log_q: log q(z|x), (S, n) float64; None for draws of a method without one.
        log_weight: log p(x, z) - log q(z|x), (S, n) float64; None for draws of a method without one.
        observed: what a function of the likelihood's site gave, (S, n, ...), else None.
        shared: {name: (S, ...)} of sites that all rows share; the densities above are given these.
        stats: further facts of the method that drew them.
    """

    z: Tensor
    sites: dict[str, Tensor]
    log_lik: Tensor
    log_prior: Tensor
    log_q: Any
    log_weight: Any
    observed: Tensor | None = None
    shared: dict[str, Tensor] = {}  # noqa: RUF012
    stats: dict[str, Any] = {}  # noqa: RUF012

    def __repr__(self) -> str:
        method = f", by {self.stats['method']!r}" if "method" in self.stats else ""
        shared = f", with {', '.join(self.shared)} of all rows" if self.shared else ""
        mixed = f"; {mixing(self.stats['r_hat'])}" if "r_hat" in self.stats else ""
        return (
            f"Draws({self.z.shape[0]} of each of {self.z.shape[1]} rows, z {tuple(self.z.shape[2:])}{shared}{method}"
            f"{mixed})"
        )


R_HAT = 1.01
"""R-hat above which chains have not converged (Vehtari et al. 2021, section 4)."""


def mixing(r_hat: Any) -> str:
    """What R-hats (n, k) say of chains, in words."""
    known = torch.as_tensor(r_hat)
    known = known[~known.isnan()]
    if not len(known):
        return "too few or too short chains to tell whether they converged"
    return f"largest r_hat {known.max():.3f}" + (", not converged" if known.max() > R_HAT else "")


def draws(vae: Any, data: Any, num_draws: int = 64, seed: int = 0) -> Draws:
    """Draw z from the guide for every row, and weigh each draw by model and guide (Burda et al. 2016).

    A draw is a function of its row, the model and the seed alone: the same whatever other rows come along.

    Args:
        vae: a model with its guide.
        data: n rows.
        num_draws: S.
        seed: of the noise.

    Returns: `Draws`, densities in nats of the data in its own units.

    Raises: DataError for rows that the model was not built for; ProgramError, naming the site, for programs that break the
        contract; OptionError.

    Example:
        >>> import numpy as np
        >>> from ppl_vae.model.linear import PPCA
        >>> x = np.random.RandomState(0).randn(50, 4)
        >>> ppca = PPCA(2).fit(x)
        >>> d = draws(ppca, x, num_draws=3)
        >>> bool(np.allclose(d.log_weight, ppca.log_prob(x), atol=1e-8))  # the guide is exact
        True
    """
    return joined(each_block(vae, batch_of(vae, data), num_draws, seed, lambda block: block), 1)


def batch_of(vae: Any, data: Any, minimum_rows: int = 1) -> Batch:
    """Data as a model's encoded rows, if it is a model: what takes both asks this first.

    Raises: OptionError for anything else in the model's place, such as the data; DataError.
    """
    expect_model(vae)
    return vae.batch(data, minimum_rows)


def expect_model(vae: Any) -> None:
    """Refuse anything else in a model's place, such as the data.

    Raises: OptionError.
    """
    if not callable(getattr(vae, "batch", None)):  # a frame may have a column of that name
        raise OptionError(f"vae: got a {type(vae).__name__}, expected a model with its guide, and data after it")


CELLS = 2**20
"""Of the data, encoded at a time where rows are read one after another."""


class Pieces:
    """Encoded rows, some at a time. A frame or file is read whole, and encoded piece by piece.

    Attributes:
        first: of the pieces.
        rows: n, of all.

    Raises: as `batch_of`, of each piece as it is reached.
    """

    def __init__(self, vae: Any, data: Any) -> None:
        expect_model(vae)
        self.vae, self.data = vae, data
        ours = getattr(getattr(type(vae), "batch", None), "__module__", "").startswith("ppl_vae.")
        in_pieces = ours and not isinstance(data, Batch)
        self.parts = in_parts(data, CELLS) if in_pieces else [data]  # a model's own encoding may want all of the data
        self.first = self._encoded(self.parts[0])
        sizes = [len(part.values if isinstance(part, Table) else part) for part in self.parts[1:]]
        self.rows = len(self.first.x) + sum(sizes)

    def __iter__(self) -> Iterator[Batch]:
        yield self.first
        for part in self.parts[1:]:
            yield self._encoded(part)

    def refuse_all(self) -> None:
        """Look for what is wrong in all of the data at once, so that an error names rows by their places in these.

        Raises: DataError.
        """
        with reading(self.vae):
            check(self.vae, batch_of(self.vae, self.data))

    def _encoded(self, part: Any) -> Batch:
        try:
            return batch_of(self.vae, part)
        except DataError:
            batch_of(self.vae, self.data)
            raise


def joined(parts: list[Draws], along: int, rows: slice = slice(None)) -> Draws:
    """Draws of several groups of draws (along 0) or rows (along 1) as one, or some rows of it."""

    def cat(values: Iterable[Any]) -> Any:
        values = list(values)
        return None if values[0] is None else torch.cat(values, along)[:, rows]

    sites = {name: cat(p.sites[name] for p in parts) for name in parts[0].sites}
    shared = {
        name: torch.cat([p.shared[name] for p in (parts if along == 0 else parts[:1])]) for name in parts[0].shared
    }
    log_lik, log_prior, log_q, log_weight = (cat(getattr(p, name) for p in parts) for name in DENSITIES)
    observed = [p.observed for p in parts if p.observed is not None]
    return Draws(
        cat(p.z for p in parts),
        sites,
        log_lik,
        log_prior,
        log_q,
        log_weight,
        cat(observed) if observed else None,
        shared,
    )


def each_block(
    vae: Any,
    batch: Batch,
    num_draws: int,
    seed: int,
    read: Callable[[Draws], T],
    observe: Observe | None = None,
    shared: bool = True,
) -> list[T]:
    """`read` the draws of some rows at a time, so that memory holds one block of them only.

    Args:
        batch: n encoded rows.
        observe: a function of the likelihood's site, (S, n, ...); what it gives is in `Draws.observed`.
        shared: whether `read` needs `Draws.shared`, which may be all weights of a net S times.

    Returns: what `read` gave, block by block, in the order of the rows.
    """
    num_draws = whole("num_draws", num_draws)
    with reading(vae, seed):
        if hasattr(vae, "row_blocks"):  # an ensemble's own
            return [read(block) for block in vae.row_blocks(batch, num_draws, seed, observe, shared)]
        check(vae, batch)
        return [read(block) for block in row_blocks(vae, batch, num_draws, seed, observe, shared=shared)]


def row_blocks(
    vae: Any,
    batch: Batch,
    num_draws: int,
    seed: int,
    observe: Observe | None = None,
    *,
    pad: bool = True,
    strict: bool = True,
    keys: Tensor | None = None,
    shared: bool = True,
) -> Iterator[Draws]:
    """Draws for n encoded rows, to be called inside `isolated`.

    Every block has the same shape, the last one filled up: matrix products choose their kernel by the number of rows, and
    only then is a row's result independent of how many others come along.

    Args:
        keys: (n,) of the rows' noise; None: by `row_keys`.
        shared: whether the blocks have what all rows share. It is drawn once and kept; without, only up to `KEPT` bytes.
    """
    n, chunk = len(batch.x), min(num_draws, AT_ONCE)
    height = block_rows(batch, chunk)
    jacobian, known = jacobians(vae, batch), dict[str, Tensor]()
    for start in range(0, n, height):
        stop = min(start + height, n)
        where = torch.arange(start, start + height if pad else stop, device=batch.x.device).clamp(max=n - 1)
        block = batch.rows(where)
        own = row_keys(block, seed) if keys is None else keys[where]
        parts = []
        for first in range(0, num_draws, chunk):
            some = {name: value[first : first + chunk] for name, value in known.items()}
            with Keyed(own, first=first, strict=strict, shared=shared_key(block.x, seed), values=some):
                part = drawn(vae, block, min(chunk, num_draws - first), jacobian, observe)
            size = sum(value.nbytes for value in part.shared.values()) * num_draws / len(part.z)
            parts.append(part if shared or size <= KEPT else part._replace(shared={}))
        known = known or {name: torch.cat([p.shared[name] for p in parts]) for name in parts[0].shared}
        yield joined([p._replace(shared={}) for p in parts], 0, slice(stop - start))._replace(shared=known)


AT_ONCE = 128
"""Draws of each row that are made at once, at most."""


def block_rows(batch: Batch, num_draws: int) -> int:
    """Rows of a block with so many draws of each: what a core's cache holds."""
    return max(2, min(max(2**20 // batch.x.shape[1], 1024), 8192) // num_draws)


KEPT = 2**31
"""Bytes of draws of what all rows share that are kept from one block of rows to the next; else they are drawn again."""


def drawn(vae: Any, batch: Batch, num_draws: int, jacobian: tuple[float, ...], observe: Observe | None) -> Draws:
    """Draws for all of these rows, by the noise that the handlers around it give."""
    guide, model = programs(vae, batch, num_draws)
    local = {name: site for name, site in guide.items() if is_local(site)}
    log_q = summed_out([_log_prob(site).double() for site in local.values()])
    log_prior, log_lik, summed = log_densities(model, jacobian, batch)
    return Draws(
        guide["z"]["value"],
        {name: site["value"] for name, site in local.items()} | summed,
        log_lik,
        log_prior,
        log_q,
        log_lik + log_prior - log_q,
        observe(model["x"]) if observe else None,
        {name: site["value"] for name, site in guide.items() if name not in local},
    )


def log_densities(
    model: dict[str, Any], jacobian: tuple[float, ...], batch: Batch
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Of the model's sites at S draws: log p(z) and log p(x|z), each (S, n), and the probabilities of what is summed out.

    Args:
        jacobian: log |d encoded / d own| of each column.
    """
    prior = [site for site in model.values() if is_local(site) and not site["is_observed"]]
    terms = [_log_prob(site).double() for site in prior]
    log_prior, log_lik, summed = summed_out(terms), _log_prob(model["x"]).double(), {}
    if any(term.dim() > 2 for term in [*terms, log_lik]):  # a site of the model is summed out
        joint = [*terms, log_lik]
        summed = {s["name"]: _probabilities(s, joint) for s in prior if s["infer"].get("_enumerate_dim") is not None}
        log_lik = summed_out(joint) - log_prior
    return log_prior, log_lik + log_jacobian(jacobian, batch), summed


def jacobians(vae: Any, batch: Batch) -> tuple[float, ...]:
    """log |d encoded / d own| of each column."""
    return vae.schema.log_jacobians if vae.schema is not None else (0.0,) * batch.x.shape[1]


def log_jacobian(terms: tuple[float, ...], batch: Batch) -> Tensor | float:
    """log |d encoded / d own| of the cells that were observed, by row (n,), or of every row."""
    if batch.mask is None:
        return math.fsum(terms)
    return torch.where(batch.mask, torch.tensor(terms, dtype=torch.float64, device=batch.x.device), 0.0).sum(1)


def summed_out(terms: list[Tensor]) -> Tensor:
    """The sum of log densities (..., S, n), with the enumerated dimensions to their left summed out."""
    total = sum(terms, start=torch.zeros(()))
    return total.flatten(0, -3).logsumexp(0) if total.dim() > 2 else total


def _probabilities(site: Any, joint: list[Tensor]) -> Tensor:
    """Of the values of an enumerated site, given all else: (S, n, values)."""
    total, where = sum(joint, start=torch.zeros(())), site["infer"]["_enumerate_dim"]
    total = total.movedim(where, -1)
    return summed_out_last(total).softmax(-1)


def summed_out_last(total: Tensor) -> Tensor:
    """(..., S, n, values) to (S, n, values), the rest summed out."""
    return total.flatten(0, -4).logsumexp(0) if total.dim() > 3 else total


def row_keys(batch: Batch, seed: int) -> Tensor:
    """Keys (n,) from all that is known of each row: what stands in a hole is not."""
    x = batch.x if batch.mask is None else torch.where(batch.mask, batch.x, math.nan)
    further = [t.to(x).view(len(x), -1) for t in (batch.c, batch.group, batch.label) if t is not None]
    return noise.row_keys(torch.cat([x, *further], 1) if further else x, seed)


def known_again(batch: Batch) -> Tensor:
    """Keys (n,) that tell whether a row is one of these, on the CPU; made of some rows at a time, as they take memory."""
    size = max(1, CELLS // batch.x.shape[1])
    return torch.cat([row_keys(batch.rows(slice(at, at + size)), 0).cpu() for at in range(0, len(batch.x), size)])


def told_apart(keys: Tensor) -> Tensor:
    """Keys (n,) that differ also where rows are equal, by their order: the first of equal rows keeps its key."""
    order = keys.argsort(stable=True)
    number = torch.empty_like(keys)
    number[order] = torch.arange(len(keys), device=keys.device) - torch.searchsorted(keys[order], keys[order])
    return torch.where(number > 0, noise.mix(keys + number * noise.GAMMA), keys)


def shared_key(x: Tensor, seed: int) -> Tensor:
    """The key (1,) of sites that all rows share."""
    return noise.step_keys(torch.zeros(1, dtype=torch.long, device=x.device), seed, 0)


def traces(
    vae: Any,
    batch: Batch,
    keys: Tensor,
    num_draws: int,
    first: int = 0,
    strict: bool = True,
    shared: Tensor | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run guide and model on n rows with S vectorised draws: the sample sites of each, by name."""
    with Keyed(keys, first=first, strict=strict, shared=shared):
        return programs(vae, batch, num_draws)


def programs(vae: Any, batch: Batch, num_draws: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """As `traces`, by the noise that the handlers around it give."""
    args, given = batch.arguments()
    guide = poutine.trace(plated(vae.guide, num_draws)).get_trace(*args, **given)
    return sample_sites(guide), model_sites(vae, batch, guide, num_draws)


def model_sites(vae: Any, batch: Batch, guide: Any, num_draws: int, enumerate: bool = True) -> dict[str, Any]:
    """The model's sites at the values of a trace with S draws; discrete ones of its own are summed out, or drawn."""
    args, given = batch.arguments()
    model = poutine.replay(plated(vae.model, num_draws), trace=guide)
    model = poutine.enum(model, first_available_dim=-3) if enumerate else model
    return sample_sites(poutine.trace(model).get_trace(*args, **given))


def plated(program: Any, num_draws: int) -> Any:
    """A program under a plate of draws."""
    return pyro.plate("draws", num_draws, dim=-2)(program)


def sample_sites(trace: Any) -> dict[str, Any]:
    """The sample sites of a trace, by name."""
    return {n: s for n, s in trace.nodes.items() if s["type"] == "sample" and not site_is_subsample(s)}


def is_local(site: Any) -> bool:
    """Whether a site belongs to each row."""
    return any(frame.name == "data" for frame in site["cond_indep_stack"])


def _log_prob(site: Any) -> Tensor:
    return site["fn"].log_prob(site["value"])


def log_prob_per_feature(site: Any) -> Tensor:
    """log p(x_j|z) (S, n, d) of the likelihood's site, in encoded units; 0 where x_j was not observed."""
    fn = site["fn"]
    if not isinstance(fn, torch.distributions.Independent):
        raise ProgramError(f"site 'x': got {type(fn).__name__}, whose log density is no sum over features")
    return fn.base_dist.log_prob(site["value"]).double()


def likelihood_mean(site: Any) -> Tensor:
    """E[x|z] (S, n, d) of the likelihood's site, in encoded units."""
    return expected(site["fn"])


def minus_squared_error(site: Any) -> Tensor:
    """-(x_j - E[x_j|z])^2 (S, n, d) of the likelihood's site, in squared encoded units; 0 where x_j was not observed."""
    error = -((site["value"] - expected(site["fn"])).double() ** 2)
    fn = getattr(site["fn"], "base_dist", None)
    return torch.where(fn._mask, error, 0.0) if isinstance(fn, dist.MaskedDistribution) else error


class Facts(NamedTuple):
    """What a pair of programs is.

    Attributes:
        point: every guide site of the rows is a point mass.
        proper: every prior integrates to 1.
        discrete: names of guide sites without a gradient through their draws.
        enumerated: names of sites that are summed out, in the model or on request in the guide.
        shared: names of latent sites that all rows share.
    """

    point: bool
    proper: bool
    discrete: tuple[str, ...]
    enumerated: tuple[str, ...]
    shared: tuple[str, ...]


def facts(vae: Any, batch: Batch) -> Facts:
    """Look at the distributions that the programs use for encoded rows."""
    if hasattr(vae, "facts"):  # an ensemble's own
        return vae.facts(batch)
    few = batch.rows(slice(2))
    with reading(vae):
        guide, model = traces(vae, few, row_keys(few, 0), 1, strict=False)
    marked = [
        n for n, s in (guide | model).items() if s["infer"].get("enumerate") == "parallel" and not s["is_observed"]
    ]
    return Facts(
        point=all(isinstance(base(s["fn"]), dist.Delta) for s in guide.values() if is_local(s)),
        proper=not any(isinstance(base(s["fn"]), dist.ImproperUniform) for s in model.values()),
        discrete=tuple(n for n, s in guide.items() if not s["fn"].has_rsample and n not in marked),
        enumerated=tuple(marked),
        shared=tuple(n for n, s in guide.items() if not is_local(s)),
    )


def guided(vae: Any) -> bool:
    """Whether the guide was trained as long as the model was: not by Monte Carlo EM. Of an ensemble, all of them."""
    if hasattr(vae, "members"):
        return all(map(guided, vae.members))
    return int(getattr(vae, "guide_steps", 0)) == int(getattr(vae, "steps", 0)) or not hasattr(vae, "guide_steps")


def believe(vae: Any) -> None:
    """Refuse to take a guide's word that the last fit has not trained.

    Raises: ProgramError.
    """
    if not guided(vae):
        raise ProgramError(
            "guide: got one that the last fit has not trained, as 'mcem' leaves it; expected what does without it, such as "
            "posterior(vae, data, 'hmc') and log_evidence(vae, data, 'ais'), or a guide fitted afterwards: by fit with "
            "another objective, or to the model as it is by ppl_vae.criticism.refit.refitted(vae, train)"
        )


def check(vae: Any, batch: Batch, strict: bool = True, read_guide: bool = True) -> None:
    """Run the programs on two rows, and refuse rows outside the likelihood's support.

    Args:
        read_guide: whether the guide's answer will be believed; else it is no more than a place to start at.

    Raises: ProgramError naming the site or the parameter, DataError naming the first column at fault.
    """
    if read_guide:
        believe(vae)
    for name, parameter in vae.named_parameters():
        if not parameter.isfinite().all():
            raise ProgramError(f"parameter {name!r}: got NaN or infinite values, expected finite weights")
    few = batch.rows(slice(2))
    n, keys = len(few.x), row_keys(few, 0)
    try:
        with torch.random.fork_rng(devices=[]), Keyed(keys, strict=strict):
            alone = {name: site["value"] for name, site in programs(vae, few, 1)[0].items() if not is_local(site)}
        many = sum(value.numel() for value in alone.values()) > MANY  # one draw of these will do
        with Keyed(keys, strict=strict, values=alone if many else {}), _Own(vae):
            guide, model = programs(vae, few, TRIAL)
        shapes = {name: _log_prob(site).shape for name, site in (guide | model).items() if is_local(site)}
    except PplVaeError:
        raise
    except Exception as error:  # whatever a user's program may raise
        what = f"model or guide failed on rows of {batch.x.shape[1]} columns"
        raise ProgramError(f"{what}: {first_line(error)}") from error
    for name, site in [*guide.items(), *model.items()]:
        if name == "x" or not site["is_observed"]:  # known classes are weighed, and in no score
            _check_unweighed(name, site)
    for name, shape in shapes.items():
        if shape[-2:] != (TRIAL, n):
            raise ProgramError(
                f"site {name!r}: got log densities of shape {tuple(shape)}, expected one for each draw and row, "
                f"{(TRIAL, n)}; declare the event dimension with .to_event(1)"
            )
    for name, site in model.items():
        if site["is_observed"] or "_enumerate_dim" in site["infer"]:
            continue
        if name not in guide:
            raise ProgramError(f"site {name!r}: got it in the model alone, expected the guide to sample it too")
        _check_supports(name, guide[name], site["fn"])
    entries = base(model["x"]["fn"])
    parts = zip(entries.parts, entries.split_columns()) if isinstance(entries, Columnwise) else [(entries, slice(None))]
    for family, columns in parts:
        _check_entries(vae, batch, family, columns)


class _Own(Messenger):
    """Refuses parameters of modules that are none of the model's: no copy and no saved model would have their values."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.known = {id(parameter) for parameter in vae.parameters()}

    def _pyro_post_param(self, msg: Any) -> None:
        of_module, _, name = msg["name"].rpartition("$$$")  # as pyro.module has it
        if of_module and id(msg["value"].unconstrained()) not in self.known:
            raise ProgramError(
                f"parameter {name!r}: got it from a module that is no part of the model, expected one of the model's own"
            )


def _check_unweighed(name: str, site: Any) -> None:
    """Refuse weights of sites: a fit would have them, and draws, scores and bounds would not."""
    if site["mask"] is None and not torch.as_tensor(site["scale"] != 1).any():
        return
    got = "a mask" if site["mask"] is not None else f"a scale of {float(torch.as_tensor(site['scale']).max()):.4g}"
    raise ProgramError(
        f"site {name!r}: got it under {got}, as of poutine or of a plate that subsamples, which scores would not "
        "have; expected the plate of the rows at hand, pyro.plate('data', len(x)), and cells masked by `fn.mask`"
    )


def _check_entries(vae: Any, batch: Batch, family: Any, columns: Any) -> None:
    """Refuse cells of some columns outside the support of their family."""
    constraint = torch.distributions.constraints
    if constraint.is_dependent(type(family).support) or family.support is constraint.real or family.event_dim:
        return  # depends on the parameters, or on a row as a whole
    wrong = torch.zeros_like(batch.x, dtype=torch.bool)
    wrong[:, columns] = ~family.support.check(batch.x[:, columns])
    if batch.mask is not None:
        wrong &= batch.mask
    expected = f"{_describe(family.support)}, the support of the likelihood {type(family).__name__}"
    refuse_first(vae, batch.x, wrong, expected + (GREY if isinstance(family, dist.Bernoulli) else ""))


def _check_supports(name: str, site: Any, prior: Any) -> None:
    """Prior and posterior must measure the same space, and the draws lie where the prior has a density."""
    q, p = base(site["fn"]), base(prior)
    spaces = space(site["fn"]), space(prior)
    if spaces[0] != spaces[1] and not isinstance(q, dist.Delta):
        raise ProgramError(
            f"site {name!r}: got a {spaces[0]} from the guide's {type(q).__name__}, expected a {spaces[1]} as the "
            f"prior's {type(p).__name__} is: their densities have no common measure"
        )
    inside = prior.support.check(site["value"])
    if not inside.all():  # the prior's density means nothing there
        raise ProgramError(
            f"site {name!r}: got {site['value'][~inside][0].tolist()} from the guide's {type(q).__name__}, "
            f"expected values in the support of the prior's {type(p).__name__}"
        )


def space(fn: Any) -> str:
    """What a distribution's log_prob is a density of."""
    support = fn.support
    while isinstance(support, torch.distributions.constraints.independent):
        support = support.base_constraint
    if support.is_discrete:
        return "probability mass"
    name = type(support).__name__.strip("_").lower()
    return {"simplex": "density on the simplex", "sphere": "density on the sphere"}.get(name, "density on R^k")


def refuse_first(vae: Any, x: Tensor, wrong: Tensor, expected: str) -> None:
    """Raise a `DataError` that names the first cell of x (n, d) at fault, if any is."""
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        name = f"x{column}" if vae.schema is None else vae.schema.names[column]
        raise DataError(f"column {name!r}: got {x[row, column].item():.6g} in row {row}, expected {expected}")


TRIAL = 64
"""Draws of two rows on which programs are checked."""
MANY = 2**16
"""Numbers that all rows share of which a check makes one draw only."""
GREY = ". For grey values: likelihood='continuous_bernoulli', or fit(binarize=...) and datasets.binarize"


def _describe(support: Any) -> str:
    if support is torch.distributions.constraints.boolean:
        return "0 or 1"
    if support is torch.distributions.constraints.unit_interval:
        return "a value in [0, 1]"
    return str(support)
