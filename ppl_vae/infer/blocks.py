"""What is read off draws, some rows at a time, by a graph of one block: for many rows, without the programs' own cost."""

import logging
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ppl_vae.data.schema import Batch
from ppl_vae.errors import OptionError, PplVaeError, first_line
from ppl_vae.infer import graphs
from ppl_vae.infer.draws import (
    AT_ONCE,
    Draws,
    Observe,
    block_rows,
    check,
    drawn,
    each_block,
    jacobians,
    row_keys,
)
from ppl_vae.infer.graphs import Flat, Untraceable
from ppl_vae.infer.noise import ByStep, Keyed, Request, requested
from ppl_vae.infer.scope import reading

log = logging.getLogger(__name__)

Figures = tuple[Tensor, ...]
Read = Callable[[Draws], Figures]

TRACING_PAYS, PAYS = 500, 10_000
"""Blocks from which on a graph, some half a second, and its compilation, some 10, are won back."""
MOST = 2**15
"""Draws of a block, at most."""


def reader(
    vae: Any,
    batch: Batch,
    rows: int,
    num_draws: int,
    seed: int,
    read: Read,
    observe: Observe | None = None,
    compiled: bool | str = False,
) -> Callable[[Batch], list[Figures]]:
    """What reads figures off the draws of rows, block by block.

    Args:
        batch: the first of the encoded rows.
        rows: that will be read in all.
        read: draws to figures whose first dimension is the rows'.
        compiled: True, "traced", False, or "auto": what so many rows pay for, on a CPU.

    Returns: a function of encoded rows.

    Raises: OptionError, if it insists on a graph, with the reason.
    """
    graphs.check_choice(compiled)
    work, on_cpu = rows / block_rows(batch, min(num_draws, AT_ONCE)), batch.x.device.type == "cpu"
    tried = graphs.worth(compiled, work, TRACING_PAYS, PAYS, on_cpu)
    if tried and not hasattr(vae, "row_blocks"):
        with reading(vae):
            check(vae, batch)
    for of_compiler in tried:
        columns = tuple(column is not None and (column.shape[1:], column.dtype, column.device) for column in batch)
        key = (num_draws, read, observe, of_compiler, columns, torch.get_num_threads())
        try:
            kept = _kept.setdefault(vae, {})
            if key not in kept or not kept[key].still(vae):
                kept[key] = BlockGraph(vae, batch, num_draws, read, observe, of_compiler)
            while len(kept) > KEPT:
                kept.pop(next(iter(kept)))
            return partial(kept[key], vae, seed)
        except Exception as error:  # of torch, its compiler, or programs that are no list of tensor operations
            reason = f"{type(error).__name__}: {first_line(error)}"
            if compiled != "auto":
                raise OptionError(f"compiled: got {compiled!r}, but no graph could be made: {reason}") from error
            log.log(logging.INFO if isinstance(error, PplVaeError) else logging.WARNING, "no graph: %s", reason)
    return lambda batch: each_block(vae, batch, num_draws, seed, read, observe, False)


_kept: WeakKeyDictionary[Any, dict[Any, "BlockGraph"]] = WeakKeyDictionary()
KEPT = 4
"""Graphs that are kept of a model, for rows to come."""


