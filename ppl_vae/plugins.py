"""Parts from other packages: entry points of the groups ppl_vae.priors, ppl_vae.likelihoods and ppl_vae.posteriors.

They are looked for only when a name is asked for that this library does not have, so one that is broken breaks nothing
else; and a name of this library cannot be taken.
"""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ppl_vae.errors import OptionError, first_line


def part(kind: str, name: Any, own: dict[str, Any]) -> Any:
    """What `name` stands for among this library's own parts, or else among those of installed packages.

    Args:
        kind: "prior", "likelihood" or "posterior".
        name: as a user gave it.
        own: this library's parts by name.

    Raises: OptionError for a name that nobody has, that two packages have, or whose package fails.
    """
    if isinstance(name, str) and name in own:
        return own[name]
    found = _entries(kind)
    if not isinstance(name, str) or name not in found:
        known = ", ".join(map(repr, [*own, *sorted(found)]))
        raise OptionError(f"{kind}: got {name!r}, expected one of {known}")
    if len(found[name]) > 1:
        owners = ", ".join(sorted(_package(entry) for entry in found[name]))
        raise OptionError(f"{kind}: got {name!r}, which several packages register ({owners}), expected one")
    (entry,) = found[name]
    try:
        made = entry.load()
    except Exception as error:  # whatever another package may raise
        raise OptionError(
            f"{kind}: got {name!r} of the package {_package(entry)}, which failed: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
    if not callable(getattr(made, "make", made)):
        raise OptionError(
            f"{kind}: got {name!r} of the package {_package(entry)}, which is {made!r}, expected a factory"
        )
    return made


def clashes(kind: str, own: dict[str, Any]) -> list[str]:
    """Names of installed packages that are not used because this library has them, with their packages."""
    return sorted(f"{name} ({_package(e)})" for name, entries in _entries(kind).items() if name in own for e in entries)


def _entries(kind: str) -> dict[str, list[EntryPoint]]:
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=f"ppl_vae.{kind}s"):
        found.setdefault(entry.name, []).append(entry)
    return found


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.value
