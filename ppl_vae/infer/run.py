"""One fit: its options, its rows, its record, and where it stands."""

import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from math import ceil, inf, isnan, nan
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.data.schema import Batch
from ppl_vae.errors import OptionError, called, choose, number, whole
from ppl_vae.files import digest
from ppl_vae.infer import graphs
from ppl_vae.infer.checkpoint import Checkpoint, State, go_on, packed, state_of_fit, unpacked
from ppl_vae.infer.distributed import expect_equal, ranks, weights_digest
from ppl_vae.infer.draws import expect_model, facts, known_again, row_blocks
from ppl_vae.infer.history import History
from ppl_vae.infer.objectives import fitting
from ppl_vae.infer.objectives import objective as chosen_objective
from ppl_vae.infer.optim import SCHEDULES, OneOptimizer
from ppl_vae.infer.precision import PRECISIONS, refuse_rounding
from ppl_vae.infer.rows import PIXELS, Rows
from ppl_vae.infer.scope import in_mode, isolated, remember
from ppl_vae.infer.steps import Plan, Step
from ppl_vae.options import FitOptions as Default

ROUNDED_ROWS, ROUNDED_DRAWS = 256, 32
"""Whose bound tells what rounding does."""
VALIDATION = 2**40
"""Added to the seed of validation noise: early stopping must not select on the draws that scores then use."""

NOT_OF_ITS_RESULT = ("callbacks", "checkpoint", "checkpoint_seconds", "checkpoint_steps", "distributed")
"""Options that may be others when a fit goes on."""


class Options:
    """The options of a fit that are the same for any model, checked, and what they name. They are those of `fit`."""

    def __init__(
        self,
        *,
        objective: Any,
        particles: int,
        epochs: int,
        batch_size: int,
        optimizer: str,
        lr: float,
        schedule: str,
        weight_decay: float,
        max_grad_norm: float | None,
        kl_warmup: int,
        valid: float,
        patience: int | None,
        binarize: str | None,
        precision: str,
        seed: int,
        compiled: bool | str = False,
        callbacks: Iterable[Callable[[Any, History], object]] = (),
        checkpoint: str | PathLike | None = None,
        checkpoint_seconds: float = Default.checkpoint_seconds,
        checkpoint_steps: int | None = None,
        distributed: bool = False,
    ) -> None:
        self.given = {name: value for name, value in locals().items() if name not in ("self", *NOT_OF_ITS_RESULT)}
        if not isinstance(callbacks, Iterable):
            raise OptionError(f"callbacks: got {callbacks!r}, expected a list of functions of a model and a history")
        self.callbacks, self.distributed = list(callbacks), distributed
        for callback in self.callbacks:
            if not callable(callback):
                raise OptionError(f"callbacks: got {callback!r}, expected functions of a model and a history")
        graphs.check_choice(compiled)
        self.objective, self.lr = objective, number("lr", lr, inclusive=True)
        self.particles, self.epochs = whole("particles", particles), whole("epochs", epochs)
        self.batch_size, self.kl_warmup = whole("batch_size", batch_size), whole("kl_warmup", kl_warmup, 0)
        self.seed = whole("seed", seed, None)
        number("weight_decay", weight_decay, inclusive=True)
        if max_grad_norm is not None:
            number("max_grad_norm", max_grad_norm)
        if patience is not None:
            whole("patience", patience)
        self.valid = number("valid", valid, inclusive=True)
        if valid >= 1:
            raise OptionError(f"valid: got {valid!r}, expected a share in [0, 1)")
        self.target = chosen_objective(objective, particles)
        if patience is not None and not valid:
            raise OptionError("patience: got valid=0, expected held-out rows to watch")
        if patience is not None and not self.target.trains_guide:
            raise OptionError(
                f"patience: got {patience} with {objective!r}, whose guide is not trained: it has no bound to watch"
            )
        if self.target.keeps and binarize == "stochastic":
            raise OptionError(
                f"binarize: got 'stochastic' with {objective!r}, which keeps a chain for each row; expected None or "
                "'threshold', so that rows stay as they are"
            )
        self.schedule = choose("schedule", schedule, SCHEDULES)
        choose("precision", precision, PRECISIONS)
        self.precision = precision
        self.pixels = choose("binarize", binarize or "none", PIXELS)
        self.one = OneOptimizer(optimizer, lr, weight_decay, max_grad_norm)
        self.best = Best(patience, kl_warmup)
        self.checkpoint = None if checkpoint is None else Checkpoint(checkpoint, checkpoint_seconds, checkpoint_steps)


