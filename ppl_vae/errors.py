"""What can go wrong, by name. Every error that a user can cause derives from `PplVaeError`."""

import math
import operator
from typing import Any


class PplVaeError(Exception):
    """Base of every error that this library raises on purpose."""


class DataError(PplVaeError, ValueError):
    """A table that cannot be used as it is: names the column or file, what was got and what was expected."""


class MissingFileError(DataError, FileNotFoundError):
    """A file or data set that is not where it was looked for."""


class OptionError(PplVaeError, ValueError):
    """An argument that is unknown, out of range, or at odds with another."""


class ProgramError(PplVaeError, TypeError):  # Pyro appends a page of shapes to a ValueError
    """A model, guide, prior, likelihood or posterior that breaks the contract: names the site."""


class ModelFileError(PplVaeError, ValueError):
    """A saved model that is absent, damaged, or of a format that this version does not know."""


class NonFiniteError(PplVaeError, ArithmeticError):
    """The loss or a gradient became NaN or infinite in training; the model holds its last good state.

    Attributes: site (str or None), rows (list of row numbers in the data), step (int) and history (History).
    """

    def __init__(self, message: str, *, site: str | None, rows: list[int], step: int, history: Any = None) -> None:
        super().__init__(message)
        self.site, self.rows, self.step, self.history = site, rows, step, history


def choose(kind: str, name: Any, table: dict[str, Any]) -> Any:
    """Return `table[name]`, or raise an `OptionError` that lists what there is."""
    if not isinstance(name, str) or name not in table:
        raise OptionError(f"{kind}: got {name!r}, expected one of {', '.join(map(repr, table))}")
    return table[name]


def whole(name: str, value: Any, least: int | None = 1) -> int:
    """`value` as an int, NumPy's included, or an `OptionError` unless it is a whole number of at least `least`."""
    try:
        got = operator.index(value)
    except TypeError:
        got = None
    if got is None or isinstance(value, bool) or (least is not None and got < least):
        limit = "" if least is None else f" of at least {least}"
        raise OptionError(f"{name}: got {value!r:.200}, expected a whole number{limit}")
    return got


def first_line(error: Exception) -> str:
    """What an error says, without the page of shapes that Pyro appends."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def called(part: Any) -> str:
    """What to call an object of the user's in messages: its own name, or that of its type.

    Example:
        >>> called(number), called(3)
        ('number', 'int')
    """
    while type(part).__name__ in ("Independent", "MaskedDistribution", "ExpandedDistribution"):
        part = part.base_dist
    return getattr(part, "__name__", None) or type(part).__name__


def several(n: int, what: str) -> str:
    """A number of things in words.

    Example:
        >>> several(1, "epoch"), several(0, "row")
        ('1 epoch', '0 rows')
    """
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def number(name: str, value: Any, above: float = 0.0, *, inclusive: bool = False) -> float:
    """`value` as a finite float above a limit (or at it), or an `OptionError`."""
    try:
        got = math.nan if isinstance(value, str | bool) else float(value)
    except (TypeError, ValueError):
        got = math.nan
    if not math.isfinite(got) or got < above or (got == above and not inclusive):
        raise OptionError(
            f"{name}: got {value!r:.200}, expected a number {'of at least' if inclusive else 'above'} {above:g}"
        )
    return got
