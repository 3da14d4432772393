"""What a fit goes on from after it was stopped: all that its next step depends on, in a folder.

Noise, and with it every step, is a function of (seed, step, row); the order of rows and pixels that are drawn come from a
generator whose state is kept. A fit that goes on is therefore the fit that was stopped, bit for bit.
"""

import time
from math import isnan, nan
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ppl_vae.errors import MissingFileError, OptionError, number, whole
from ppl_vae.files import read_pair, write_pair

NAME, FORMAT = "checkpoint", 1


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

        Raises: ModelFileError where the folder cannot be written.
        """
        content = {"format": FORMAT, "fit": fit, "numbers": without_nan(state.numbers)}
        write_pair(self.folder, NAME, content, state.tensors)
        self.at, self.step = time.monotonic(), step

    def read(self, fit: dict[str, Any]) -> State | None:
        """The state that was kept last; None where there is none.

        Raises: OptionError that names what another fit there differs in; ModelFileError for a damaged one.
        """
        try:
            content, tensors = read_pair(self.folder, NAME)
        except MissingFileError:
            return None
        there: dict[str, Any] = content["fit"] if content["format"] == FORMAT else {"format": content["format"]}
        if there != fit:
            differs = next(name for name in (*fit, *there) if fit.get(name) != there.get(name))
            raise OptionError(
                f"checkpoint: got {self.folder} of another fit, whose {differs} was {there.get(differs)!s:.100}, expected "
                f"{fit.get(differs)!s:.100}; name another folder, or delete it to start anew"
            )
        return State(with_nan(content["numbers"]), tensors)


def in_order(figures: dict[str, float]) -> list[list[Any]]:
    """Figures by name, as JSON keeps their order."""
    return [[name, value] for name, value in figures.items()]


def without_nan(value: Any) -> Any:
    """Numbers as JSON knows them: "nan" in the place of NaN."""
    if isinstance(value, dict):
        return {key: without_nan(v) for key, v in value.items()}
    if isinstance(value, list):
        return [without_nan(v) for v in value]
    return "nan" if isinstance(value, float) and isnan(value) else value


def with_nan(value: Any) -> Any:
    """The other way round."""
    if isinstance(value, dict):
        return {key: with_nan(v) for key, v in value.items()}
    if isinstance(value, list):
        return [with_nan(v) for v in value]
    return nan if value == "nan" else value