class Run(Options):
    """One fit: its options, its rows, and its record.

    Args:
        encoded: the data's rows, if they have been encoded before.
        options: those of `Options`.
    """

    def __init__(
        self,
        vae: Any,
        data: Any,
        *,
        encoded: Batch | None = None,
        device: str | torch.device | None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.vae = vae
        if not hasattr(vae, "guide"):
            raise OptionError(f"vae: got a {type(vae).__name__}, expected a model with its guide, and data after it")
        expect_model(vae)
        on_gpu = str(device).startswith("cuda") or (device is None and any(p.is_cuda for p in vae.parameters()))
        self.ranks = ranks(self.distributed, on_gpu)
        if str(device) == "cuda" and self.ranks.size > 1:
            device = f"cuda:{torch.cuda.current_device()}"
        if device is not None:
            try:
                vae.to(device)
            except (RuntimeError, AssertionError) as error:
                raise OptionError(f"device: got {device!r}, expected one that torch has here: {error}") from error
        self.encoded = vae.batch(data, minimum_rows=2) if encoded is None else encoded
        self.history, self.start, self.spent = History(), 0.0, 0.0
        self.epoch, self.ended = 1, False
        self.order: Any = None  # of generators, where an epoch that had begun goes on

    @contextmanager
    def room(self) -> Iterator[None]:
        """What all of a fit happens in."""
        with isolated(self.vae, self.seed), warnings.catch_warnings(), in_mode(self.vae, training=True):
            warnings.filterwarnings("ignore", "Encountered NaN")  # Pyro's warning; our error says where
            warnings.filterwarnings(
                "ignore", ".* because requires_grad=False"
            )  # Pyro's, of parameters that were frozen
            yield

    def begin(self) -> "Step":
        """Split the rows, or go on from where a checkpoint stands; returns the steps, without a graph."""
        self.vae.zero_grad(set_to_none=True)
        if self.ranks.size > 1:
            self.ranks.expect_same(
                self.identity | {"weights": weights_digest(self.vae)},
                OptionError,
                "distributed: got other {name} in process {rank} than in process 0, expected the same model, data, options",
            )
        state, self.history.rows = self._kept(), known_again(self.encoded)
        self.rows = Rows(self.vae, self.encoded, self.valid, self.pixels, self.seed, int(self.vae.steps))
        self.target = fitting(self.target, self.objective, facts(self.vae, self.encoded))
        if self.kl_warmup and not self.target.weighs_kl:
            raise OptionError(
                f"kl_warmup: got {self.kl_warmup} with the objective {self.objective!r}, which has no KL term to weigh here"
            )
        if self.precision != "float32":
            self.history.rounding = self._rounding()
        self.per_epoch, self.first = ceil(len(self.rows.train) / self.batch_size), int(self.vae.steps)
        self.total = self.epochs * self.per_epoch
        step = Step(self.vae, self.target, self.particles, self.one, self.seed, self.rows, self.precision, self.ranks)
        if state is not None:
            go_on(self, step, state)
        return step

    def _rounding(self) -> float:
        """What rounded nets change of the bound of some rows; refused where it is more than noise."""
        some = self.rows.take(self.rows.train[:ROUNDED_ROWS])
        found = []
        for precision in ("float32", self.precision):
            with torch.no_grad(), PRECISIONS[precision]():
                blocks = row_blocks(self.vae, some, ROUNDED_DRAWS, self.seed + VALIDATION, pad=False, strict=False)
                found.append(torch.cat([block.log_weight for block in blocks], 1))
        return refuse_rounding(torch.stack(found))

    def done(self, step: Any) -> int:
        """How many steps of the epoch have been taken, where it had begun."""
        return step.number - self.first - (self.epoch - 1) * self.per_epoch

    def plan(self, epoch: int) -> Plan:
        """The steps of an epoch."""
        warm = min(1.0, epoch / self.kl_warmup) if self.kl_warmup else 1.0
        batches = self._batches()
        done = [((epoch - 1) * self.per_epoch + j) / self.total for j in range(len(batches))]
        self.epoch = epoch
        return Plan(batches, [self.schedule(d) for d in done], [warm * self.target.kl_weight(d) for d in done])

    def record(self, epoch: int, step: Any, plan: Plan, seconds: float) -> None:
        """Take down an epoch that took so many seconds."""
        self._count(step)
        self.history.append(
            {
                "epoch": epoch,
                **step.means(),
                "valid_bound": self._bound(),
                "lr": self.lr * plan.factors[-1],
                "kl_weight": plan.kl_weights[-1],
                "seconds": time.perf_counter() - self.start,
                "rows_per_s": len(self.rows.train) / seconds,
            }
        )

    def after(self, step: Any, interrupted: bool) -> None:
        """Between two steps: keep the state where it is time.

        Raises: KeyboardInterrupt.
        """
        if interrupted or (self.checkpoint is not None and self.checkpoint.due(step.number)):
            self.keep(step)
        if interrupted:
            self._count(step)
            remember(self.vae)
            raise KeyboardInterrupt

    def end(self, step: Any) -> None:
        """After the last step."""
        self.ended = True
        self.keep(step)
        expect_equal(self.ranks, self.vae)

    def keep(self, step: Any) -> None:
        """Write down where the fit stands, if that was asked for; of several processes, the first does."""
        if self.checkpoint is not None and self.ranks.rank == 0:
            self.checkpoint.write(self.identity, step.number, state_of_fit(self, step))

    def latest(self) -> str:
        """The last epoch in a line."""
        history, latest = self.history, self.history.epochs[-1]
        took = "" if history.compile_seconds is None else f", graph made in {history.compile_seconds:.0f} s"
        return f"{history.latest(2)}, {latest['rows_per_s']:.0f} rows/s{took}"

    def _count(self, step: Any) -> None:
        self.vae.steps.fill_(step.number)
        if self.target.trains_guide:
            self.vae.guide_steps.fill_(step.number)

    def _batches(self) -> list[Tensor]:
        """Of an epoch; of one that has begun, the same, with the pixels to be drawn where they were."""
        noise, kept = self.rows.noise, self.order
        if kept is not None:
            noise.set_state(kept[0])
        self.order, before = None, noise.get_state()
        batches = self.rows.batches(self.batch_size)
        if kept is not None:
            noise.set_state(kept[1])
        self.before = before
        return batches

    def _bound(self) -> float:
        """Mean bound of the held-out rows, under noise that stays the same; NaN without."""
        n, target = len(self.rows.valid.x), self.target
        if not n or not target.trains_guide:
            return nan
        own = self.rows.valid.rows(self.ranks.part(n))
        num_draws = self.particles * target.groups if target.bound == "iwae" else 1
        with torch.no_grad(), in_mode(self.vae, training=False):
            blocks = row_blocks(self.vae, own, num_draws, self.seed + VALIDATION, pad=False, strict=False)
            bounds = [target.per_row_bound(block.log_weight) for block in blocks] if len(own.x) else []
            if self.ranks.size == 1:
                return float(torch.cat(bounds).mean())
            return self.ranks.total(sum(float(bound.double().sum()) for bound in bounds))[0] / n

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a fit has to be the same in, to go on from a checkpoint."""
        batch = [digest(part.cpu().numpy().tobytes()) for part in self.encoded if part is not None]
        shapes = [f"{name} {tuple(v.shape)} {v.dtype}" for name, v in self.vae.state_dict().items()]
        options = {name: told(value) for name, value in sorted(self.given.items())}
        # other priors, links or seeds of weights have the same shapes
        recipe = getattr(self.vae, "recipe", None) or {}
        options |= {f"model's {name}": told(value) for name, value in sorted(recipe.items())}
        model = "\n".join([told(self.vae), *shapes])
        return {**options, "model": digest(model.encode()), "data": digest("".join(batch).encode())}

    def _kept(self) -> State | None:
        """The state to go on from, and the model's count of steps as it was when this fit began."""
        if self.checkpoint is None:
            return None
        state = self.ranks.from_first(lambda: self.checkpoint.read(self.identity), packed, unpacked)  # type: ignore[union-attr]
        if state is not None:
            self.vae.steps.fill_(state.numbers["first"])
        return state


def told(value: Any) -> str:
    """A value in words that are the same in every process."""
    if callable(value) and not isinstance(value, torch.nn.Module):  # which shows its layers
        return called(value)
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value.item() if isinstance(value, np.generic) else value))


class Best:
    """The weights of the best epoch, and whether patience has run out."""

    def __init__(self, patience: int | None, after: int) -> None:
        self.patience, self.after = patience, after
        self.bound, self.epoch = -inf, 0
        self.kept: list[tuple[Tensor, Tensor]] = []

    def is_over(self, bound: float, epoch: int, parameters: list[Tensor]) -> bool:
        """Take note of a bound once the KL term has its full weight; True if it is `patience` epochs since the best."""
        if self.patience is None or epoch < self.after:
            return False
        bound = -inf if isnan(bound) else bound  # which no later one would be above
        if bound > self.bound or not self.kept:
            self.bound, self.epoch = bound, epoch
            self.kept = [(p, p.detach().clone()) for p in parameters]
        return epoch - self.epoch >= self.patience

    @torch.no_grad()
    def restore(self) -> int | None:
        """Put the best weights back; returns their epoch, None if none were kept."""
        for parameter, value in self.kept:
            parameter.copy_(value)
        return self.epoch if self.kept else None
