"""A whole training step as one compiled graph: both programs, the objective, its gradients and the optimiser.

The programs are run once, on tensors that `torch.fx` watches. What remains of Pyro's handlers, plates and traces is the list
of tensor operations that they led to, which TorchInductor compiles, and every later step runs that. Noise is an input: each
step draws its own, the same as without the graph, by arithmetic of 64 bits that stays outside, since TorchInductor 2.13 may
write past the end of vectors of int64 whose length is no multiple of eight. A last batch that is short is filled up with
rows that do not count, so that shapes never change.
"""

import logging
import math
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ppl_vae.data.schema import Batch
from ppl_vae.errors import NonFiniteError, OptionError, PplVaeError, ProgramError, first_line
from ppl_vae.infer.elbo import TensorELBO
from ppl_vae.infer.handlers import Tally, surroundings
from ppl_vae.infer.history import History
from ppl_vae.infer.noise import Request, requested, step_keys
from ppl_vae.infer.objectives import Objective
from ppl_vae.infer.rows import Rows, as_they_are

log = logging.getLogger(__name__)

PAYS = 20_000
"""Steps from which on a compilation, some 15 seconds, is won back by steps that are a millisecond shorter."""
AGREES = 1e-4
"""How far the first steps may be from those without a graph, relatively: a check of the graph, not of its rounding."""
FIGURES = ("bound", "reconstruction", "kl")

Flat = Callable[..., Tensor]
State = list[Tensor]
Update = Callable[[Tensor, Tensor, State, Tensor, Tensor, float], tuple[Tensor, State]]
"""Parameter, gradient, its state, number of the step, step size and weight decay to the next parameter and state."""


class Untraceable(ProgramError):
    """Why a fit has no graph."""


# ---- optimisers, as torch's own with its defaults


def adam(p: Tensor, g: Tensor, state: State, t: Tensor, lr: Tensor, decay: float) -> tuple[Tensor, State]:
    """Kingma & Ba (2015)."""
    g = g + decay * p if decay else g
    mean, square = torch.lerp(state[0], g, 0.1), state[1] * 0.999 + g * g * 0.001
    step, root = (lr / (1 - 0.9**t)).to(p.dtype), (1 - 0.999**t).sqrt().to(p.dtype)
    return p - step * mean / (square.sqrt() / root + 1e-8), [mean, square]


def adamw(p: Tensor, g: Tensor, state: State, t: Tensor, lr: Tensor, decay: float) -> tuple[Tensor, State]:
    """Loshchilov & Hutter (2019)."""
    return adam(p * (1 - lr * decay).to(p.dtype), g, state, t, lr, 0.0)


def sgd(p: Tensor, g: Tensor, state: State, t: Tensor, lr: Tensor, decay: float) -> tuple[Tensor, State]:
    return p - lr.to(p.dtype) * (g + decay * p if decay else g), []


def adagrad(p: Tensor, g: Tensor, state: State, t: Tensor, lr: Tensor, decay: float) -> tuple[Tensor, State]:
    """Duchi, Hazan & Singer (2011)."""
    g = g + decay * p if decay else g
    total = state[0] + g * g
    return p - lr.to(p.dtype) * g / (total.sqrt() + 1e-10), [total]


UPDATES: dict[str, tuple[Update, int]] = {
    "adam": (adam, 2),
    "adamw": (adamw, 2),
    "sgd": (sgd, 0),
    "adagrad": (adagrad, 1),
}
"""Each with how many numbers it keeps of each parameter."""


# ---- the step as a function of tensors


class Loss(nn.Module):
    """Minus the objective of a batch, and its figures, as a function that `functional_call` gives parameters to.

    Attributes:
        requests: for noise, in the order in which the programs ask for it.
    """

    def __init__(self, vae: Any, target: Objective, elbo: TensorELBO) -> None:
        super().__init__()
        self.vae, self.target, self.elbo = vae, target, elbo
        self.requests: list[Request] = []

    def ask(self, batch: Batch) -> None:
        """Find out what noise the programs ask for, of these rows."""
        keys, weight = torch.arange(len(batch.x), device=batch.x.device), torch.ones((), device=batch.x.device)

        def supply(request: Request) -> Tensor:
            self.requests.append(request)
            return requested(request, keys)

        with torch.no_grad():
            self._run(supply, batch, weight, weight, torch.ones_like(keys, dtype=torch.bool))

    def noise(self, batches: list[Tensor], size: int, seed: int, first: int) -> list[tuple[Tensor, ...]]:
        """What they asked for, of some steps that follow one another.

        Args:
            batches: row numbers (b,) of each.
            size: rows that a batch is filled up to.
            seed: of the fit.
            first: number of the first step.
        """
        keys = [step_keys(numbers, seed, first + j) for j, numbers in enumerate(batches)]
        together = torch.cat([own if len(own) == size else filled(own, size) for own in keys])
        columns = [
            requested(request, together).split(size, 1) if request.local else [requested(request, own) for own in keys]
            for request in self.requests
        ]
        return list(zip(*columns)) if columns else [()] * len(batches)

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
        weights: Any = {"kl_weight": kl_weight, "share": share, "present": present}
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


