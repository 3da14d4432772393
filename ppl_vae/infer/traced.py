"""Training steps as a graph: both programs, the objective and its gradients as a list of tensor operations.

The programs are run once, on tensors that `torch.fx` watches. What remains of Pyro's handlers, plates and traces is the list
of tensor operations that they led to, which can be run as it is, or compiled (`compiled.py`). Noise is an input: each step
has its own, the same as without the graph; it is drawn for many steps at once, and what depends on it alone is computed
then. A last batch that is short is filled up with rows that do not count, so that shapes never change.
"""

import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn

from ppl_vae.data.schema import Batch
from ppl_vae.errors import NonFiniteError, first_line
from ppl_vae.infer import graphs
from ppl_vae.infer.distributed import ALONE, Ranks
from ppl_vae.infer.elbo import TensorELBO
from ppl_vae.infer.graphs import Flat, Untraceable
from ppl_vae.infer.handlers import Tally, surroundings
from ppl_vae.infer.history import History
from ppl_vae.infer.noise import ByStep, Request, keys_by_step, requested, step_keys
from ppl_vae.infer.objectives import Objective
from ppl_vae.infer.rows import Rows, as_they_are
from ppl_vae.infer.updates import State

log = logging.getLogger(__name__)

AGREES = {"float32": 1e-4, "bf16": 1e-2}
"""How far the first steps may be from those without a graph, relatively: a check of the graph, not of its rounding."""
TOGETHER, NUMBERS = 64, 2**22
"""Steps whose noise is drawn at once, at most, and numbers that they may take in: noise, and pixels that are drawn."""
FIGURES = ("bound", "reconstruction", "kl")
SUMS = (*FIGURES, "objective", "grad_norm")
IN_NATS = 4
"""Of the sums, the first."""
IN_OWN_UNITS = ("bound", "reconstruction", "objective")

Sums = dict[str, float]


# ---- the step as a function of tensors


