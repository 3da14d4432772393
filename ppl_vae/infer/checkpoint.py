"""What a fit goes on from after it was stopped: all that its next step depends on, in a folder.

Noise, and with it every step, is a function of (seed, step, row); the order of rows and pixels that are drawn come from a
generator whose state is kept. A fit that goes on is therefore the fit that was stopped, bit for bit.
"""

import json
import time
from math import isfinite
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import safetensors.torch
import torch
from torch import Tensor

from ppl_vae.errors import MissingFileError, OptionError, number, whole
from ppl_vae.infer.elbo import restore, state_of
from ppl_vae.infer.scope import remember
from ppl_vae.pairs import Pair

PAIR, FORMAT = Pair("the checkpoint", "checkpoint", "checkpoint"), 1
OWN = "pyro.param:"
"""Marks parameters that a model's programs put into Pyro's store themselves."""
GENERATORS = ("rows_before", "rows", "torch")
"""Of the order of rows and their pixels, before this epoch and now; torch's own."""


class State(NamedTuple):
    """Of a fit between two steps.

    Attributes:
        numbers: counts and figures, by name.
        tensors: by name; weights, the optimiser's, generators'.
    """

    numbers: dict[str, Any]
    tensors: dict[str, Tensor]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors of one kind, without its name."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


class Checkpoint:
    """Where a fit keeps its state, and when.

    Args:
        folder: one of its own.
        seconds: from one state to the next, at least.
        steps: the same in steps; None: only seconds count.
    """

    def __init__(self, folder: str | PathLike, seconds: float, steps: int | None) -> None:
        if not isinstance(folder, str | PathLike) or not str(folder):
            raise OptionError(f"checkpoint: got {folder!r}, expected a folder")
        self.folder = Path(folder)
        self.seconds = number("checkpoint_seconds", seconds, inclusive=True)
        self.steps = steps if steps is None else whole("checkpoint_steps", steps)
        self.at, self.step = time.monotonic(), 0

    def due(self, step: int) -> bool:
        """Whether it is time, after so many steps of all fits."""
        by_steps = self.steps is not None and step - self.step >= self.steps
        return by_steps or time.monotonic() - self.at >= self.seconds

    def write(self, fit: dict[str, Any], step: int, state: State) -> None:
        """Keep a state.

        Args:
            fit: what a fit has to be the same in, to go on from here.
            step: of all fits.

        Raises: ModelFileError where the folder cannot be written.
        """
        content = {"format": FORMAT, "fit": fit, "numbers": as_json(state.numbers)}
        PAIR.write(self.folder, content, state.tensors)
        self.at, self.step = time.monotonic(), step

    def read(self, fit: dict[str, Any]) -> State | None:
        """The state that was kept last; None where there is none.

        Raises: OptionError that names what another fit there differs in; ModelFileError for a damaged one.
        """
        try:
            content, tensors = PAIR.read(self.folder)
        except MissingFileError:
            return None
        there: dict[str, Any] = content["fit"] if content["format"] == FORMAT else {"format": content["format"]}
        if there != fit:
            differs = next(name for name in (*fit, *there) if fit.get(name) != there.get(name))
            raise OptionError(
                f"checkpoint: got {self.folder} of another fit, whose {differs} was {there.get(differs)!s:.100}, expected "
                f"{fit.get(differs)!s:.100}; name another folder, or delete it to start anew"
            )
        return State(from_json(content["numbers"]), tensors)


def is_kept(folder: str | PathLike | None) -> bool:
    """Whether a folder holds a state to go on from."""
    return folder is not None and Path(folder, f"{PAIR.name}.json").exists()


