"""`fit`: Pyro's SVI over the two programs, and a record of every epoch."""

import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from inspect import signature
from math import ceil, inf, nan
from os import PathLike
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import SVI, config_enumerate
from torch import Tensor
from tqdm.auto import tqdm

from ppl_vae.data.schema import Batch
from ppl_vae.errors import NonFiniteError, OptionError, PplVaeError, ProgramError, choose, first_line, number, whole
from ppl_vae.files import digest
from ppl_vae.infer import graphs
from ppl_vae.infer.checkpoint import Checkpoint, State, in_order
from ppl_vae.infer.compiled import with_graph
from ppl_vae.infer.draws import expect_model, facts, row_blocks
from ppl_vae.infer.elbo import restore, state_of
from ppl_vae.infer.handlers import Tally, surroundings
from ppl_vae.infer.history import History
from ppl_vae.infer.noise import step_keys
from ppl_vae.infer.objectives import Objective, fitting
from ppl_vae.infer.objectives import objective as chosen_objective
from ppl_vae.infer.optim import SCHEDULES, OneOptimizer
from ppl_vae.infer.precision import PRECISIONS, refuse_rounding
from ppl_vae.infer.rows import PIXELS, Rows
from ppl_vae.infer.scope import in_mode, isolated, remember
from ppl_vae.options import FitOptions as Default

ROUNDED_ROWS, ROUNDED_DRAWS = 256, 32
"""Whose bound tells what rounding does."""
SELDOM = 20
"""Steps of an epoch from which on callbacks leave something of what a graph saves: the model is looked at after each."""
VALIDATION = 2**40
"""Added to the seed of validation noise: early stopping must not select on the draws that scores then use."""


