"""A variational autoencoder is two probabilistic programs: the decoder is the model, the encoder is the guide."""

from collections.abc import Callable
from functools import lru_cache
from inspect import Parameter, signature
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ppl_vae.data.schema import Batch, Schema
from ppl_vae.errors import DataError, OptionError, ProgramError
from ppl_vae.model.missing import inside, masked

Part = Callable[..., dist.Distribution]

_numbers = count()
_keys: WeakKeyDictionary = WeakKeyDictionary()


def key(module: nn.Module) -> str:
    """A name that no other module in this process has, copies included.

    Pyro's parameter store is global: a second VAE under the names of a first would silently never train.
    """
    if module not in _keys:
        _keys[module] = f"vae{next(_numbers)}"
    return _keys[module]


@lru_cache
def _names(call: Callable) -> frozenset[str] | None:
    """The arguments that a function names; None if it takes any."""
    parameters = signature(call).parameters
    return None if any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values()) else frozenset(parameters)


def call(part: Any, *values: Tensor, **given: Any) -> Any:
    """`part(*values)` with those of the further arguments that its signature names."""
    names = _names(type(part).forward if isinstance(part, nn.Module) else part)
    return part(*values, **(given if names is None else {name: given[name] for name in names & given.keys()}))


def global_sites(part: Any) -> Any:
    """What a part samples before the plate of rows, if anything."""
    return part.global_sites() if hasattr(part, "global_sites") else None


def sound(site: str, name: str, made: Any) -> Any:
    """What a part returned, if it is a Pyro distribution with its event dimension declared.

    Raises: ProgramError naming site and part.
    """
    if not isinstance(made, TorchDistributionMixin):
        kind = type(made)
        got = f"{kind.__module__}.{kind.__name__}"
        raise ProgramError(f"site {site!r}: got a {got} from the {name}, expected a Pyro distribution")
    if len(made.event_shape) != 1:
        shapes = f"batch shape {tuple(made.batch_shape)} and event shape {tuple(made.event_shape)}"
        raise ProgramError(
            f"site {site!r}: got a {type(made).__name__} of {shapes} from the {name}, expected one event dimension; "
            ".to_event(1) declares it"
        )
    return made