class BlockGraph:
    """Figures of encoded rows, by a graph of a block of them with its noise as an input.

    Args:
        vae: a model with its guide; it is given again with the rows, since it keeps its graphs alive, not they it.
        batch: encoded rows, for the shapes and as a trial.
        num_draws: S.
        read: draws to figures whose first dimension is the rows'.
        observe: as in `each_block`.
        compiled: by TorchInductor; else operation by operation.

    Raises: Untraceable, with the reason, or whatever torch raises.
    """

    def __init__(
        self, vae: Any, batch: Batch, num_draws: int, read: Read, observe: Observe | None, compiled: bool
    ) -> None:
        if hasattr(vae, "row_blocks"):
            raise Untraceable("each member of an ensemble has a graph of its own")
        self.num_draws, self.read, self.observe = num_draws, read, observe
        self.jacobian, self.height = jacobians(vae, batch), block_rows(batch, num_draws)
        if self.height * num_draws > MOST:
            raise Untraceable(f"{num_draws} draws of each row are too many for one graph")
        n, device = len(batch.x), batch.x.device
        first, last = (
            self._where(0, n, device),
            torch.arange(n - 1, n - 1 - self.height, -1, device=device).clamp(min=0),
        )
        self.trials = [_own(batch.rows(rows)) for rows in (first, last)]
        self.keys = [row_keys(block, 0) for block in self.trials]
        self.requests: list[Request] = []
        with reading(vae):
            self.tensors = _tensors(vae)
            self._by_programs(vae, self._asked, self.trials[0])
            if any(not request.local for request in self.requests):
                raise Untraceable("sites that all rows share")
            self.expected = self._expected(vae)
            self.present = torch.ones_like(self.keys[0], dtype=torch.bool)[None]
            self.noise = ByStep(self.requests, device)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch, about itself
                self._make(vae, compiled)
            found = [figure for trial in zip(self.trials, self.keys) for figure in self._figures(*trial)]
        for one, other in zip(found, self.expected):
            if not torch.allclose(one, other, rtol=graphs.AGREES, atol=graphs.AGREES, equal_nan=True):
                raise Untraceable("the graph of a block gives other figures than the programs")

    def still(self, vae: Any) -> bool:
        """Whether the model is what it was: the same values of the same tensors, and programs that do the same."""
        if _tensors(vae) != self.tensors or jacobians(vae, self.trials[0]) != self.jacobian:
            return False
        with reading(vae):
            now = self._expected(vae)
        return all(torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True) for a, b in zip(now, self.expected))

    def _expected(self, vae: Any) -> list[Tensor]:
        """Figures of two trial blocks by the programs."""
        return [
            figure
            for block, keys in zip(self.trials, self.keys)
            for figure in self._by_programs(vae, partial(requested, keys=keys), block)
        ]

    def __call__(self, vae: Any, seed: int, batch: Batch) -> list[Figures]:
        with reading(vae):
            check(vae, batch)
            keys, found = row_keys(batch, seed), []
            for start in range(0, len(keys), self.height):
                where = self._where(start, len(keys), keys.device)
                figures = self._figures(batch.rows(where), keys[where])
                found.append(tuple(figure[: len(keys) - start] for figure in figures))
        return found

    def _asked(self, request: Request) -> Tensor:
        self.requests.append(request)
        return requested(request, self.keys[0])

    def _where(self, start: int, n: int, device: torch.device) -> Any:
        """Rows of a block; the last one is filled up."""
        if start + self.height <= n:
            return slice(start, start + self.height)
        return torch.arange(start, start + self.height, device=device).clamp(max=n - 1)

    def _by_programs(self, vae: Any, supply: Callable[[Request], Tensor], block: Batch) -> Figures:
        with Keyed(self.keys[0], supply=supply):
            return self.read(drawn(vae, block, self.num_draws, self.jacobian, self.observe))

    def _flat(self, block: Batch, keys: Tensor) -> list[Tensor]:
        """What the graph takes in: columns and noise."""
        noise = self.prepare(*self.draw(keys[None], self.present, *self.noise.counted))
        return [*(column.contiguous() for column in block if column is not None), *(v[0] for v in noise)]

    def _figures(self, block: Batch, keys: Tensor) -> Figures:
        return self.run(*self._flat(block, keys), *self.constants)

    def _make(self, vae: Any, compiled: bool) -> None:
        self.draw: Flat = self.noise
        self.prepare: Flat = lambda *noise: noise
        (block, other), (keys, _) = self.trials, self.keys
        width = sum(column is not None for column in block)

        def call(*flat: Tensor) -> Figures:
            following = iter(flat)
            columns: list[Any] = [None if column is None else next(following) for column in block]
            return self._by_programs(vae, lambda request: next(following), Batch(*columns))

        flat = self._flat(block, keys)
        others = self._flat(other, keys + 1)
        graph, self.constants = graphs.traced(call, flat, others)
        before, rest = graphs.parted(graph, [*flat, *self.constants], range(width, len(flat)))
        if before is not None:
            self.prepare = torch.vmap(before)
        if compiled:
            own = (keys[None], self.present, *self.noise.counted)
            self.prepare = graphs.of_noise(self.prepare, self.draw(*own))
            self.draw = graphs.exactly(self.draw, own)
        flat = [*self._flat(block, keys), *self.constants]
        self.run = graphs.compiled(rest, flat) if compiled else graphs.lean(rest, flat)


def _tensors(vae: Any) -> list[tuple[int, int]]:
    """Which tensors a model is made of, and how often they were changed."""
    plain = (value for module in vae.modules() for value in vars(module).values() if isinstance(value, Tensor))
    return [(tensor.data_ptr(), tensor._version) for tensor in (*vae.parameters(), *vae.buffers(), *plain)]


def _own(block: Batch) -> Batch:
    """The same in memory of its own: a view would keep all of the data."""
    columns: list[Any] = [None if column is None else column.clone() for column in block]
    return Batch(*columns)