def fit(
    vae: Any,
    data: Any,
    *,
    objective: str | Objective | Callable = Default.objective,
    particles: int = Default.particles,
    epochs: int = Default.epochs,
    batch_size: int = Default.batch_size,
    optimizer: str = Default.optimizer,
    lr: float = Default.lr,
    schedule: str = Default.schedule,
    weight_decay: float = Default.weight_decay,
    max_grad_norm: float | None = Default.max_grad_norm,
    kl_warmup: int = Default.kl_warmup,
    valid: float = Default.valid,
    patience: int | None = Default.patience,
    binarize: str | None = Default.binarize,
    device: str | torch.device | None = None,
    compiled: bool | str = Default.compiled,
    precision: str = Default.precision,
    seed: int = Default.seed,
    progress: bool = Default.progress,
    callbacks: Iterable[Callable[[Any, History], object]] = (),
    checkpoint: str | PathLike | None = Default.checkpoint,
    checkpoint_seconds: float = Default.checkpoint_seconds,
    checkpoint_steps: int | None = Default.checkpoint_steps,
) -> History:
    """Fit model and guide to data by stochastic variational inference; goes on from where the model stands.

    Args:
        vae: a model with its guide.
        data: n rows, n >= 2.
        objective: a name of `objectives()`, (name, options) as ("renyi", {"alpha": 0.3}), or a factory of any Pyro ELBO (a
            class, or a function of nothing).
        particles: draws of z a row and step; K of "iwae" and its kin.
        epochs: passes over the training rows, each in a new order.
        batch_size: rows a step.
        optimizer: "adam", "adamw", "sgd" or "adagrad"; it sees the gradient of the mean over rows.
        lr: step size at the start.
        schedule: "cosine" (to zero at the last step) or "constant".
        weight_decay: as torch's optimiser defines it.
        max_grad_norm: clip gradients to this norm; None: never.
        kl_warmup: epochs over which the weight of log p(z) - log q(z|x) rises linearly from 1/kl_warmup to 1.
        valid: share of the rows held out, drawn at random; 0: none.
        patience: stop after so many epochs without a better validation bound, and return to the best weights; counted
            from the end of the warm-up.
        binarize: "threshold" (x > 1/2), "stochastic" (drawn anew each step with x as probability) or None.
        device: move the model there first; None: where it is.
        compiled: True: many steps are one compiled graph; "traced": the programs are run once, and after that the list of
            tensor operations that they led to, without a compiler; False: the programs are run in each step. "auto": the
            first on a CPU where 20,000 steps or more are planned, the second from 1,000, where there can be such a graph
            and no callbacks every few steps; else it says why not in the log. Noise and results are the same up to
            rounding. The graph is made once, and left after a callback that changes more of the model than values in place.
        precision: "float32", or "bf16": the products of nets are taken in bfloat16 while training, which processors made for
            it do several times as fast; weights, densities and all that comes after a fit stay in float32.
        seed: of split, order and noise. A fit is a function of model, data, options and seed. A second fit of a model goes
            on with fresh noise and order under the same seed, and with the same split; another seed has another split,
            which holds out rows that were trained on.
        progress: show a bar with the bound and rows/s.
        callbacks: each called after every epoch as f(vae, history).
        checkpoint: a folder of its own, in which the fit's state is kept, also in the middle of an epoch; a fit of the same
            model, data and options goes on from there, bit for bit as if it had not been stopped (on the same machine), and
            one that was done is read. An ELBO of your own with a state of its own starts anew.
        checkpoint_seconds, checkpoint_steps: from one state to the next, by the clock and, if not None, by steps, whichever
            is first; a graph of many steps is not cut short. It is kept at the end too, and on Ctrl-C, which waits for a
            whole step.

    Returns: the `History`.

    Raises:
        DataError: unusable rows, or outside the likelihood's support.
        OptionError: an unknown or contradictory argument; "bf16" where it changes the bound by more than its noise.
        NonFiniteError: the loss or a gradient turned NaN or infinite; the model holds its last good state.
        ModelFileError: a checkpoint that is damaged, or cannot be written.

    Example:
        >>> import numpy as np
        >>> from ppl_vae.model.build import build
        >>> x = np.random.RandomState(0).randn(200, 3)
        >>> vae = build(x, latent=2, hidden=(16,))
        >>> history = fit(vae, x, epochs=3, progress=False)
        >>> bool(history["bound"][-1] > history["bound"][0])
        True
    """
    given = {name: value for name, value in locals().items() if name not in ("vae", "data", "progress")}
    run = Run(vae, data, **given)
    history, callbacks = run.history, run.callbacks
    with run.room():
        step: Any = run.begin()
        if run.ended:
            return history
        bar = tqdm(range(run.epoch, run.epochs + 1), disable=not progress, desc="fit", unit="epoch")
        bar.set_postfix_str("making a graph of a step" if compiled else "")
        seldom = not callbacks or run.total >= SELDOM * run.epochs
        step, history.compile_seconds = with_graph(compiled, run.total if seldom else 0, step, run.batch_size)
        run.start = time.perf_counter() - run.spent
        with interruptible() as interrupted:
            for epoch in bar:
                plan, began = run.plan(epoch, step.number), time.perf_counter()
                for _ in step.each(plan.rest(run.done), history):
                    run.after(step, interrupted())
                run.record(epoch, step, plan, time.perf_counter() - began)
                bar.set_postfix_str(run.latest())
                remember(vae)
                for callback in callbacks:
                    callback(vae, history)
                if run.best.is_over(history.epochs[-1]["valid_bound"], epoch, step.parameters):
                    history.stopped = "patience"
                    break
                if callbacks:
                    step = step.still()
        history.best_epoch = run.best.restore()
        run.end(step)
    return history


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C waits for the step that it meets, so that no weight is half moved; a second one does not wait.

    Yields: whether there was one.
    """
    met: list[int] = []

    def wait(number: int, frame: Any) -> None:
        if met:
            raise KeyboardInterrupt
        met.append(number)

    before, main = signal.getsignal(signal.SIGINT), threading.current_thread() is threading.main_thread()
    if not main or before is not signal.default_int_handler:  # somebody else's, or it is ignored
        yield lambda: False
        return
    signal.signal(signal.SIGINT, wait)
    try:
        yield lambda: bool(met)
    finally:
        signal.signal(signal.SIGINT, before)
    if met:  # after the last step
        raise KeyboardInterrupt


class Plan(NamedTuple):
    """The steps of an epoch.

    Attributes:
        batches: row numbers (b,) of each.
        factors: of the step size.
        kl_weights: of the KL term.
    """

    batches: list[Tensor]
    factors: list[float]
    kl_weights: list[float]

    def rest(self, done: int) -> "Plan":
        """What is left after so many."""
        return Plan(self.batches[done:], self.factors[done:], self.kl_weights[done:])


def check_options(**options: Any) -> None:
    """Refuse options that `fit` would refuse for any model; those not given have their defaults.

    Raises: OptionError.
    """
    defaults = {name: parameter.default for name, parameter in signature(fit).parameters.items()}
    given = defaults | options
    Options(**{name: given[name] for name in signature(Options).parameters})


NOT_OF_ITS_RESULT = ("callbacks", "checkpoint", "checkpoint_seconds", "checkpoint_steps")
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
    ) -> None:
        self.given = {name: value for name, value in locals().items() if name not in ("self", *NOT_OF_ITS_RESULT)}
        if not isinstance(callbacks, Iterable):
            raise OptionError(f"callbacks: got {callbacks!r}, expected a list of functions of a model and a history")
        self.callbacks = list(callbacks)
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
        if device is not None:
            try:
                vae.to(device)
            except (RuntimeError, AssertionError) as error:
                raise OptionError(f"device: got {device!r}, expected one that torch has here: {error}") from error
        if not hasattr(vae, "guide"):
            raise OptionError(f"vae: got a {type(vae).__name__}, expected a model with its guide, and data after it")
        expect_model(vae)
        self.encoded = vae.batch(data, minimum_rows=2) if encoded is None else encoded
        self.history, self.start, self.spent = History(), 0.0, 0.0
        self.epoch, self.done, self.ended = 1, 0, False
        self.order: Any = None

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
        state = self._kept()
        self.rows = Rows(self.vae, self.encoded, self.valid, self.pixels, self.seed, int(self.vae.steps))
        self.target = fitting(self.target, self.objective, facts(self.vae, self.encoded))
        if self.kl_warmup and not self.target.weighs_kl:
            raise OptionError(
                f"kl_warmup: got {self.kl_warmup} with the objective {self.objective!r}, which has no KL term to weigh here"
            )
        if self.precision != "float32":
            self.history.rounding = self._rounding()
        self.total, self.first = self.epochs * ceil(len(self.rows.train) / self.batch_size), int(self.vae.steps)
        step = Step(self.vae, self.target, self.particles, self.one, self.seed, self.rows, self.precision)
        if state is not None:
            self._restore(state, step)
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

    def plan(self, epoch: int, step: int) -> Plan:
        """The steps of an epoch, the first of which has this number."""
        warm = min(1.0, epoch / self.kl_warmup) if self.kl_warmup else 1.0
        batches = self._batches()
        done = [(step - self.done - self.first + j) / self.total for j in range(len(batches))]
        self.epoch = epoch
        return Plan(batches, [self.schedule(d) for d in done], [warm * self.target.kl_weight(d) for d in done])

    def record(self, epoch: int, step: Any, plan: Plan, seconds: float) -> None:
        """Take down an epoch that took so many seconds."""
        self.done = 0
        self._count(step)
        self.history.append(
            {
                "epoch": epoch,
                **step.means(),
                "valid_bound": _bound(self.vae, self.rows.valid, self.target, self.particles, self.seed),
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
        self.done = step.number - self.first - (self.epoch - 1) * ceil(len(self.rows.train) / self.batch_size)
        if self.checkpoint is not None and (interrupted or self.checkpoint.due(step.number)):
            self._keep(step)
        if interrupted:
            self._count(step)
            remember(self.vae)
            raise KeyboardInterrupt

    def end(self, step: Any) -> None:
        """After the last step."""
        self.ended = True
        if self.checkpoint is not None:
            self._keep(step)

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

    # -- what is kept of it

    @property
    def identity(self) -> dict[str, Any]:
        """What a fit has to be the same in, to go on from a checkpoint."""
        batch = [digest(part.cpu().numpy().tobytes()) for part in self.encoded if part is not None]
        shapes = [f"{name} {tuple(v.shape)} {v.dtype}" for name, v in self.vae.state_dict().items()]
        options = {name: repr(value) for name, value in sorted(self.given.items())}
        return {**options, "model": digest("\n".join(shapes).encode()), "data": digest("".join(batch).encode())}

    def _kept(self) -> State | None:
        """The state to go on from, and the model's count of steps as it was when this fit began."""
        state = None if self.checkpoint is None else self.checkpoint.read(self.identity)
        if state is not None:
            self.vae.steps.fill_(state.numbers["first"])
        return state

    def _keep(self, step: Any) -> None:
        """Write down all that the next step depends on."""
        assert self.checkpoint is not None
        named = self._named()
        tensors = {f"model.{name}": value for name, value in self.vae.state_dict().items()}
        tensors |= {f"own.{name}": p for name, p in named.items() if name.startswith(OWN)}
        names = {id(p): name for name, p in named.items()}
        for p, kept in step.optimizers():
            tensors |= {f"optimizer.{what}.{names[id(p)]}": value for what, value in kept.items()}
        tensors |= {f"best.{names[id(p)]}": value for p, value in self.best.kept}
        tensors |= {f"objective.{name}": value for name, value in state_of(step.elbo).items()}
        generators = (self.before, self.rows.noise.get_state(), torch.get_rng_state())
        tensors |= dict(zip(GENERATORS, generators))
        numbers = {
            "first": self.first,
            "step": step.number,
            "epoch": self.epoch,
            "sums": in_order(step.sums),
            "history": [in_order(figures) for figures in self.history.epochs],
            "ended": self.ended,
            "stopped": self.history.stopped,
            "best_epoch": self.history.best_epoch,
            "best": [self.best.bound, self.best.epoch] if self.best.kept else None,
            "seconds": time.perf_counter() - self.start,
        }
        self.checkpoint.write(self.identity, step.number, State(numbers, {k: v.clone() for k, v in tensors.items()}))

    @torch.no_grad()
    def _restore(self, state: State, step: "Step") -> None:
        """Put back what `_keep` wrote down."""
        numbers, history = state.numbers, self.history
        self.vae.load_state_dict(state.under("model."), strict=True)
        store = pyro.get_param_store()
        for name, value in state.under("own.").items():
            if name.removeprefix(OWN) not in store:  # as the averages that Pyro's objectives keep there
                store.setdefault(name.removeprefix(OWN), value.clone())
        named = self._named()
        for name, value in state.under("own.").items():
            named[name].copy_(value)
        for name, value in state.under("optimizer.").items():
            what, _, name = name.partition(".")
            self.one.known.setdefault(named[name], {})[what] = value.to(named[name].device)
        restore(step.elbo, state.under("objective."))
        self.best.kept = [(named[name], value) for name, value in state.under("best.").items()]
        if numbers["best"]:
            self.best.bound, self.best.epoch = numbers["best"]
        history.epochs = [dict(figures) for figures in numbers["history"]]
        history.stopped, history.best_epoch = numbers["stopped"], numbers["best_epoch"]
        self.order = tuple(state.tensors[name] for name in GENERATORS[:2])
        torch.set_rng_state(state.tensors[GENERATORS[2]])
        step.number, step.sums = numbers["step"], dict(numbers["sums"])
        self.epoch, self.ended, self.spent = numbers["epoch"], numbers["ended"], numbers["seconds"]
        self.done = step.number - self.first - (self.epoch - 1) * ceil(len(self.rows.train) / self.batch_size)
        remember(self.vae)

    def _named(self) -> dict[str, Tensor]:
        """All parameters by name: the model's, and those that its programs themselves put into Pyro's store."""
        named: dict[str, Tensor] = dict(self.vae.named_parameters())
        known = set(map(id, named.values()))
        return named | {OWN + k: p for k, p in pyro.get_param_store().named_parameters() if id(p) not in known}