class Loss(nn.Module):
    """Minus the objective of a batch, and its figures, as a function that `functional_call` gives parameters to.

    Attributes:
        requests: for noise, in the order in which the programs ask for it.
    """

    def __init__(self, vae: Any, target: Objective, elbo: TensorELBO, precision: str) -> None:
        super().__init__()
        self.vae, self.target, self.elbo, self.precision = vae, target, elbo, precision
        self.requests: list[Request] = []

    def ask(self, batch: Batch) -> None:
        """Find out what noise the programs ask for, of these rows."""
        keys, weight = torch.arange(len(batch.x), device=batch.x.device), torch.ones((), device=batch.x.device)

        def supply(request: Request) -> Tensor:
            self.requests.append(request)
            return requested(request, keys)

        with torch.no_grad():
            self._run(supply, batch, weight, weight, torch.ones_like(keys, dtype=torch.bool))

    def forward(
        self, batch: Batch, kl_weight: Tensor, share: Tensor, present: Tensor, *noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss, summed over rows, and the sums of `FIGURES`."""
        following = iter(noise)
        return self._run(lambda request: next(following), batch, kl_weight, share, present)

    def _run(
        self, supply: Callable[[Request], Tensor], batch: Batch, kl_weight: Tensor, share: Tensor, present: Tensor
    ) -> tuple[Tensor, Tensor]:
        tally, (args, given) = Tally(), batch.arguments()
        weights: Any = {"kl_weight": kl_weight, "share": share, "present": present, "precision": self.precision}
        numbers = torch.zeros_like(present, dtype=torch.long)  # of the rows: what traceable objectives do not read
        with (
            pyro.get_param_store().scope(),
            surroundings(self.target, self.elbo, numbers, numbers, **weights, tally=tally, supply=supply),
        ):
            loss = self.elbo.differentiable_loss(self.vae.model, self.vae.guide, *args, **given)
            if own := [name for name in pyro.get_param_store() if "$$$" not in name]:
                raise Untraceable(f"the parameter {own[0]!r} is made by the programs themselves")
        rows = tally.by_row(self.target)
        return loss, torch.stack([torch.where(present, rows[name].double(), 0.0).sum() for name in FIGURES])


class OfStep(NamedTuple):
    """What belongs to one step, or, with a dimension more, to each of some.

    Attributes:
        where: (b,) places of the batch's rows in the data.
        present: (b,) of bool, rows that count.
        scalars: (6,) KL weight, share of the data's rows, number of rows, and `Sizes`.
        noise: as the programs ask for it.
    """

    where: Tensor
    present: Tensor
    scalars: Tensor
    noise: tuple[Tensor, ...]

    @property
    def flat(self) -> list[Tensor]:
        return [self.where, self.present, self.scalars, *self.noise]


class Inputs:
    """What steps read and change, as flat lists of tensors, and back.

    Args:
        vae: the model.
        moving: names of the parameters that have a gradient.
        kept: numbers that the optimiser keeps of each.

    Attributes:
        parameters, held: those that move, and other tensors of the model, by name.
        states: of the optimiser, for each parameter.
    """

    def __init__(self, vae: nn.Module, moving: list[str], kept: int) -> None:
        tensors = named_tensors(vae)
        self.parameters = {name: tensors[name].detach() for name in moving}
        self.held = {name: value.detach() for name, value in tensors.items() if name not in self.parameters}
        self.kept, self.states = kept, [[torch.zeros_like(p) for _ in range(kept)] for p in self.parameters.values()]

    @property
    def state(self) -> list[Tensor]:
        return [*self.parameters.values(), *(v for state in self.states for v in state)]

    def read(self, data: Batch) -> list[Tensor]:
        """What is not changed, the columns of the data that there are first."""
        return [*(column for column in data if column is not None), *self.held.values()]

    def structured(
        self, data: Batch, flat: tuple[Tensor, ...]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], list[State], Batch, OfStep]:
        """Parameters, other tensors, states, data and what belongs to the step, of the lists one after another."""
        following = iter(flat)
        parameters = {name: next(following) for name in self.parameters}
        states = [[next(following) for _ in state] for state in self.states]
        columns: list[Any] = [None if column is None else next(following) for column in data]
        held = {name: next(following) for name in self.held}
        where, present, scalars, *noise = following
        return parameters, held, states, Batch(*columns), OfStep(where, present, scalars, tuple(noise))


def named_tensors(vae: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers as a `Loss` knows them."""
    return {f"vae.{name}": value for name, value in (*vae.named_parameters(), *vae.named_buffers())}


def gradients(loss: Loss, inputs: Inputs, data: Batch, *flat: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Of minus the objective.

    Args:
        loss: what is minimised.
        inputs: what `flat` means, with `data` for which columns there are.

    Returns: (4,) `SUMS` over rows but for the last, float64; the gradient of the mean over rows to each parameter.
    """
    parameters, held, _, data, own = inputs.structured(data, flat)
    kl_weight, share, rows, *_ = own.scalars.unbind()
    batch = data.rows(own.where)
    with torch.enable_grad():
        leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
        tensors = {**leaves, **held}
        value, figures = torch.func.functional_call(loss, tensors, (batch, kl_weight, share, own.present, *own.noise))
        if changed := [name for name, before in {**leaves, **held}.items() if tensors[name] is not before]:
            raise Untraceable(f"the programs replace {changed[0].removeprefix('vae.')!r} as they run")
        of_mean = (torch.ones_like(value) / rows).to(value)  # divided where it is one number
        found = torch.autograd.grad(value, list(leaves.values()), of_mean)
    return torch.cat([figures.detach(), -value.detach().double().reshape(1)]), [g.contiguous() for g in found]


def filled(values: Tensor, size: int) -> Tensor:
    """Values (b, ...) with more of the first one, (size, ...)."""
    return (
        torch.cat([values, values[:1].expand(size - len(values), *values.shape[1:])]) if len(values) < size else values
    )


# ---- steps of a fit


class TracedStep:
    """Steps of a fit by the operations that were written down, in the place of `Step`, which says what was refused, and why.

    Args:
        eager: the fit's steps without a graph.
        size: rows of a batch; the last one may have fewer.
        like: steps of another fit, of the same shape, that have been written down.

    Raises: Untraceable, with the reason, or whatever torch raises; nothing has moved then.
    """

    kept: tuple[str, ...] = ()
    """What the graph keeps of each parameter, for the optimiser."""
    inputs: Inputs

    def __init__(self, eager: Any, size: int, like: "TracedStep | None" = None) -> None:
        self.eager, self.vae, self.one, self.number = eager, eager.vae, eager.one, eager.number
        self.rows: Rows = eager.rows
        self.all_rows = self.rows.pixels is as_they_are  # then the graph picks the batches itself
        target: Objective = eager.target
        elbo = target.traceable(eager.particles)
        if elbo is None or not target.per_row:
            raise Untraceable("the objective is not a sum over rows in tensors alone")
        train, self.ranks = self.rows.train, eager.ranks
        self.whole = min(size, len(train))
        self.size, self.taken = math.ceil(self.whole / self.ranks.size), 0  # of this process's part
        self.loss = Loss(self.vae, target, elbo, eager.precision)
        self.agrees = AGREES[eager.precision]
        numbers, others = train[: self.size], train.flip(0)[: self.size]
        self.loss.ask(self.rows.data.rows(numbers))
        if self.ranks.size > 1:
            if not eager.shared or not all(request.local for request in self.loss.requests):
                raise Untraceable("a batch is not the sum of what processes make of their rows")
            self.one.sum = self.ranks.sum
        self.together = self._together(math.ceil(len(train) / self.whole))
        self.trained = {name: value for name, value in named_tensors(self.vae).items() if value.requires_grad}
        if like is None:
            moving = [name for name, gradient in self._gradients(numbers)[1].items() if gradient is not None]
        elif self.trained.keys() == like.trained.keys():
            moving = list(like.inputs.parameters)
        else:
            raise Untraceable("other tensors are trained")
        self.inputs = Inputs(self.vae, moving, len(self.kept))
        self.sums = eager.sums or self._none()
        self.noise = ByStep(self.loss.requests, train.device)
        self.draw: Flat = self.noise
        self.prepare: Flat = lambda *noise: noise
        self.rest: Any
        self.constants: list[Tensor]
        if like is None:
            self._write(numbers, others)
            self._check_objective(others)
        else:  # what it gives is compared to the programs of this fit by the caller
            self.rest, self.constants = like.rest, like.constants

    def function(self) -> Flat:
        """What there is a graph of."""
        return partial(gradients, self.loss, self.inputs)

    def make(self) -> None:
        """Make the graph ready, and compare it to the programs, for whole and for short batches.

        Raises: Untraceable.
        """
        train = self.rows.train
        data, own = self._one(train[: self.size])
        inputs = [*self.inputs.state, *self.inputs.read(data), *(v[0] for v in own.flat), *self.constants]
        self.rest = graphs.lean(self.rest, inputs)
        self._check_batches()

    def _check_batches(self) -> None:
        """Whole and short ones."""
        train = self.rows.train
        sizes = [range(n)[self.ranks.part(n)] for n in (self.whole, len(train) % self.whole or self.whole)]
        for n in sorted({len(part) or 1 for part in sizes}):
            self._check(train.flip(0)[:n])

    @property
    def parameters(self) -> list[Tensor]:
        """All parameters that are trained."""
        return list(self.inputs.parameters.values())

    @property
    def elbo(self) -> Any:
        """The objective, of whose steps there is no state to a graph."""
        return self.eager.elbo

    def optimizers(self) -> Iterable[tuple[Tensor, dict[str, Tensor]]]:
        """What the optimiser keeps of each parameter."""
        return self.one.state.items()

    def each(self, plan: Any, history: History) -> Iterator[None]:
        """A step on each batch of a `Plan`, with pauses; errors show the history so far."""
        leaves = [self.trained[name] for name in self.inputs.parameters]
        known = set(self.trained.values())  # those that are idle now may not be so after a callback
        for batches, factors, kl_weights in self.portions(plan):
            data, own = self.given(batches, factors, kl_weights)
            total = [0.0] * len(SUMS)
            for place, (numbers, of_step) in enumerate(zip(batches, zip(*(v.unbind() for v in own.flat)))):
                sums, found = self._gradients_of(data, of_step)
                self.one.scale_lr(factors[place])
                self.one.rows, values = 1, sums.tolist()
                self.one.loss = values[-1]
                for p, g in zip(leaves, found):
                    p.grad = g
                self.one(known)
                if self.one.refused:
                    for p in leaves:
                        p.grad = None
                    self.went(batches[:place], total)
                    self.refuse(data, own, numbers, place, kl_weights[place], history)
                values.append(float(self.one.grad_norm) * int(of_step[1].sum()))
                total = [one + other for one, other in zip(total, values)]
            self.went(batches, total)
            yield

    def portions(self, plan: Any) -> Iterator[tuple[list[Tensor], list[float], list[float]]]:
        """The steps of a `Plan` whose noise is drawn at once: batches, factors of the step size, KL weights."""
        for first in range(0, len(plan.batches), self.together):
            batches, factors, kl_weights = (v[first : first + self.together] for v in plan)
            yield batches, factors, kl_weights

    def went(self, batches: list[Tensor], sums: list[float]) -> None:
        """Take down steps on these batches."""
        self.number, self.taken = self.number + len(batches), self.taken + len(batches)
        numbers = torch.cat([self.rows.train[:0], *(own[self.ranks.part(len(own))] for own in batches)])
        own_units = self.rows.jacobian(numbers) * len(numbers) if len(numbers) else 0.0
        for name, value in zip(SUMS, sums):
            self.sums[name] += value + (own_units if name in IN_OWN_UNITS else 0.0)
        self.sums["rows"] += len(numbers)

    def means(self) -> Sums:
        """Means over the rows since the last call, in the data's own units."""
        sums = self.ranks.totals(self.sums)
        means = {name: sums[name] / sums["rows"] for name in ("objective", "grad_norm", *FIGURES)}
        self.sums = self._none()
        return means

    @staticmethod
    def _none() -> Sums:
        return dict.fromkeys((*SUMS, "rows"), 0.0)

    def still(self) -> Any:
        """These steps, or, if a callback has changed what the graph does not see, those without it, from here on."""
        tensors = named_tensors(self.vae)
        ours = {**self.inputs.parameters, **self.inputs.held}
        at = self.rows.noise.get_state()
        try:
            if tensors.keys() != ours.keys() or any(
                value.data_ptr() != ours[name].data_ptr() or value.requires_grad != (name in self.trained)
                for name, value in tensors.items()
            ):
                raise Untraceable("other tensors are part of the model, or trained")
            self._check(self.rows.train[: self.size])
        except Exception as error:
            log.info("goes on without a graph after a callback: %s", first_line(error))
            self._hand_over()
            self.eager.number = self.number
            return self.eager
        finally:
            self.rows.noise.set_state(at)
        return self

    def refuse(self, data: Batch, own: OfStep, numbers: Tensor, place: int, kl_weight: float, history: History) -> None:
        """Take the step at this place without a graph, which finds the site and the rows at fault.

        Raises: NonFiniteError.
        """
        self.eager.number, part = self.number, self.ranks.part(len(numbers))
        if part.start < part.stop:
            mine = data.rows(own.where[place][: part.stop - part.start])
            self.eager.on(mine, numbers, kl_weight, history, part)
        raise NonFiniteError(
            f"step {self.number}: got a loss or gradient that is not finite from the graph of a step alone; compiled=False "
            "may help",
            site=None,
            rows=numbers.tolist(),
            step=self.number,
            history=history,
        )

    # -- what a graph takes in

    def _together(self, batches: int) -> int:
        """Steps in one call: as many for each call of an epoch."""
        width = 0 if self.all_rows else self.rows.data.x[0].numel() * self.size
        asked = sum(r.draws * r.size * (self.size if r.local else 1) for r in self.loss.requests)
        most = max(1, min(TOGETHER, NUMBERS // max(asked + width, 1)))
        return math.ceil(batches / math.ceil(batches / most))

    def given(
        self, batches: list[Tensor], factors: list[float], kl_weights: list[float], ranks: Ranks | None = None
    ) -> tuple[Batch, OfStep]:
        """The data that some steps pick their rows from, and what belongs to each; filled up to so many steps."""
        data, own, keys = self.places(batches, factors, kl_weights, ranks)
        return data, own._replace(noise=self.noise_of(keys, own.present))

    def places(
        self, batches: list[Tensor], factors: list[float], kl_weights: list[float], ranks: Ranks | None = None
    ) -> tuple[Batch, OfStep, Tensor]:
        """As `given`, but keys (L, b) in the place of noise."""
        m, b = self.together, self.size
        sizes = [len(numbers) for numbers in batches]
        parts = [(self.ranks if ranks is None else ranks).part(n) for n in sizes]
        mine = [numbers[part] for numbers, part in zip(batches, parts)]
        # a process without rows of a short batch has one that does not count
        numbers = torch.stack([filled(own if len(own) else whole[:1], b) for own, whole in zip(mine, batches)])
        place, counts = torch.arange(b)[None], torch.tensor([len(own) for own in mine])[:, None]
        present = place < counts
        if self.all_rows:
            data, where = self.rows.data, numbers
        else:
            data = self.rows.take(torch.cat(batches))
            data = data._replace(**{k: filled(v, m * self.whole) for k, v in data._asdict().items() if v is not None})
            first = torch.tensor(sizes).cumsum(0) - torch.tensor(sizes) + torch.tensor([part.start for part in parts])
            where = (first.clamp(max=len(data.x) - 1)[:, None] + torch.where(present, place, 0)).to(numbers.device)
        scalars = self._scalars(sizes, factors, kl_weights, counts[:, 0]).to(data.x)
        keys = keys_by_step(numbers, self.eager.seed, range(self.number, self.number + len(batches)))
        where, present, scalars, keys = (filled(v.to(keys.device), m) for v in (where, present, scalars, keys))
        return data, OfStep(where, present, scalars, ()), keys

    def noise_of(self, keys: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        """What the graph takes in for noise, of rows with these keys, (L, b)."""
        return tuple(v.contiguous() for v in self.prepare(*self.draw(keys, present, *self.noise.counted)))

    def _scalars(self, sizes: list[int], factors: list[float], kl_weights: list[float], own: Tensor) -> Tensor:
        rows, factor, kl_weight = (torch.tensor(v, dtype=torch.float64) for v in (sizes, factors, kl_weights))
        t = torch.arange(self.taken + 1, self.taken + 1 + len(sizes), dtype=torch.float64)
        lr, share = self.one.lr * factor, own.double() / len(self.rows.train)
        return torch.stack([kl_weight, share, rows, lr, 1 - 0.9**t, (1 - 0.999**t).sqrt()], 1)

    def _gradients_of(self, data: Batch, of_step: Any) -> tuple[Tensor, list[Tensor]]:
        """By the graph: see `gradients`."""
        with torch.no_grad():
            return self.rest(*self.inputs.state, *self.inputs.read(data), *of_step, *self.constants)

    def _hand_over(self) -> None:
        """Leave to the steps without a graph what the optimiser keeps."""

    # -- how the graph is made and checked

    def _write(self, numbers: Tensor, others: Tensor) -> None:
        """Write the step down, and part off what depends on noise alone."""
        self.by_programs(numbers)
        (data, own), (other_data, other) = (self.given([rows], [1.0], [0.5], ALONE) for rows in (numbers, others))
        state, read = self.inputs.state, self.inputs.read(data)
        moved = [*(p * 1.001 + 1e-4 for p in self.parameters), *state[len(self.parameters) :]]
        flat = [*state, *read, *(v[0] for v in own.flat)]
        of_other = [v[0] / 2 if v is other.scalars else v[0] for v in other.flat]
        other_flat = [*moved, *self.inputs.read(other_data), *of_other]
        graph, self.constants = graphs.traced(partial(self.function(), data), flat, other_flat)
        noise = range(len(flat) - len(own.noise), len(flat))
        before, self.rest = graphs.parted(graph, [*flat, *self.constants], noise)
        if before is not None:
            self.prepare = torch.vmap(before)

    def by_programs(self, numbers: Tensor) -> Any:
        """What the graph gives of the next step on these rows, by the programs themselves.

        Raises: Untraceable, if they change more than they should.
        """
        data = self.rows.data if self.all_rows else self.rows.take(numbers)
        n, device = len(numbers), numbers.device
        where = numbers if self.all_rows else torch.arange(n, device=device)
        (scalars,) = self._scalars([n], [1.0], [0.5], torch.tensor([n])).to(data.x)
        own = OfStep(where, torch.ones_like(where, dtype=torch.bool), scalars, self._once(numbers))
        read = [value.clone() for value in self.inputs.read(data)]
        with torch.no_grad():
            found = self.function()(data, *self.inputs.state, *read, *own.flat)
        for (name, value), then in zip(self.inputs.held.items(), read[-len(self.inputs.held) or len(read) :]):
            if not torch.equal(value, then):
                raise Untraceable(f"the programs change {name.removeprefix('vae.')!r} as they run")
        return found

    def _gradients(self, numbers: Tensor) -> tuple[float, dict[str, Tensor | None]]:
        """The objective in tensors alone on these rows, with half of the KL term, and its gradient to each parameter."""
        batch, noise = self.rows.data.rows(numbers), self._once(numbers)
        half, present = torch.tensor(0.5).to(batch.x), torch.ones_like(numbers, dtype=torch.bool)
        tensors = {name: value.detach().clone() for name, value in named_tensors(self.vae).items()}
        trained = [f"vae.{name}" for name, p in self.vae.named_parameters() if p.requires_grad]
        with torch.enable_grad():
            leaves = [tensors[name].requires_grad_() for name in trained]
            value, _ = torch.func.functional_call(self.loss, tensors, (batch, half, half, present, *noise))
            return float(value), dict(zip(trained, torch.autograd.grad(value, leaves, allow_unused=True)))

    def _once(self, numbers: Tensor) -> tuple[Tensor, ...]:
        """The noise of the next step on these rows, as the programs ask for it."""
        keys = step_keys(numbers, self.eager.seed, self.number)
        return tuple(requested(request, keys) for request in self.loss.requests)

    def _check_objective(self, numbers: Tensor) -> None:
        """Compare the objective in tensors alone, and its gradients, to those of the fit.

        Raises: Untraceable.
        """
        eager, (own, gradients) = self.eager, self._gradients(numbers)
        (args, given), keys = self.rows.data.rows(numbers).arguments(), step_keys(numbers, eager.seed, self.number)
        self.vae.zero_grad(set_to_none=True)
        with surroundings(eager.target, eager.elbo, numbers, keys, kl_weight=0.5, share=0.5, precision=eager.precision):
            loss = eager.elbo.loss_and_grads(self.vae.model, self.vae.guide, *args, **given)
        if not math.isclose(loss, own, rel_tol=self.agrees, abs_tol=self.agrees):
            raise Untraceable(f"the objective is {loss} without a graph, {own} in tensors alone")
        named = named_tensors(self.vae)
        for name, gradient in gradients.items():
            short, expected = name.removeprefix("vae."), named[name].grad
            if gradient is None and expected is None:
                continue
            if gradient is None or expected is None:
                raise Untraceable(f"{short!r} is trained {'in' if expected is None else 'without'} a graph alone")
            size = self.agrees * (1 + float(expected.abs().max()))
            if not torch.allclose(gradient, expected, rtol=10 * self.agrees, atol=size):
                raise Untraceable(f"the gradient to {short!r} is another in tensors alone")

    def _check(self, numbers: Tensor) -> None:
        """Compare the graph to the programs for a batch of so many rows, filled up where it is short.

        Raises: Untraceable.
        """
        data, own = self._one(numbers)
        sums, found = self._gradients_of(data, [v[0] for v in own.flat])
        expected, of_programs = self.by_programs(numbers)
        self._same_sums(sums, expected, numbers)
        for name, one, other in zip(self.inputs.parameters, found, of_programs):
            if not float((one - other).abs().max()) <= 10 * self.agrees * float(other.abs().max()):
                raise Untraceable(
                    f"the graph's gradient to {name.removeprefix('vae.')!r} is another than the programs'"
                )

    def _one(self, numbers: Tensor) -> tuple[Batch, OfStep]:
        """What one step on these rows takes in; `by_programs` then gets the same pixels."""
        at = self.rows.noise.get_state()
        given = self.given([numbers], [1.0], [0.5], ALONE)
        self.rows.noise.set_state(at)
        return given

    def _same_sums(self, found: Tensor, expected: Tensor, numbers: Tensor) -> None:
        if not self.alike(found, expected):
            raise Untraceable(
                f"the graph of {len(numbers)} rows gives {found.tolist()}, the programs {expected.tolist()} (sums of "
                f"{', '.join(SUMS)})"
            )

    def alike(self, found: Tensor, expected: Tensor) -> bool:
        """Whether sums are equal but for rounding: of the largest among those in nats, which may cancel in others."""
        size = expected.abs()
        size = torch.cat([size[:IN_NATS].max().expand(IN_NATS), size[IN_NATS:]])
        return bool(((found - expected).abs() <= self.agrees * (1 + size)).all())


@contextmanager
def put_back(eager: Any) -> Iterator[None]:
    """Undo what trial steps change: buffers, gradients and generators."""
    buffers = [(m, n, b, b.clone()) for m in eager.vae.modules() for n, b in m._buffers.items() if b is not None]
    noise = eager.rows.noise.get_state()
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # of torch, about itself
            yield
    finally:
        for module, name, buffer, before in buffers:
            buffer.copy_(before)
            module._buffers[name] = buffer
        eager.vae.zero_grad(set_to_none=True)
        eager.rows.noise.set_state(noise)
