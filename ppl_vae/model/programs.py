"""Two plain Pyro programs of one's own, as a model and its guide."""

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from ppl_vae.data.schema import Batch, Schema
from ppl_vae.errors import OptionError, ProgramError
from ppl_vae.model.missing import inside, masked
from ppl_vae.model.vae import call, count_steps, encoded, key


class Programs(nn.Module):
    """Two Pyro programs, written as for Pyro's own `SVI`, with all that a `VAE` can do.

    Args:
        model: called as model(x), x (n, d) in encoded units, samples rows in the plate "data" (dim=-1) and observes `obs` as
            x there; where its signature names them it also gets by keyword `mask` (n, d), `n` (rows to sample; x is then
            None), `c`, `group` and `label`. Without `mask` missing cells are left out of its likelihood; without `n` rows
            are sampled by running it on zeros, unobserved. Weights of sites (poutine.scale or mask, a plate that
            subsamples) are refused: a fit would have them, and scores would not.
        guide: of the same arguments, samples every latent site of the model.
        module: the module whose parameters the two train; of several, a `torch.nn.ModuleList`. Those of
            others are refused.
        obs: the name of the observed site, which goes by "x" outside of the programs.
        local: the names of the latent sites of each row, the first of which goes by "z"; all other sites are of all rows.
            Where there are several, ranks, units and dimensions are told of "z" alone, and what moves z by itself is
            refused: "ais", `gaps`, and `posterior` but by "amortized" and "sir".
        schema: columns and scaling of the data; None: by position, as they are.

    Raises: OptionError for arguments, and ProgramError, naming the site, for programs that do not do so.

    Example:
        >>> import pyro.distributions as dist, numpy as np
        >>> from ppl_vae.infer.training import fit
        >>> nets = nn.ModuleDict({"encoder": nn.Linear(5, 2), "decoder": nn.Linear(2, 5)})
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         code = pyro.sample("code", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("row", dist.Normal(nets["decoder"](code), 1.0).to_event(1), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("code", dist.Normal(nets["encoder"](x), 0.5).to_event(1))
        >>> programs = Programs(model, guide, nets, obs="row", local=("code",))
        >>> history = fit(programs, np.random.RandomState(0).randn(50, 5), epochs=2, progress=False)
    """

    module: nn.Module
    steps: Tensor
    guide_steps: Tensor
    classes = None

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        module: nn.Module,
        obs: str = "x",
        local: Sequence[str] = ("z",),
        schema: Schema | None = None,
    ) -> None:
        super().__init__()
        for name, program in (("model", model), ("guide", guide)):
            if not callable(program) or isinstance(program, nn.Module):
                raise OptionError(
                    f"{name}: got {type(program).__name__}, expected a function, with its nets in `module`"
                )
        if not isinstance(module, nn.Module):
            raise OptionError(
                f"module: got {type(module).__name__}, expected the torch.nn.Module of both programs' nets"
            )
        if isinstance(local, str) or not local or not all(isinstance(name, str) for name in (*local, obs)):
            raise OptionError(
                f"local, obs: got {local!r} and {obs!r}, expected names of sites, the latent ones in a tuple"
            )
        self.module, self.schema, self.obs, self.local = module, schema, obs, tuple(local)
        self.functions = model, guide
        count_steps(self)

    def model(self, x: Tensor | None = None, mask: Tensor | None = None, *, n: int | None = None, **given: Any) -> Any:
        """The model with its sites as "x" and "z", as `VAE.model`.

        Args:
            x: observed rows (n, d) in encoded units, or None to sample n rows.
            mask: (n, d) of bool, True where x is observed.
            n: rows to sample where x is None.
            given: `c`, `group` and `label`, as `VAE.model` has them.

        Returns: what the function returns.

        Raises: OptionError without rows and number of rows.
        """
        if x is None and n is None:
            raise OptionError("model: got neither x nor n, expected rows to observe or a number of rows to sample")
        names = _arguments(self.functions[0])
        sampled = x is None and "n" not in names
        if sampled:
            x = self._zeros(n)
        with _Named(self, x if mask is not None and "mask" not in names else None, mask, sampled):
            return self._call(self.functions[0], x, mask=mask, n=n, **given)

    def guide(self, x: Tensor, mask: Tensor | None = None, *, n: int | None = None, **given: Any) -> Any:
        """The guide with its sites as "z" and further ones, as `VAE.guide`.

        Args:
            x: rows (n, d) in encoded units; holes are 0 where the function sees them.
            mask: (n, d) of bool, True where x is observed.
            n: not used.
            given: `c`, `group` and `label`.

        Returns: what the function returns.
        """
        x = x if mask is None else torch.where(mask, x, 0.0)
        with _Named(self):
            return self._call(self.functions[1], x, mask=mask, n=n, **given)

    def batch(self, data: Any, minimum_rows: int = 1) -> Batch:
        """`data` as encoded tensors, as `VAE.batch`.

        Args:
            data: n rows, or a `Batch` of rows that the same schema has encoded.
            minimum_rows: n at least.

        Returns: `Batch`, x (n, d) in encoded units.
        """
        return encoded(self, data, minimum_rows)

    def __deepcopy__(self, memo: Any) -> Any:
        raise OptionError(
            "copy: got Programs, whose functions go on using the nets that they name; expected them made anew"
        )

    def _call(self, program: Callable[..., Any], x: Any, **given: Any) -> Any:
        pyro.module(f"{key(self)}.module", self.module)
        return call(program, x, **given)

    def _zeros(self, n: Any) -> Tensor:
        if self.schema is None:
            raise OptionError("model: got no schema, expected one, or `n` among the model's arguments, to sample rows")
        like = next((p for p in self.parameters() if p.is_floating_point()), torch.zeros(()))
        return like.new_zeros(n, self.schema.width)


def _arguments(program: Callable[..., Any]) -> frozenset[str]:
    """The arguments that a function names."""
    return frozenset(signature(program).parameters)


class _Named(Messenger):
    """Renames the sites of two programs, leaves missing cells out, and refuses sites in the wrong place."""

    def __init__(
        self, programs: Programs, x: Tensor | None = None, mask: Tensor | None = None, sampled: bool = False
    ) -> None:
        super().__init__()
        self.obs, self.local = programs.obs, programs.local
        self.x, self.mask, self.sampled = x, mask, sampled

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        name = msg["name"]
        of_rows = any(frame.name == "data" for frame in msg["cond_indep_stack"])
        if of_rows != (name in (self.obs, *self.local)):
            known = (
                f"{self.obs!r} and {', '.join(map(repr, self.local))} there and no others (`obs` and `local` say which)"
            )
            raise ProgramError(
                f"site {name!r}: got it {'in' if of_rows else 'outside'} the plate 'data' of rows, expected {known}"
            )
        if name == self.obs:
            self._observed(msg)
        msg["name"] = {self.obs: "x", self.local[0]: "z"}.get(name, name)

    def _observed(self, msg: Any) -> None:
        if self.sampled:
            msg["is_observed"], msg["value"], msg["done"] = False, None, False
        elif self.x is not None:  # masked NaN would still give NaN gradients: fill, then mask
            msg["value"] = torch.where(self.mask, self.x, inside(msg["fn"]))  # type: ignore[arg-type]
            msg["fn"] = masked(msg["fn"], self.mask)  # type: ignore[arg-type]