def state_of_fit(run: Any, step: Any) -> State:
    """All that the next step depends on."""
    named = named_parameters(run.vae)
    tensors = {f"model.{name}": value for name, value in run.vae.state_dict().items()}
    tensors |= {f"own.{name}": p for name, p in named.items() if name.startswith(OWN)}
    names = {id(p): name for name, p in named.items()}
    for p, kept in step.optimizers():
        tensors |= {f"optimizer.{what}.{names[id(p)]}": value for what, value in kept.items()}
    tensors |= {f"best.{names[id(p)]}": value for p, value in run.best.kept}
    tensors |= {f"objective.{name}": value for name, value in state_of(step.elbo).items()}
    generators = (run.before, run.rows.noise.get_state(), torch.get_rng_state())
    tensors |= dict(zip(GENERATORS, generators))
    numbers = {
        "first": run.first,
        "step": step.number,
        "epoch": run.epoch,
        "sums": in_order(step.sums),
        "history": [in_order(figures) for figures in run.history.epochs],
        "ended": run.ended,
        "stopped": run.history.stopped,
        "best_epoch": run.history.best_epoch,
        "best": [run.best.bound, run.best.epoch] if run.best.kept else None,
        "seconds": time.perf_counter() - run.start,
    }
    return State(numbers, tensors)


@torch.no_grad()
def go_on(run: Any, step: Any, state: State) -> None:
    """Put that back into a fit that is to begin."""
    numbers, history = state.numbers, run.history
    run.vae.load_state_dict(state.under("model."), strict=True)
    store = pyro.get_param_store()
    for name, value in state.under("own.").items():
        if name.removeprefix(OWN) not in store:  # as the averages that Pyro's objectives keep there
            store.setdefault(name.removeprefix(OWN), value.clone())
    named = named_parameters(run.vae)
    for name, value in state.under("own.").items():
        named[name].copy_(value)
    for name, value in state.under("optimizer.").items():
        what, _, name = name.partition(".")
        run.one.known.setdefault(named[name], {})[what] = value.to(named[name].device)
    restore(step.elbo, state.under("objective."))
    run.best.kept = [(named[name], value) for name, value in state.under("best.").items()]
    if numbers["best"]:
        run.best.bound, run.best.epoch = numbers["best"]
    history.epochs = [dict(figures) for figures in numbers["history"]]
    history.stopped, history.best_epoch = numbers["stopped"], numbers["best_epoch"]
    run.order = tuple(state.tensors[name] for name in GENERATORS[:2])
    torch.set_rng_state(state.tensors[GENERATORS[2]])
    step.number, step.sums = numbers["step"], dict(numbers["sums"])
    run.epoch, run.ended, run.spent = numbers["epoch"], numbers["ended"], numbers["seconds"]
    remember(run.vae)


def named_parameters(vae: Any) -> dict[str, Tensor]:
    """All parameters by name: the model's, and those that its programs themselves put into Pyro's store."""
    named: dict[str, Tensor] = dict(vae.named_parameters())
    known = set(map(id, named.values()))
    return named | {OWN + k: p for k, p in pyro.get_param_store().named_parameters() if id(p) not in known}


def packed(state: State | None) -> bytes:
    """A state as bytes; none as no bytes."""
    if state is None:
        return b""
    return safetensors.torch.save(state.tensors, {"numbers": json.dumps(as_json(state.numbers))})


def unpacked(raw: bytes) -> State | None:
    """The other way round."""
    if not raw:
        return None
    size = int.from_bytes(raw[:8], "little")
    numbers = json.loads(raw[8 : 8 + size])["__metadata__"]["numbers"]
    return State(from_json(json.loads(numbers)), safetensors.torch.load(raw))


def in_order(figures: dict[str, float]) -> list[list[Any]]:
    """Figures by name, as JSON keeps their order."""
    return [[name, value] for name, value in figures.items()]


def as_json(value: Any) -> Any:
    """Numbers as JSON knows them: "nan", "inf" and "-inf" in the place of those that are not finite."""
    if isinstance(value, dict):
        return {key: as_json(v) for key, v in value.items()}
    if isinstance(value, list):
        return [as_json(v) for v in value]
    return str(value) if isinstance(value, float) and not isfinite(value) else value


def from_json(value: Any) -> Any:
    """The other way round."""
    if isinstance(value, dict):
        return {key: from_json(v) for key, v in value.items()}
    if isinstance(value, list):
        return [from_json(v) for v in value]
    return float(value) if value in ("nan", "inf", "-inf") else value
