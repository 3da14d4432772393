"""`fit`: Pyro's SVI over the two programs, and a record of every epoch."""

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from inspect import signature
from os import PathLike
from typing import Any

import torch

from ppl_vae.infer.compiled import with_graph
from ppl_vae.infer.history import History
from ppl_vae.infer.objectives import Objective
from ppl_vae.infer.run import Options, Run
from ppl_vae.infer.scope import remember
from ppl_vae.options import FitOptions as Default
from ppl_vae.progress import tqdm

SELDOM = 20
"""Steps of an epoch from which on callbacks leave something of what a graph saves: the model is looked at after each."""


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
    distributed: bool = Default.distributed,
) -> History:
    """Fit model and guide to data by stochastic variational inference (Kingma & Welling 2013).

    Goes on from where the model stands. Each objective's own source stands in `objectives()`.

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
        distributed: share each batch among the processes that torchrun started (`distributed.py`), each of which has the
            same model, data and options: the fit is then that of one process, but for rounding. What an objective takes of a
            batch as a whole ("mmd", "free_bits"), chains of rows, and an ELBO of your own are done by each process alike.
            The first process keeps checkpoints; callbacks are called in all.

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
        with interruptible(run.ranks.size == 1) as interrupted:
            for epoch in bar:
                plan, began = run.plan(epoch), time.perf_counter()
                for _ in step.each(plan.rest(run.done(step)), history):
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
def interruptible(alone: bool) -> Iterator[Callable[[], bool]]:
    """Ctrl-C waits for the step that it meets, so that no weight is half moved; a second one does not wait.

    Args:
        alone: False: it does not wait, as the others might not, and wait for this process.

    Yields: whether there was one.
    """
    met: list[int] = []

    def wait(number: int, frame: Any) -> None:
        if met:
            raise KeyboardInterrupt
        met.append(number)

    before, main = signal.getsignal(signal.SIGINT), threading.current_thread() is threading.main_thread()
    if not alone or not main or before is not signal.default_int_handler:  # somebody else's, or it is ignored
        yield lambda: False
        return
    signal.signal(signal.SIGINT, wait)
    try:
        yield lambda: bool(met)
    finally:
        signal.signal(signal.SIGINT, before)
    if met:  # after the last step
        raise KeyboardInterrupt


def check_options(**options: Any) -> None:
    """Refuse options that `fit` would refuse for any model; those not given have their defaults.

    Raises: OptionError.
    """
    defaults = {name: parameter.default for name, parameter in signature(fit).parameters.items()}
    given = defaults | options
    Options(**{name: given[name] for name in signature(Options).parameters})
