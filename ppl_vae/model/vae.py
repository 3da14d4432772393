"""A variational autoencoder is two probabilistic programs: the decoder is the model, the encoder is the guide."""

from collections.abc import Callable
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.data.schema import Batch, Schema
from ppl_vae.errors import OptionError, ProgramError

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


class VAE(nn.Module):
    """A variational autoencoder (Kingma & Welling 2013) as two Pyro programs.

    Args:
        encoder: x (..., n, d) to q(z|x), batch (..., n) and event (k,).
        decoder: z (..., n, k) to p(x|z), batch (..., n) and event (d,).
        prior: nothing to p(z), event (k,).
            Each a callable that returns a Pyro distribution; the parameters of those that are modules are trained.
        schema: columns and scaling of the data that it was built for; encoder and decoder work in encoded units.

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
    steps: Tensor

    def __init__(self, encoder: Part, decoder: Part, prior: Part, schema: Schema | None = None) -> None:
        super().__init__()
        for name, part in (("encoder", encoder), ("decoder", decoder), ("prior", prior)):
            if not callable(part):
                raise OptionError(f"{name}: got {part!r}, expected a callable that returns a Pyro distribution")
        self.encoder, self.decoder, self.prior = encoder, decoder, prior
        self.schema = schema
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))  # of all fits so far: the key of their noise
        self.recipe: dict[str, Any] | None = None  # how `build` made it, in names and numbers; what `save` writes

    def model(self, x: Tensor | None = None, mask: Tensor | None = None, *, n: int | None = None) -> Tensor:
        """p(z) p(x|z): sites "z" and "x" in the plate "data".

        Args:
            x: observed rows (n, d) in encoded units, or None to sample n rows.
            mask: (n, d) of bool, True where x is observed; the rest of x is not read.
            n: rows to sample where x is None.

        Returns: x (..., n, d).
        """
        self._register("prior", "decoder")
        if x is None and n is None:
            raise OptionError("model: got neither x nor n, expected rows to observe or a number of rows to sample")
        with pyro.plate("data", n if x is None else x.shape[-2], dim=-1):
            z = pyro.sample("z", self.prior())
            likelihood = self.decoder(z)
            if mask is not None and not isinstance(likelihood, dist.Independent):
                raise ProgramError(
                    f"mask: got the likelihood {type(likelihood).__name__}, expected one with entries to mask"
                )
            if mask is not None:  # masked NaN would still give NaN gradients: fill, then mask
                likelihood = likelihood.base_dist.mask(mask).to_event(1)
                x = None if x is None else torch.where(mask, x, 0.0)
            return pyro.sample("x", likelihood, obs=x)

    def guide(self, x: Tensor, mask: Tensor | None = None, *, n: int | None = None) -> Tensor:
        """q(z|x): site "z" in the plate "data". The same arguments as `model`.

        Returns: z (..., n, k).
        """
        self._register("encoder")
        with pyro.plate("data", x.shape[-2], dim=-1):
            return pyro.sample("z", self.encoder(x if mask is None else torch.where(mask, x, 0.0)))

    def _register(self, *names: str) -> None:
        for name in names:
            part = getattr(self, name)
            if isinstance(part, nn.Module):
                pyro.module(f"{key(self)}.{name}", part)

    def batch(self, data: Any, minimum_rows: int = 1) -> Batch:
        """`data` as encoded tensors of this model's dtype and device, checked against its schema."""
        like = next((p for p in [*self.parameters(), *self.buffers()] if p.is_floating_point()), torch.zeros(0))
        schema = self.schema or Schema.of(data)
        return schema.tensors(data, minimum_rows=minimum_rows, dtype=like.dtype, device=like.device)
