"""Several fitted models as one: the mixture of them, each with the same weight (Lakshminarayanan et al. 2017)."""

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import nn

from ppl_vae.data.schema import Batch
from ppl_vae.errors import OptionError
from ppl_vae.infer.draws import Draws, Facts, Observe, check, facts, joined, row_blocks
from ppl_vae.infer.scope import isolated


class Ensemble(nn.Module):
    """The mixture (1/M) sum_m p_m(x) of M fitted models (Lakshminarayanan et al. 2017).

    The members are of other seeds or other parts, with as many latent dimensions.

    `draws`, `score` and `log_evidence` ("iwae", "psis") give each member as many draws as they are asked for: the M S
    draws of a row stand side by side, member after member, those of member m being its own under seed + m, and
    `Draws.shared["member"]` (M S,) says whose each is. A log of a mean is then that of the mixture's density, "elbo" the
    mean of the members' bounds. Their mcse takes the members for draws too, and is too large by how much they differ.
    `reconstruct` averages over members; `generate` makes all rows by one of them, which its seed picks, as it does with
    all that rows share. `compare` takes it as a candidate without an objective, by "iwae" or "psis". What z means is each
    member's own affair, and so are its programs: `encode`, `decode`, methods of `posterior` but "amortized", evidence by
    "ais", `to_arviz`, `posterior_predictive`, `pit` and most checks of `diagnose` want one of `.members`.

    Args:
        members: models of the same columns, scaled alike: fitted to the same data.

    Raises: OptionError.

    Example:
        >>> import numpy as np
        >>> from ppl_vae.infer.draws import draws
        >>> from ppl_vae.model.build import build
        >>> x = np.random.RandomState(0).randn(30, 3)
        >>> both = Ensemble([build(x, latent=2, hidden=(8,), seed=seed) for seed in (0, 1)])
        >>> draws(both, x, num_draws=2).shared["member"].tolist()
        [0, 0, 1, 1]
    """

    members: Any

    def __init__(self, members: Sequence[Any]) -> None:
        super().__init__()
        if isinstance(members, nn.Module) and not isinstance(members, nn.ModuleList):
            raise OptionError(f"members: got one {type(members).__name__}, expected a list of fitted models")
        members = list(members)
        for number, member in enumerate(members):
            if isinstance(member, Ensemble) or not isinstance(member, nn.Module) or not hasattr(member, "guide"):
                raise OptionError(f"members: got a {type(member).__name__} as number {number}, expected fitted models")
            if member.schema != members[0].schema:
                raise OptionError(
                    f"members: got other columns or scales in number {number} than in number 0, expected models of the "
                    "same data"
                )
        kinds = {p.dtype for member in members for p in member.parameters()}
        if len(kinds) > 1:
            raise OptionError(f"members: got weights of {' and '.join(sorted(map(str, kinds)))}, expected one type")
        if not members:
            raise OptionError("members: got none, expected at least one model")
        self.members = nn.ModuleList(members)
        self.schema = members[0].schema

    def batch(self, data: Any, minimum_rows: int = 1) -> Batch:
        """Encode data, checked against the members' schema.

        Args:
            data: n rows.
            minimum_rows: fewer are an error.

        Returns: encoded tensors.

        Raises: DataError.
        """
        return self.members[0].batch(data, minimum_rows)

    def facts(self, batch: Batch) -> Facts:
        """What the members are, and that they are a choice which all rows share.

        Args:
            batch: encoded rows.

        Returns: `Facts` of all members together.
        """
        each = [facts(member, batch) for member in self.members]
        named = ("discrete", "enumerated", "shared")
        discrete, enumerated, shared = (tuple({n: 0 for f in each for n in getattr(f, field)}) for field in named)
        return Facts(any(f.point for f in each), all(f.proper for f in each), discrete, enumerated, ("member", *shared))

    def row_blocks(
        self, batch: Batch, num_draws: int, seed: int, observe: Observe | None = None, shared: bool = True
    ) -> Iterator[Draws]:
        """Draws of some rows at a time, those of all members side by side; to be called inside `isolated`.

        Args:
            batch: encoded rows.
            num_draws: of each member.
            seed: of the noise; members have noise of their own.
            observe: a function of the likelihood's site, whose values are kept.
            shared: whether sites that all rows share are drawn.

        Returns: `Draws` of the rows, block by block.
        """
        for member in self.members:
            with isolated(member, seed):
                check(member, batch)
        own = [row_blocks(m, batch, num_draws, seed + j, observe, shared=shared) for j, m in enumerate(self.members)]

        def following(member: Any, blocks: Iterator[Draws]) -> Draws | None:
            with isolated(member, seed):
                return next(blocks, None)

        while None not in (parts := [following(*pair) for pair in zip(self.members, own)]):
            yield _side_by_side(parts)  # type: ignore[arg-type]

    @property
    def guide(self) -> NoReturn:
        """Raises: OptionError, as `model` and whatever else is each member's own."""
        raise OptionError("got an Ensemble, expected one of its .members: z and the programs are each member's own")

    model = decoder = steps = guide


def _side_by_side(parts: list[Draws]) -> Draws:
    """Draws of the same rows from several models; of what their rows share, the sites that all have alike."""
    sizes = {part.z.shape[-1] for part in parts}
    if len(sizes) > 1:
        raise OptionError(f"members: got {sorted(sizes)} latent dimensions, expected as many in each")
    member = torch.arange(len(parts), device=parts[0].z.device).repeat_interleave(len(parts[0].z))
    shapes = [{name: value.shape for name, value in part.shared.items()} for part in parts]
    alike = [name for name in shapes[0] if all(shape.get(name) == shapes[0][name] for shape in shapes)]
    all_of = joined([p._replace(shared={name: p.shared[name] for name in alike}) for p in parts], 0)
    return all_of._replace(shared={**all_of.shared, "member": member})
