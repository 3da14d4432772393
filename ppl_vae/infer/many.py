"""`fit_many`: fits of one architecture side by side, as one compiled graph of all of them."""

import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from ppl_vae.data.schema import Batch
from ppl_vae.errors import NonFiniteError, OptionError, first_line
from ppl_vae.infer import graphs
from ppl_vae.infer.compiled import CompiledStep
from ppl_vae.infer.graphs import Untraceable
from ppl_vae.infer.history import History
from ppl_vae.infer.run import Run
from ppl_vae.infer.steps import Plan
from ppl_vae.infer.traced import OfStep, put_back
from ppl_vae.infer.training import fit
from ppl_vae.options import FitOptions
from ppl_vae.progress import tqdm

log = logging.getLogger(__name__)

Stacked = list[Tensor]
Places = tuple[Batch, OfStep, Tensor]
"""Of some steps of a fit, see `TracedStep.places`."""


def fit_many(
    vaes: Sequence[Any],
    data: Any,
    *,
    seeds: Sequence[int] | None = None,
    lr: float | Sequence[float] = FitOptions.lr,
    compiled: bool | str = "auto",
    progress: bool = FitOptions.progress,
    **options: Any,
) -> list[History]:
    """Fit several models of one architecture to the same data in one run, each as `fit` would, up to rounding.

    What the fits share is done once; each has weights, split, order and noise of its own. They run one after another, with
    the reason in the log, where a step cannot be compiled, where the models differ in more than weights, and where so few
    steps do not pay for the compiler, some 20 seconds.

    Args:
        vaes: M models of the same parts and columns, with any weights.
        data: as in `fit`.
        seeds: of each fit; None: 0 to M - 1.
        lr: one step size for all, or one for each.
        compiled: True insists on one graph, False on fits one after another; "auto": a graph from `PAYS` steps of all fits.
        progress: show a bar.
        options: further ones of `fit`, for all alike; not `callbacks` and `patience`.

    Returns: the `History` of each.

    Raises:
        OptionError: models of other columns or scales; no graph where one is insisted on; and as in `fit`.
        NonFiniteError: of the first fit whose loss or gradient is; all hold the state before that step.

    Example:
        >>> import numpy as np
        >>> from ppl_vae.infer.ensemble import Ensemble
        >>> from ppl_vae.model.build import build
        >>> x = np.random.RandomState(0).randn(200, 3)
        >>> vaes = [build(x, latent=2, hidden=(16,), seed=seed) for seed in range(3)]
        >>> histories = fit_many(vaes, x, epochs=2, progress=False)
        >>> [len(history) for history in histories]
        [2, 2, 2]
        >>> ensemble = Ensemble(vaes)
    """
    if compiled not in (True, False, "auto"):
        raise OptionError(f"compiled: got {compiled!r}, expected True, False or 'auto'")
    if not isinstance(vaes, Iterable) or isinstance(vaes, torch.nn.Module):
        raise OptionError(f"vaes: got a {type(vaes).__name__}, expected a list of models")
    vaes = list(vaes)
    if not vaes:
        raise OptionError("vaes: got none, expected models")
    if len({id(vae) for vae in vaes}) < len(vaes):
        raise OptionError("vaes: got one model twice, expected models of their own")
    if refused := sorted({"callbacks", "patience", "seed"} & options.keys()):
        instead = "seeds=[...]" if refused[0] == "seed" else "`fit` for each model"
        raise OptionError(f"{refused[0]}: not an option of fits side by side; expected {instead}")
    seeds = _each("seeds", range(len(vaes)) if seeds is None else seeds, len(vaes))
    rates = _each("lr", lr, len(vaes)) if isinstance(lr, Sequence) else [lr] * len(vaes)
    defaults = {name: value for name, value in vars(FitOptions()).items() if name not in NOT_OF_A_RUN}
    given = {**defaults, "device": None, "patience": None, **options}
    if unknown := sorted(given.keys() - defaults.keys() - {"device", "patience"}):
        raise OptionError(f"{unknown[0]}: got an unknown option, expected one of {', '.join(sorted(defaults))}")
    runs = [Run(vaes[0], data, lr=rates[0], seed=seeds[0], **given)]
    for j, (vae, rate, seed) in enumerate(zip(vaes[1:], rates[1:], seeds[1:]), 1):
        if vae.schema != vaes[0].schema:
            raise OptionError(f"vaes: got other columns or scales in number {j} than in number 0")
        runs.append(Run(vae, data, encoded=runs[0].encoded, lr=rate, seed=seed, **given))
    steps = []
    for run in runs:
        with run.room():
            steps.append(run.begin())
    planned = sum(run.total for run in runs)
    if compiled is True or (compiled == "auto" and planned >= PAYS):
        try:
            many = ManySteps(runs, steps)
        except Exception as error:  # of torch, its compiler, or models that are not alike
            reason = f"{type(error).__name__}: {first_line(error)}"
            if compiled is True:
                raise OptionError(f"compiled: got True, but there is no graph of these fits: {reason}") from error
            log.warning("fits run one after another: %s", reason)
        else:
            log.info("a graph of %d fits made in %.1f s", len(runs), runs[0].history.compile_seconds)
            many.train(progress)
            return [run.history for run in runs]
    else:
        log.info("fits run one after another: %d steps of all do not pay for a graph", planned)
    alone: Any = {"compiled": False if compiled is False else "auto", "progress": progress}
    return [fit(run.vae, data, lr=rate, seed=seed, **alone, **options) for run, rate, seed in zip(runs, rates, seeds)]