def filled(values: Tensor, size: int) -> Tensor:
    """Values (b, ...) with more of the first one, (size, ...)."""
    return torch.cat([values, values[:1].expand(size - len(values), *values.shape[1:])])


class Inputs:
    """What a step reads and changes, as a flat list of tensors, and back.

    Attributes:
        parameters, held: those that are trained, and other tensors of the model, by name.
        states: of the optimiser, for each parameter.
        t: () steps taken, float64.
    """

    def __init__(self, vae: nn.Module, kept: int) -> None:
        tensors = {f"vae.{name}": value for name, value in (*vae.named_parameters(), *vae.named_buffers())}
        self.parameters = {name: p.detach() for name, p in tensors.items() if p.requires_grad}
        self.held = {name: value.detach() for name, value in tensors.items() if name not in self.parameters}
        self.states: list[State] = [[torch.zeros_like(p) for _ in range(kept)] for p in self.parameters.values()]
        self.t = torch.zeros((), dtype=torch.float64, device=next(iter(tensors.values())).device)
        self.kept = kept
        self.model = [*self.parameters.values(), *self.held.values(), *(v for s in self.states for v in s), self.t]

    def flat(self, data: Batch, *further: Tensor) -> list[Tensor]:
        """All of it, then the columns of the data that there are, then what belongs to one step."""
        return [*self.model, *(column for column in data if column is not None), *further]

    def structured(self, flat: tuple[Tensor, ...], data: Batch) -> tuple[Any, ...]:
        """Parameters, other tensors, states, t, data and the rest by their structure."""
        rest = list(flat)

        def take(n: int) -> list[Tensor]:
            taken, rest[:n] = rest[:n], []
            return taken

        parameters = dict(zip(self.parameters, take(len(self.parameters))))
        held = dict(zip(self.held, take(len(self.held))))
        states = [take(self.kept) for _ in self.states]
        (t,) = take(1)
        columns: list[Any] = [None if column is None else take(1)[0] for column in data]
        return parameters, held, states, t, Batch(*columns), *rest


