"""One budget for several fits, in gradient evaluations or in seconds: how many epochs each gets of it."""

import copy
from collections.abc import Callable
from functools import cache
from inspect import signature
from math import ceil
from typing import Any

import numpy as np

from ppl_vae.errors import OptionError, choose, number
from ppl_vae.infer.history import History
from ppl_vae.infer.objectives import objective as chosen_objective
from ppl_vae.infer.training import fit
from ppl_vae.model.build import build

TRIAL_SHARE, TRIAL_EPOCHS = 0.05, 3
"""A trial that measures the speed takes this share of the seconds, and at least so many epochs."""


class Spent(Exception):
    """Raised by a callback to end a fit: its time is over."""


def checked(budget: Any) -> dict[str, float] | None:
    """A budget as {"seconds": s} or {"gradients": g}, or None."""
    if budget is None:
        return None
    if not isinstance(budget, dict) or len(budget) != 1:
        raise OptionError(f"budget: got {budget!r}, expected {{'seconds': s}} or {{'gradients': g}}")
    ((unit, amount),) = budget.items()
    choose("budget", unit, UNITS)
    return {unit: number(f"budget {unit}", amount)}


def fit_within(vae: Any, train: Any, budget: dict[str, float] | None, **options: Any) -> tuple[History, int]:
    """Fit a fresh model with one budget; learning rates fall to the end of that budget.

    Args:
        vae: the model.
        train: n rows.
        budget: {"gradients": g}, in which a row's log weight under one draw counts as one: as many whole epochs as it
            holds. {"seconds": s}: as many as fit in by the speed of a trial on a copy; a fit that turns out slower is
            stopped after the epoch in which its time runs out; compiled="auto" is False here. None: the fit's own epochs.
        options: of `fit`.

    Returns: the history, and the number of gradient evaluations.

    Raises: OptionError for a budget that holds no epoch.
    """
    each = evaluations(vae, train, options)
    further: dict[str, Any] = {}
    if budget is not None:
        ((unit, amount),) = budget.items()
        further = UNITS[unit](amount, each, vae, train, options)
        _check_epochs(further["epochs"], budget, each)
    warm_up()
    history = _stoppable(vae, train, {**options, **further})
    return history, round(len(history) * each)


def check(vae: Any, train: Any, budget: dict[str, float] | None, options: dict[str, Any]) -> None:
    """Refuse what `fit_within` would refuse; whether seconds hold an epoch only their trial shows.

    Raises: OptionError.
    """
    if budget is not None and "gradients" in budget:
        each = evaluations(vae, train, options)
        _check_epochs(_by_gradients(budget["gradients"], each, vae, train, options)["epochs"], budget, each)
    elif budget is not None:
        _check_patience(options)


def _check_epochs(epochs: int, budget: dict[str, float], each: float) -> None:
    if epochs < 1:
        ((unit, amount),) = budget.items()
        raise OptionError(
            f"budget: got {amount:g} {unit}, expected enough for an epoch of {each:g} gradient evaluations"
        )


def _check_patience(options: dict[str, Any]) -> None:
    if options.get("patience") is not None:  # the best weights would be lost where the clock stops the fit
        raise OptionError(f"patience: got {options['patience']} with a budget in seconds, expected None")


@cache
def warm_up() -> None:
    """A first fit of next to nothing: what a process loads then is not charged to the first candidate."""
    rows = np.arange(8.0).reshape(4, 2)
    fit(build(rows, latent=1, hidden=()), rows, epochs=1, progress=False)


def evaluations(vae: Any, train: Any, options: dict[str, Any]) -> float:
    """Gradient evaluations an epoch: rows that are trained on, times draws a row."""
    n = len(vae.batch(train).x)
    share = _option(options, "valid")
    return (n - min(ceil(share * n), n - 1)) * draws_a_row(_option(options, "objective"), _option(options, "particles"))


def draws_a_row(objective: Any, particles: int) -> float:
    """Draws of z at which an objective takes gradients, a row and step: its particles, or what its `.evaluations` says."""
    elbo = chosen_objective(objective, particles).make(particles)
    return float(getattr(elbo, "evaluations", elbo.num_particles))


def _by_gradients(amount: float, each: float, vae: Any, train: Any, options: dict[str, Any]) -> dict[str, Any]:
    return {"epochs": int(amount // each)}


def _by_seconds(amount: float, each: float, vae: Any, train: Any, options: dict[str, Any]) -> dict[str, Any]:
    _check_patience(options)
    if _option(options, "compiled") == "auto":  # goes by the steps that are planned, which are not known yet
        options = {**options, "compiled": False}
    trial = _stoppable(copy.deepcopy(vae), train, {**options, "epochs": 10**9, "callbacks": [_trial(amount)]})
    ends = trial["seconds"]
    speed = ends[0] if len(ends) == 1 else np.diff(ends).mean()  # the first epoch also warms up
    return {**options, "epochs": int(amount // speed), "callbacks": [*options.get("callbacks", ()), _clock(amount)]}


UNITS: dict[str, Callable[..., dict[str, Any]]] = {"gradients": _by_gradients, "seconds": _by_seconds}


def _trial(seconds: float) -> Callable[[Any, History], None]:
    """A callback that ends a fit when its speed is known."""

    def stop(vae: Any, history: History) -> None:
        share = history["seconds"][-1] / seconds
        if share >= 1 or (share >= TRIAL_SHARE and len(history) >= TRIAL_EPOCHS):
            raise Spent

    return stop


def _clock(seconds: float) -> Callable[[Any, History], None]:
    """A callback that ends a fit whose time is over."""

    def stop(vae: Any, history: History) -> None:
        if history["seconds"][-1] >= seconds:
            raise Spent

    return stop


def _stoppable(vae: Any, train: Any, options: dict[str, Any]) -> History:
    """`fit`, which a callback may end by raising `Spent`."""
    kept: list[History] = []
    callbacks = [lambda vae, history: kept.append(history) if not kept else None, *options.get("callbacks", ())]
    try:
        return fit(vae, train, **{**options, "callbacks": callbacks})
    except Spent:
        kept[0].stopped = "budget"
        return kept[0]


def _option(options: dict[str, Any], name: str) -> Any:
    return options.get(name, signature(fit).parameters[name].default)