OWN = "pyro.param:"
GENERATORS = ("rows_before", "rows", "torch")
"""Of the order of rows and their pixels, before this epoch and now; torch's own."""


class Step:
    """One step of SVI, with noise keyed by (seed, step, row) and a record of the densities that it met."""

    def __init__(
        self,
        vae: Any,
        target: Objective,
        particles: int,
        one: OneOptimizer,
        seed: int,
        rows: Rows,
        precision: str = "float32",
    ) -> None:
        self.precision = precision
        self.vae, self.target, self.one, self.seed, self.number = vae, target, one, seed, int(vae.steps)
        self.particles, self.rows = particles, rows
        elbo: Any = target.make(particles)
        self.elbo = elbo

        def loss_and_grads(*args: Any, **kwargs: Any) -> float:
            one.loss = elbo.loss_and_grads(*args, **kwargs)
            return one.loss

        guide = config_enumerate(vae.guide) if target.enumerates else vae.guide
        self.svi = SVI(vae.model, guide, one, loss=elbo.loss, loss_and_grads=loss_and_grads)
        self.sums: dict[str, float] = {}

    @property
    def parameters(self) -> list[Tensor]:
        """All parameters, once the first step has been taken."""
        return self.one.parameters

    def still(self) -> "Step":
        """These steps, whatever a callback has changed."""
        return self

    def optimizers(self) -> Iterable[tuple[Tensor, dict[str, Tensor]]]:
        """What the optimiser keeps of each parameter."""
        return self.one.state.items()

    def each(self, plan: Plan, history: History) -> Iterator[None]:
        """A step on each batch, and a pause; errors show the history so far."""
        for numbers, factor, kl_weight in zip(*plan):
            self.one.scale_lr(factor)
            self.on(self.rows.take(numbers), numbers, kl_weight, history)
            yield

    def on(self, batch: Batch, numbers: Tensor, kl_weight: float, history: History) -> None:
        """A step on these rows."""
        one, tally = self.one, Tally()
        one.rows = len(numbers)
        keys = step_keys(numbers, self.seed, self.number)
        share = len(numbers) / len(self.rows.train)
        weights: Any = {"kl_weight": kl_weight, "share": share, "precision": self.precision}
        with surroundings(self.target, self.elbo, numbers, keys, **weights, tally=tally):
            self._svi_step(batch)
        if one.refused:
            raise self._error(tally, numbers, history)
        figures = {
            "objective": -one.loss / one.rows,
            "grad_norm": float(one.grad_norm),
        }
        figures |= tally.figures(self.target, figures["objective"])
        observed = self.rows.jacobian(numbers)
        for name in ("bound", "reconstruction", "objective"):
            figures[name] += observed
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * one.rows
        self.sums["rows"] = self.sums.get("rows", 0.0) + one.rows
        self.number += 1

    def _svi_step(self, batch: Batch) -> None:
        args, given = batch.arguments()
        try:
            self.svi.step(*args, **given)
        except PplVaeError:
            raise
        except Exception as error:  # whatever an objective raises on programs that are not made for it
            text = f"step {self.number}: the objective failed on this model and guide: {first_line(error)}"
            raise ProgramError(text) from error

    def _error(self, tally: Tally, numbers: Tensor, history: History) -> NonFiniteError:
        """Says where the loss or gradient stopped being finite; the parameters have not moved."""
        site, rows = tally.first_non_finite(numbers)
        if site is not None:
            where = f"log density of site {site!r} at {len(rows)} rows, the first {rows[:5]},"
        else:
            names = [n for n, p in self.vae.named_parameters() if any(p is q for q in self.one.not_finite)]
            where = f"gradient of {', '.join(names[:3]) or 'the loss'} in a batch of {len(rows)} rows"
        return NonFiniteError(
            f"step {self.number}: got a {where} that is not finite; the model holds its state before this step. "
            "A smaller lr, max_grad_norm or a larger scale_floor may help",
            site=site,
            rows=rows,
            step=self.number,
            history=history,
        )

    def means(self) -> dict[str, float]:
        """Means over the rows since the last call, in the data's own units."""
        rows = self.sums.pop("rows")
        means = {name: value / rows for name, value in self.sums.items()}
        self.sums = {}
        return means


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


def _bound(vae: Any, batch: Batch, target: Objective, particles: int, seed: int) -> float:
    """Mean bound of encoded rows, under noise that stays the same; NaN without rows."""
    if not len(batch.x) or not target.trains_guide:
        return nan
    num_draws = particles * target.groups if target.bound == "iwae" else 1
    with torch.no_grad(), in_mode(vae, training=False):
        blocks = row_blocks(vae, batch, num_draws, seed + VALIDATION, pad=False, strict=False)
        return float(torch.cat([target.per_row_bound(block.log_weight) for block in blocks]).mean())