def step(
    loss: Loss,
    update: Update,
    decay: float,
    max_grad_norm: float | None,
    parameters: dict[str, Tensor],
    held: dict[str, Tensor],
    states: list[State],
    t: Tensor,
    data: Batch,
    where: Tensor,
    present: Tensor,
    scalars: Tensor,
    *noise: Tensor,
) -> Tensor:
    """Move the parameters, unless loss or gradient are not finite.

    Args:
        loss: what is minimised.
        update, decay, max_grad_norm: of the optimiser.
        parameters, held, states, t: as in `Inputs`.
        data: rows.
        where: (b,) places of the batch's rows in them.
        present: (b,) of bool, rows that count.
        scalars: step size, KL weight, share of the data's rows and number of rows, float64.
        noise: as the programs ask for it.

    Returns: sums of `FIGURES`, the loss, the norm of the gradient, and whether these are finite, as 1 or 0; float64.
    """
    lr, kl_weight, share, rows = scalars.unbind()
    batch = data.rows(where)
    with torch.enable_grad():
        leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
        given = (batch, kl_weight.to(batch.x), share.to(batch.x), present, *noise)
        tensors = {**leaves, **held}
        value, figures = torch.func.functional_call(loss, tensors, given)
        if changed := [name for name, before in {**leaves, **held}.items() if tensors[name] is not before]:
            raise Untraceable(f"the programs replace {changed[0].removeprefix('vae.')!r} as they run")
        gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    met = [(p, g / rows.to(g), s) for p, g, s in zip(parameters.values(), gradients, states) if g is not None]
    norm = torch.stack([(g * g).sum() for _, g, _ in met]).sum().sqrt()
    good = torch.isfinite(value) & torch.isfinite(norm)
    if max_grad_norm is not None:
        factor = (max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        met = [(p, g * factor, state) for p, g, state in met]
    t.add_(good.to(t.dtype))
    for p, g, state in met:
        new, next_state = update(p, g, state, t, lr, decay)
        for old, value_of in zip([p, *state], [new, *next_state]):
            old.copy_(torch.where(good, value_of, old))
    return torch.cat([figures.detach(), torch.stack([value.detach().double(), norm.double(), good.double()])])


# ---- from a function to a compiled graph

_compiled: dict[Any, Flat] = {}
KEPT = 64
"""Compiled graphs that are kept, for fits of the same shape."""


def compiled(call: Flat, inputs: list[Tensor], others: list[Tensor]) -> Flat:
    """A function of tensors, which may change them in place, compiled for these shapes; `call` is run on copies only.

    Args:
        call: the function.
        inputs: of it.
        others: of the same shapes and other values: what differs between the two graphs depends on values that no graph
            sees, as numbers that went through NumPy do.

    Raises: Untraceable.
    """
    graph, constants = _traced(call, inputs)
    other, held = _traced(call, others)
    if graph.code != other.code or not all(map(torch.equal, constants, held)):
        raise Untraceable("the programs do what no graph sees: arithmetic of NumPy, a counter, or a choice by a value")
    key = (
        graph.code,
        tuple((v.shape, v.stride(), v.dtype, v.device) for v in (*inputs, *constants)),
        torch.get_num_threads(),
    )
    if key not in _compiled:
        if len(_compiled) >= KEPT:
            _compiled.pop(next(iter(_compiled)))
        _compiled[key] = _by_inductor(graph, [*(value.clone() for value in inputs), *constants])
    run = _compiled[key]

    def call_graph(*tensors: Tensor) -> Tensor:
        with torch.no_grad():
            return run(*tensors, *constants)[0]

    return call_graph


def _traced(call: Flat, inputs: list[Tensor]) -> tuple[torch.fx.GraphModule, list[Tensor]]:
    """The graph of a function, and the constants that are its last inputs."""
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.no_grad():
        graph = make_fx(lambda *tensors: (call(*tensors),))(*(value.clone() for value in inputs))
    graph.graph.eliminate_dead_code()
    for node in reversed(graph.graph.nodes):
        node.meta.pop("val", None)
        if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
            continue
        if node.users or any(len(value.users) > 1 for value in node.all_input_nodes):
            raise Untraceable(f"the programs draw noise of their own, by {node.target}")
        graph.graph.erase_node(node)  # a draw that nothing reads, as of a program run for its shapes
    graph.graph.eliminate_dead_code()
    constants = _lifted(graph)
    graph.recompile()
    return graph, constants


def _lifted(graph: torch.fx.GraphModule) -> list[Tensor]:
    """Turn tensors that a graph holds into its last inputs, so that graphs that differ in these alone are one."""
    constants: dict[Any, tuple[Any, Tensor]] = {}
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    last = placeholders[-1]
    for node in [node for node in graph.graph.nodes if node.op == "get_attr"]:
        if node.target not in constants:
            with graph.graph.inserting_after(last):
                last = graph.graph.placeholder(f"held{len(constants)}")
            constants[node.target] = (last, getattr(graph, node.target).detach())
        node.replace_all_uses_with(constants[node.target][0])
        graph.graph.erase_node(node)
    return [value for _, value in constants.values()]


def _by_inductor(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
    from torch._inductor import compile as inductor

    on_cpu = all(value.device.type == "cpu" for value in inputs)
    return inductor(graph, list(inputs), options={"cpp_wrapper": on_cpu})  # what calls the kernels in C++ too


# ---- steps of a fit


class CompiledStep:
    """Steps of a fit by one graph, in the place of `Step`, which says what went wrong where a step is refused.

    Args:
        eager: the fit's steps without a graph.
        size: rows of a batch; the last one may have fewer.

    Raises: Untraceable, with the reason, or whatever torch raises; nothing has moved then.
    """

    def __init__(self, eager: Any, size: int) -> None:
        self.eager, self.vae, self.one, self.number = eager, eager.vae, eager.one, eager.number
        self.rows: Rows = eager.rows
        target: Objective = eager.target
        elbo = target.traceable(eager.particles)
        if elbo is None or not target.per_row:
            raise Untraceable("the objective is not a sum over rows in tensors alone")
        update, kept = UPDATES[self.one.name]
        self.inputs, self.size = Inputs(self.vae, kept), min(size, len(self.rows.train))
        self.all_rows = self.rows.pixels is as_they_are  # then the graph picks the batch itself
        self.loss = Loss(self.vae, target, elbo)
        self.update = partial(step, self.loss, update, self.one.weight_decay, self.one.max_grad_norm)
        self.sums, self.met = [0.0] * 5, 0
        self.coming: list[Tensor] = []
        self.drawn: list[tuple[Tensor, ...]] = []
        numbers = self.rows.train[: self.size]
        self.place = torch.arange(self.size, device=numbers.device)
        self.all_present = torch.ones_like(self.place, dtype=torch.bool)
        data = self.rows.data if self.all_rows else self.rows.data.rows(numbers)
        self.loss.ask(self.rows.data.rows(numbers))
        asked = sum(r.draws * r.size * (self.size if r.local else 1) for r in self.loss.requests)
        self.ahead = max(1, min(64, NUMBERS // max(asked, 1)))
        scalars = torch.tensor([self.one.lr, 0.5, 0.5, self.size], dtype=torch.float64, device=numbers.device)
        others = self.rows.train.flip(0)[: self.size]
        other_data = self.rows.data if self.all_rows else self.rows.data.rows(others)
        flat = self._flat(data, numbers, scalars, self._once(numbers))
        moved = self._flat(other_data, others, scalars / 2, self._once(others))
        places = range(len(self.inputs.parameters))
        moved = [v * 1.001 + 1e-4 if j in places else v for j, v in enumerate(moved)]
        self.run = compiled(partial(self._call, data), flat, moved)
        self._check_objective(others)
        for n in sorted({self.size, len(self.rows.train) % self.size or 1}):
            self._check(other_data, others[:n], scalars)

    @property
    def parameters(self) -> list[Tensor]:
        """All parameters that are trained."""
        return list(self.inputs.parameters.values())

    def begin(self, batches: list[Tensor]) -> None:
        """Be told what batches an epoch has: the noise of many is drawn at once."""
        self.coming, self.drawn = batches[::-1], []

    def __call__(self, numbers: Tensor, kl_weight: float, history: History) -> None:
        n = len(numbers)
        if not self.drawn:
            some = [self.coming.pop() for _ in range(min(self.ahead, len(self.coming)))]
            self.drawn = self.loss.noise(some, self.size, self.eager.seed, self.number)[::-1]
        data = self.rows.data if self.all_rows else self.rows.take(numbers)
        scalars = [self.one.lr * self.one.factor, kl_weight, n / len(self.rows.train), n]
        scale = torch.tensor(scalars, dtype=torch.float64, device=numbers.device)
        flat = self._flat(data, numbers, scale, self.drawn.pop())
        *figures, loss, norm, good = self.run(*flat).tolist()
        if not good:  # the same step without a graph, which finds the site and the rows at fault
            self.eager.number = self.number
            self.eager.on(data.rows(numbers) if self.all_rows else data, numbers, kl_weight, history)
            raise NonFiniteError(
                f"step {self.number}: got a loss of {loss:.6g} and a gradient of norm {norm:.6g} from the compiled step "
                "alone; compiled=False may help",
                site=None,
                rows=numbers.tolist(),
                step=self.number,
                history=history,
            )
        observed = self.rows.jacobian(numbers)
        for j, value in enumerate((*figures, -loss, norm * n)):
            self.sums[j] += value + (observed * n if j in OBSERVED else 0.0)
        self.met += n
        self.number += 1

    def means(self) -> dict[str, float]:
        """Means over the rows since the last call, in the data's own units."""
        means = {name: value / self.met for name, value in zip((*FIGURES, "objective", "grad_norm"), self.sums)}
        self.sums, self.met = [0.0] * 5, 0
        return {name: means[name] for name in ("objective", "grad_norm", *FIGURES)}

    def _flat(self, data: Batch, numbers: Tensor, scalars: Tensor, noise: tuple[Tensor, ...]) -> list[Tensor]:
        """The inputs of a step for these rows, filled up to the size of a batch with the first one."""
        n, where, present = len(numbers), numbers if self.all_rows else self.place, self.all_present
        if n < self.size:
            present = self.place < n
            if self.all_rows:
                where = filled(numbers, self.size)
            else:
                data = data.rows(torch.where(present, self.place, 0))
        return self.inputs.flat(data, where, present, scalars, *noise)

    def _once(self, numbers: Tensor) -> tuple[Tensor, ...]:
        (noise,) = self.loss.noise([numbers], self.size, self.eager.seed, self.number)
        return noise

    def _call(self, data: Batch, *flat: Tensor) -> Tensor:
        return self.update(*self.inputs.structured(flat, data))

    def _check_objective(self, numbers: Tensor) -> None:
        """Compare the objective in tensors alone, and its gradient to each parameter, to that of the fit.

        Raises: Untraceable.
        """
        batch, eager = self.rows.data.rows(numbers), self.eager
        (args, given), keys = batch.arguments(), step_keys(numbers, eager.seed, self.number)
        half, noise = torch.tensor(0.5).to(batch.x), self._once(numbers)
        leaves = {name: p.detach().requires_grad_() for name, p in self.inputs.parameters.items()}
        tensors = {**leaves, **{name: value.clone() for name, value in self.inputs.held.items()}}
        with torch.enable_grad():
            own, _ = torch.func.functional_call(self.loss, tensors, (batch, half, half, self.all_present, *noise))
            mine = torch.autograd.grad(own, list(leaves.values()), allow_unused=True)
            self.vae.zero_grad(set_to_none=True)
            with surroundings(eager.target, eager.elbo, numbers, keys, kl_weight=0.5, share=0.5):
                loss = eager.elbo.loss_and_grads(self.vae.model, self.vae.guide, *args, **given)
        if not math.isclose(loss, float(own), rel_tol=AGREES, abs_tol=AGREES):
            raise Untraceable(f"the objective is {loss} without a graph, {float(own)} in tensors alone")
        named = dict(self.vae.named_parameters())
        for name, gradient in zip(leaves, mine):
            short = name.removeprefix("vae.")
            expected = named[short].grad
            if (gradient is None) != (expected is None):
                raise Untraceable(
                    f"{short!r} is trained {'in a graph' if expected is None else 'without a graph'} alone"
                )
            if gradient is not None:
                size = AGREES * (1 + float(expected.abs().max()))
                if not torch.allclose(gradient, expected, rtol=10 * AGREES, atol=size):
                    raise Untraceable(f"the gradient to {short!r} is another in tensors alone")

    def _check(self, data: Batch, numbers: Tensor, scalars: Tensor) -> None:
        """Compare the graph to the programs, on copies, for a batch of so many rows, filled up where it is short.

        Raises: Untraceable.
        """
        n = len(numbers)
        mine = data if self.all_rows else data.rows(torch.arange(n, device=numbers.device))
        found = self.run(*(v.clone() for v in self._flat(mine, numbers, scalars, self._once(numbers))))
        (noise,) = self.loss.noise([numbers], n, self.eager.seed, self.number)
        place = numbers if self.all_rows else self.place[:n]
        flat = [v.clone() for v in self.inputs.flat(mine, place, self.all_present[:n], scalars, *noise)]
        with torch.no_grad():
            expected = self._call(mine, *flat)
        first = len(self.inputs.parameters)
        for (name, value), then in zip(self.inputs.held.items(), flat[first:]):
            if not torch.equal(value, then):
                raise Untraceable(f"the programs change {name.removeprefix('vae.')!r} as they run")
        if not torch.allclose(found, expected, rtol=AGREES, atol=AGREES):
            raise Untraceable(
                f"the graph of {n} rows gives {found.tolist()}, the programs {expected.tolist()} (sums of "
                f"{', '.join(FIGURES)}, the loss, the gradient's norm)"
            )


NUMBERS = 2**22
"""Numbers of noise that are drawn at once."""
OBSERVED = (0, 1, 3)
"""Places of the sums in which the data's own units count: bound, reconstruction and objective."""


def pays(choice: bool | str, planned: int, device: torch.device) -> bool:
    """Whether to compile a fit's steps: True, False, or "auto", on a CPU where at least `PAYS` of them are planned."""
    return planned >= PAYS and device.type == "cpu" if choice == "auto" else bool(choice)


def compiled_steps(eager: Any, size: int, insist: bool = False) -> tuple[Any, float | None]:
    """The steps of a fit, compiled, and the seconds that it took; as they are, and None, where they cannot be.

    Args:
        eager: the steps without a graph.
        size: rows of a batch.
        insist: on a graph.

    Raises: OptionError, if it insists, with the reason.
    """
    start = time.perf_counter()
    buffers = [(m, n, b, b.clone()) for m in eager.vae.modules() for n, b in m._buffers.items() if b is not None]
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # of torch, about itself
            steps = CompiledStep(eager, size)
    except Exception as error:  # of torch, its compiler, or programs that are no list of tensor operations
        reason = f"{type(error).__name__}: {first_line(error)}"
        if insist:
            raise OptionError(f"compiled: got True, but no graph could be made of a step: {reason}") from error
        log.log(logging.INFO if isinstance(error, PplVaeError) else logging.WARNING, "steps not compiled: %s", reason)
        return eager, None
    finally:
        for module, name, buffer, before in buffers:  # the trial may have changed them
            buffer.copy_(before)
            module._buffers[name] = buffer
        eager.vae.zero_grad(set_to_none=True)  # of the trial
    seconds = time.perf_counter() - start
    log.info("compiled a step in %.1f s", seconds)
    return steps, seconds