PAYS = 10_000
"""Steps of all fits from which on a graph of them, some 20 seconds, is won back."""
NOT_OF_A_RUN = (
    "lr", "seed", "progress", "compiled", "checkpoint", "checkpoint_seconds", "checkpoint_steps", "distributed",
)  # fmt: skip


def _each(name: str, values: Any, m: int) -> list[Any]:
    if not isinstance(values, Iterable):
        raise OptionError(f"{name}: got {values!r}, expected one for each of {m} models")
    values = list(values)
    if len(values) != m:
        raise OptionError(f"{name}: got {len(values)} for {m} models, expected one for each")
    return values


class ManySteps:
    """Steps of several fits at once.

    Args:
        runs: the fits.
        eager: their steps, without a graph.

    Raises: Untraceable, or whatever torch raises; nothing has moved then.
    """

    def __init__(self, runs: list[Run], eager: list[Any]) -> None:
        self.runs, started = runs, time.perf_counter()
        self.members: list[CompiledStep] = []
        for run, own in zip(runs, eager):
            with run.room(), put_back(own):
                self.members.append(CompiledStep(own, run.batch_size, like=self.members[0] if self.members else None))
        self.first = first = self.members[0]
        if any(
            [(v.shape, v.dtype) for v in member.inputs.state] != [(v.shape, v.dtype) for v in first.inputs.state]
            or member.loss.requests != first.loss.requests
            for member in self.members
        ):
            raise Untraceable("the models differ in more than their weights")
        with ExitStack() as trial:
            for own in eager:
                trial.enter_context(put_back(own))
            self._compile()
        for run in runs:
            run.history.compile_seconds = time.perf_counter() - started

    def train(self, progress: bool) -> None:
        """All epochs of all fits."""
        start = time.perf_counter()
        for run in self.runs:
            run.start = start
        bar = tqdm(range(1, self.runs[0].epochs + 1), disable=not progress, desc=f"{len(self.runs)} fits", unit="epoch")
        for epoch in bar:
            began = time.perf_counter()
            plans = [run.plan(epoch) for run in self.runs]
            self.epoch(plans)
            seconds = time.perf_counter() - began
            for run, member, plan in zip(self.runs, self.members, plans):
                with run.room():
                    run.record(epoch, member, plan, seconds)
            bar.set_postfix_str(self.runs[0].latest())

    def epoch(self, plans: list[Plan]) -> None:
        """A step of each fit on each batch of its plan."""
        states = _stacked([member.inputs.state for member in self.members])
        try:
            for first in range(0, len(plans[0].batches), self.first.together):
                part = slice(first, first + self.first.together)
                some = [Plan(p.batches[part], p.factors[part], p.kl_weights[part]) for p in plans]
                given = [member.places(*plan) for member, plan in zip(self.members, some)]
                n = len(some[0].batches)
                good, sums = self._run(states, given, n)
                for member, plan, own in zip(self.members, some, sums):
                    member.went(plan.batches[:good], own.tolist())
                if good < n:
                    self._hand_back(states)
                    self._refuse(given, some, good, sums)
        finally:
            self._hand_back(states)

    def _hand_back(self, states: Stacked) -> None:
        for j, member in enumerate(self.members):
            torch._foreach_copy_(member.inputs.state, [v[j] for v in states])

    def _refuse(self, given: list[Places], plans: list[Plan], place: int, sums: Tensor) -> None:
        at_fault = int((~torch.isfinite(sums).all(1)).nonzero()[0])
        plan, run, (data, own, _) = plans[at_fault], self.runs[at_fault], given[at_fault]
        with run.room():
            try:
                self.members[at_fault].refuse(
                    data, own, plan.batches[place], place, plan.kl_weights[place], run.history
                )
            except NonFiniteError as error:
                error.args = (f"fit number {at_fault}: {error}",)
                raise

    # -- the graph

    def _flat(self, given: list[Places]) -> tuple[list[Tensor], Stacked]:
        """What steps only read, the columns first, then what belongs to each, (L, M, ...)."""
        read = [member.inputs.read(data) for member, (data, _, _) in zip(self.members, given)]
        columns = len(read[0]) - len(self.first.inputs.held)
        shared = self.first.all_rows
        held = [*(read[0][:columns] if shared else _stacked([own[:columns] for own in read]))]
        held += _stacked([own[columns:] for own in read])
        where, present, scalars = (torch.stack(v, 1) for v in zip(*(own.flat for _, own, _ in given)))
        noise = self.first.noise_of(*self._keys(given))
        return held, [where, present, scalars, *(v.unflatten(0, where.shape[:2]) for v in noise)]

    def _keys(self, given: list[Places]) -> tuple[Tensor, Tensor]:
        """Of the rows of all steps of all fits, (L M, b), and which rows count."""
        keys, present = (torch.stack(v, 1) for v in zip(*((keys, own.present) for _, own, keys in given)))
        return keys.flatten(0, 1), present.flatten(0, 1)

    def _run(self, states: Stacked, given: list[Places], n: int) -> tuple[int, Tensor]:
        """So many steps from these states, which they change: how many were good, and their sums."""
        held, stacks = self._flat(given)
        count = torch.tensor(n, device=stacks[0].device)
        good, sums = self.run(count, *states, *held, *self.first.constants, *stacks)
        return int(good), sums

    def _compile(self) -> None:
        """Compile a step of all in a loop, and compare it to the programs of each.

        Raises: Untraceable.
        """
        numbers = [member.rows.train[: member.size] for member in self.members]
        pixels = [member.rows.noise.get_state() for member in self.members]
        given = [member.places([rows], [1.0], [0.5]) for member, rows in zip(self.members, numbers)]
        self.first.compile_noise(*self._keys(given))
        states = _stacked([member.inputs.state for member in self.members])
        held, stacks = self._flat(given)
        columns = len(held) - len(self.first.inputs.held)
        constants = self.first.constants
        read = len(held)
        dims = [0] * len(states) + [None if self.first.all_rows else 0] * columns + [0] * (read - columns)
        step = torch.vmap(self.first.rest, (*dims, *([0] * len(stacks)), *([None] * len(constants))))

        def of_step(state: Any, held: Any, own: Any) -> Any:
            sums, good, following = step(*state, *held[:read], *own, *held[read:])
            all_good = good.all()
            return sums, all_good, [torch.where(all_good, new, old) for new, old in zip(following, state)]

        held = [*held, *constants]
        loop = graphs.looped(of_step, states, held, stacks)
        self.run = graphs.compiled(loop, [torch.tensor(1, device=stacks[0].device), *states, *held, *stacks])
        _, found = self._run(states, given, 1)
        for j, (member, run) in enumerate(zip(self.members, self.runs)):
            member.rows.noise.set_state(pixels[j])
            with run.room():
                expected, _, _ = member.by_programs(numbers[j])
            if not member.alike(found[j], expected):
                raise Untraceable(
                    f"the graph gives {found[j].tolist()} for fit number {j}, the programs {expected.tolist()}"
                )


def _stacked(values: Sequence[Sequence[Tensor]]) -> Stacked:
    return [torch.stack(v) for v in zip(*values)]
