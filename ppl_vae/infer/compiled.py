"""Whole training steps in one compiled graph: both programs, the objective, its gradients and the optimiser.

TorchInductor compiles what `traced.py` wrote down, with the optimiser's update, in a loop over many steps.
"""

import logging
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppl_vae.data.schema import Batch
from ppl_vae.errors import OptionError, PplVaeError, first_line
from ppl_vae.infer import graphs
from ppl_vae.infer.graphs import Flat, Untraceable
from ppl_vae.infer.history import History
from ppl_vae.infer.traced import Inputs, Loss, OfStep, Sums, TracedStep, gradients, named_tensors, put_back
from ppl_vae.infer.updates import UPDATES, Sizes, Update

log = logging.getLogger(__name__)

TRACING_PAYS, PAYS = 1_000, 20_000
"""Steps from which on a graph, half a second to two, and its compilation, some 15, are won back by steps that are a
millisecond shorter each time."""


def step(
    loss: Loss,
    inputs: Inputs,
    update: Update,
    decay: float,
    max_grad_norm: float | None,
    data: Batch,
    *flat: Tensor,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The next parameters and states, which are these where loss or gradient are not finite.

    Args:
        loss: what is minimised.
        inputs: what `flat` means, with `data` for which columns there are.
        update, decay, max_grad_norm: of the optimiser.

    Returns: (5,) `SUMS` over rows, float64; whether these are finite, () of bool; what comes after `Inputs.state`.
    """
    sums, found = gradients(loss, inputs, data, *flat)
    parameters, _, states, _, own = inputs.structured(data, flat)
    _, _, rows, *sizes = own.scalars.unbind()
    norm = torch.stack([(g * g).sum() for g in found]).sum().sqrt()
    good = torch.isfinite(sums[-1]) & torch.isfinite(norm)
    factor = 1.0 if max_grad_norm is None else (max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
    moved = [
        update(p, g * factor, state, Sizes(*sizes), decay) for p, g, state in zip(parameters.values(), found, states)
    ]
    following = [*(p for p, _ in moved), *(v for _, state in moved for v in state)]
    sums = torch.cat([sums, (norm * rows).double().reshape(1)])
    return sums, good, [torch.where(good, new, old) for new, old in zip(following, flat)]


class CompiledStep(TracedStep):
    """Steps of a fit by one compiled graph of many. Arguments and errors are those of `TracedStep`."""

    def __init__(self, eager: Any, size: int, like: "CompiledStep | None" = None) -> None:
        if eager.ranks.size > 1:
            raise Untraceable(
                "the step is made of gradients that processes exchange; 'traced' leaves it out of the graph"
            )
        self.update, self.kept = UPDATES[eager.one.name]
        super().__init__(eager, size, like)
        self._take_over()

    def function(self) -> Flat:
        """What there is a graph of."""
        return partial(step, self.loss, self.inputs, self.update, self.one.weight_decay, self.one.max_grad_norm)

    def make(self) -> None:
        """Compile the step in a loop, and compare it to the programs.

        Raises: Untraceable.
        """
        train, columns = self.rows.train, len(self.inputs.read(self.rows.data))
        data, own, keys = self.places([train[: self.size]], [1.0], [0.5])
        self.compile_noise(keys, own.present)
        own = own._replace(noise=self.noise_of(keys, own.present))

        def of_step(state: Any, held: Any, own: Any) -> Any:
            return self.rest(*state, *held[:columns], *own, *held[columns:])

        state, held = self.inputs.state, [*self.inputs.read(data), *self.constants]
        count = torch.tensor(1, device=own.where.device)
        self.run = graphs.compiled(graphs.looped(of_step, state, held, own.flat), [count, *state, *held, *own.flat])
        self._check_batches()

    def compile_noise(self, keys: Tensor, present: Tensor) -> None:
        """Compile what `noise_of` does, for so many keys."""
        inputs = (keys, present, *self.noise.counted)
        self.prepare = graphs.of_noise(self.prepare, self.draw(*inputs))
        self.draw = graphs.exactly(self.draw, inputs)

    def each(self, plan: Any, history: History) -> Iterator[None]:
        """A step on each batch of a `Plan`, with pauses; errors show the history so far."""
        for batches, factors, kl_weights in self.portions(plan):
            data, own = self.given(batches, factors, kl_weights)
            good, sums = self._run(self.inputs.state, data, own, len(batches))
            self.went(batches[:good], sums.tolist())
            if good < len(batches):
                self.refuse(data, own, batches[good], good, kl_weights[good], history)
            yield

    def _run(self, state: list[Tensor], data: Batch, own: OfStep, n: int) -> tuple[int, Tensor]:
        """So many steps from a state, which they change: how many were good, and their sums."""
        count = torch.tensor(n, device=own.where.device)
        good, sums = self.run(count, *state, *self.inputs.read(data), *self.constants, *own.flat)
        return int(good), sums

    def optimizers(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """As torch keeps it."""
        tensors, t = named_tensors(self.vae), torch.tensor(float(self.taken))
        for name, state in zip(self.inputs.parameters, self.inputs.states):
            if name in tensors and state:
                yield tensors[name], {"step": t.clone(), **dict(zip(self.kept, state))}

    def _take_over(self) -> None:
        tensors = named_tensors(self.vae)
        for name, state in zip(self.inputs.parameters, self.inputs.states):
            if known := self.one.known.get(tensors[name]):
                self.taken = int(known["step"])
                torch._foreach_copy_(state, [known[what] for what in self.kept])

    def _hand_over(self) -> None:
        self.one.known.update(self.optimizers())

    def _check(self, numbers: Tensor) -> None:
        state = [value.clone() for value in self.inputs.state]
        _, found = self._run(state, *self._one(numbers), 1)
        expected, _, of_programs = self.by_programs(numbers)
        self._same_sums(found, expected, numbers)
        for name, moved in self._apart(state, of_programs).items():
            if not moved <= 10 * self.agrees:
                raise Untraceable(f"the graph's step of {name!r} is another than the programs'")

    def _apart(self, following: list[Tensor], state: list[Tensor]) -> Sums:
        """How far two next states are apart, of each parameter and what the optimiser keeps of it, relatively.

        Adam moves a weight by the sign of its gradient, however small, which rounding may turn: weights count by their
        squared gradients, where it keeps these.
        """
        inputs, found = self.inputs, Sums()
        new, old = (iter(values[len(inputs.parameters) :]) for values in (following, state))
        for place, (name, before) in enumerate(inputs.parameters.items()):
            kept = [(next(new), next(old)) for _ in range(inputs.kept)]
            size = (kept[-1][1] - inputs.states[place][-1]).abs() if kept else torch.ones_like(before)
            tiny = torch.finfo(before.dtype).tiny  # where there is no gradient at all
            size = size / size.max().clamp(min=tiny)
            steps = [(size * following[place], size * state[place], size * before)]
            found[name.removeprefix("vae.")] = sum(
                float((one - other).abs().max() / (other - start).abs().max().clamp(min=tiny))
                for one, other, start in [*steps, *((a, b, torch.zeros_like(b)) for a, b in kept)]
            )
        return found


def with_graph(choice: bool | str, planned: int, eager: Any, size: int) -> tuple[Any, float | None]:
    """The steps of a fit by a graph, and the seconds that it took; as they are, and None, where there can be none.

    Args:
        choice: True, "traced", False, or "auto": what so many planned steps pay for.
        eager: the steps without a graph.
        size: rows of a batch.

    Raises: OptionError, if it insists on a graph, with the reason.
    """
    start, on_cpu = time.perf_counter(), eager.rows.data.x.device.type == "cpu"
    for compiles in graphs.worth(choice, planned, TRACING_PAYS, PAYS, on_cpu):
        kind = CompiledStep if compiles else TracedStep
        try:
            with put_back(eager):
                steps = kind(eager, size)
                steps.make()
        except Exception as error:  # of torch, its compiler, or programs that are no list of tensor operations
            reason = f"{type(error).__name__}: {first_line(error)}"
            if choice != "auto":
                raise OptionError(
                    f"compiled: got {choice!r}, but no graph could be made of a step: {reason}; 'auto' or False fits without"
                ) from error
            level = logging.INFO if isinstance(error, PplVaeError) else logging.WARNING
            log.log(level, "no %s: %s", kind.__name__, reason)
        else:
            seconds = time.perf_counter() - start
            log.info("%s made in %.1f s", kind.__name__, seconds)
            return steps, seconds
    return eager, None