class VAE(nn.Module):
    """A variational autoencoder (Kingma & Welling 2013) as two Pyro programs.

    Args:
        encoder: x (..., n, d) to q(z|x), batch (..., n) and event (k,).
        decoder: z (..., n, k) to p(x|z), batch (..., n) and event (d,).
        prior: nothing to p(z), event (k,).
            Each a callable that returns a Pyro distribution; the parameters of those that are modules are trained. Each
            also gets by keyword those of these that its signature names: `mask` (n, d), `c` (n, q) covariates, `group`
            (n,) codes, -1 for one that was not seen, `y` (..., n, classes) a one-hot class, and `shared`, what its own
            method `global_sites()`, a program run before the plate of rows, returned; the encoder's is the guide of
            those of prior and decoder. A part may also sample sites of its own.
        schema: columns and scaling of the data that it was built for; encoder and decoder work in encoded units.
        classes: `Classes`, for a class y that is known on some rows.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> linear = torch.nn.Linear(2, 5)
        >>> vae = VAE(
        ...     encoder=lambda x: dist.Normal(x[..., :2], 1.0).to_event(1),
        ...     decoder=lambda z: dist.Normal(linear(z), 1.0).to_event(1),
        ...     prior=lambda: dist.Normal(torch.zeros(2), 1.0).to_event(1),
        ... )
        >>> vae.model(n=3).shape
        torch.Size([3, 5])
    """

    encoder: Any
    decoder: Any
    prior: Any
    classes: Any
    steps: Tensor
    guide_steps: Tensor

    def __init__(
        self, encoder: Part, decoder: Part, prior: Part, schema: Schema | None = None, classes: Any = None
    ) -> None:
        super().__init__()
        for name, part in (("encoder", encoder), ("decoder", decoder), ("prior", prior)):
            if not callable(part):
                raise OptionError(f"{name}: got {part!r}, expected a callable that returns a Pyro distribution")
        self.encoder, self.decoder, self.prior, self.classes = encoder, decoder, prior, classes
        self.schema = schema
        count_steps(self)
        self.recipe: dict[str, Any] | None = None  # how `build` made it, in names and numbers

    def model(
        self,
        x: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        n: int | None = None,
        c: Tensor | None = None,
        group: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """p(z) p(x|z): sites "z" and "x" in the plate "data", after "y" where there are classes.

        Args:
            x: observed rows (n, d) in encoded units, or None to sample n rows.
            mask: (n, d) of bool, True where x is observed; the rest of x is not read.
            n: rows to sample where x is None.
            c: covariates (n, q), encoded.
            group: (n,) codes of the rows' groups, -1 for one that was not seen.
            label: (n,) codes of the rows' classes, -1 where unknown.

        Returns: x (..., n, d).

        Raises: OptionError for neither x nor n.
        """
        self._register("prior", "decoder", "classes")
        if x is None and n is None:
            raise OptionError("model: got neither x nor n, expected rows to observe or a number of rows to sample")
        given: dict[str, Any] = {"mask": mask, "c": c, "group": group}
        of_prior, of_decoder = global_sites(self.prior), global_sites(self.decoder)
        with pyro.plate("data", n if x is None else x.shape[-2], dim=-1):
            if self.classes is not None:
                given["y"] = pyro.sample("y", self.classes.prior())
                if self.training and label is not None and x is not None:
                    self.classes.supervise(x, mask, c, label)
            z = pyro.sample("z", sound("z", "prior", call(self.prior, **given, shared=of_prior)))
            likelihood = sound("x", "decoder", call(self.decoder, z, **given, shared=of_decoder))
            if mask is not None:  # masked NaN would still give NaN gradients: fill, then mask
                x = None if x is None else torch.where(mask, x, inside(likelihood))
                likelihood = masked(likelihood, mask)
            return pyro.sample("x", likelihood, obs=x)

    def guide(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        n: int | None = None,
        c: Tensor | None = None,
        group: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """q(z|x): site "z" in the plate "data", after "y" where there are classes.

        Args:
            x, mask, n, c, group, label: as in `model`; x has to be given.

        Returns: z (..., n, k).
        """
        self._register("encoder", "classes")
        given: dict[str, Any] = {"mask": mask, "c": c, "group": group, "shared": global_sites(self.encoder)}
        x = x if mask is None else torch.where(mask, x, 0.0)
        with pyro.plate("data", x.shape[-2], dim=-1):
            if self.classes is not None:
                posterior = self.classes.posterior(x, mask, c, label)
                given["y"] = pyro.sample("y", posterior, infer={"enumerate": "parallel"})
            return pyro.sample("z", sound("z", "encoder", call(self.encoder, x, **given)))

    def _register(self, *names: str) -> None:
        for name in names:
            part = getattr(self, name)
            if isinstance(part, nn.Module):
                pyro.module(f"{key(self)}.{name}", part)

    def batch(self, data: Any, minimum_rows: int = 1) -> Batch:
        """Encode data, checked against the model's schema.

        A `Batch` is taken for rows that this model has encoded, or one of the same schema.

        Args:
            data: n rows; a `Batch` is taken for rows that this model has encoded, or one of the same schema.
            minimum_rows: fewer are an error.

        Returns: tensors of this model's dtype and device.

        Raises: DataError.
        """
        return encoded(self, data, minimum_rows)


def count_steps(module: nn.Module) -> None:
    """Give a module the counts that fits keep with it: of all its steps so far, by which their noise is keyed, and of the
    last of them that trained the guide."""
    module.register_buffer("steps", torch.zeros((), dtype=torch.long))
    module.register_buffer("guide_steps", torch.zeros((), dtype=torch.long))


def encoded(vae: Any, data: Any, minimum_rows: int = 1) -> Batch:
    """`data` as encoded tensors of a model's dtype and device, checked against its schema, if it has one.

    Raises: DataError for too few rows or other columns.
    """
    like = next((p for p in [*vae.parameters(), *vae.buffers()] if p.is_floating_point()), torch.zeros(0))
    if isinstance(data, Batch):
        return _taken(vae.schema, data, minimum_rows, like)
    schema = vae.schema or Schema.of(data)
    return schema.tensors(data, minimum_rows=minimum_rows, dtype=like.dtype, device=like.device)


def _taken(schema: Schema | None, batch: Batch, minimum_rows: int, like: Tensor) -> Batch:
    """A batch of encoded rows, of the dtype and device of `like`."""
    n, d = batch.x.shape
    if n < minimum_rows:
        raise DataError(f"data: got a Batch of {n} rows, expected at least {minimum_rows}")
    if schema is not None and d != schema.width:
        raise DataError(f"data: got a Batch of {d} columns, expected {schema.width}, encoded by this model's schema")
    mask = batch.mask
    if mask is None and schema is not None and schema.nullable:
        mask = torch.ones_like(batch.x, dtype=torch.bool)
    moved = [None if part is None else part.to(like.device) for part in batch]
    whole = Batch(*moved)  # type: ignore[arg-type]
    return whole._replace(x=whole.x.to(like.dtype), mask=None if mask is None else mask.to(like.device))
