"""Values in JSON by their content, and programs by their code: what the key of a kept result is made of."""

import math
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dis import get_instructions
from functools import cached_property
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch

from ppl_vae.errors import OptionError
from ppl_vae.files import digest

Tell = Callable[[Any], Any]


def described(value: Any) -> Any:
    """A value in JSON: functions and classes by their code and all that it reads, other objects by what pickle would keep.

    Of functions and classes of installed packages name and version are told, and what the functions hold; of the user's own
    modules also the globals that their code names, as they are now.

    Raises: OptionError for one whose content cannot be told.

    Example:
        >>> described({"lr": 0.1, "evidence": ("iwae", {"num_draws": 8})})
        {'lr': 0.1, 'evidence': ['iwae', {'num_draws': 8}]}
    """
    return _described(value, {})


def attributes(part: torch.nn.Module) -> dict[str, Any]:
    """The plain attributes of a module, without what torch keeps."""
    return {name: value for name, value in vars(part).items() if name not in vars(torch.nn.Module())}


def own(module: str | None) -> bool:
    """Whether a module is the user's: not this library, and not installed."""
    if module is not None and (module.split(".")[0] == "ppl_vae" or module in sys.builtin_module_names):
        return False
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    if file is None:  # a session's, or none that was read from a file
        return True
    path, paths = Path(file), sysconfig.get_paths()
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return not installed and not path.is_relative_to(paths["stdlib"]) and not path.is_relative_to(paths["platstdlib"])


def _described(value: Any, met: dict[int, Any]) -> Any:
    """As `described`; what was met before, {id: value}, by its number."""

    def tell(one: Any) -> Any:
        return _described(one, met)

    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, np.generic):
        return tell(value.item())
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, torch.Tensor | np.ndarray):
        return _of_array(value, tell)
    if isinstance(value, Mapping):
        return {str(name): tell(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [tell(one) for one in value]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, map(tell, value)))
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, CodeType):
        return [value.co_code.hex(), list(value.co_names), tell(value.co_consts)]
    if isinstance(value, ModuleType):
        return [value.__name__, _version(value.__name__)]
    if id(value) in met:
        return ["met", list(met).index(id(value))]
    met[id(value)] = value
    if isinstance(value, FunctionType):
        return _of_function(value, tell)
    if isinstance(value, type):
        return _of_class(value, tell)
    return _of_object(value, tell)


def _of_array(value: Any, tell: Tell) -> list[Any]:
    if value.dtype == object:
        return tell(value.tolist())
    if isinstance(value, torch.Tensor):
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    else:
        content = np.ascontiguousarray(value)
    return [str(value.dtype), list(value.shape), digest(content.tobytes())]


def _of_function(function: FunctionType, tell: Tell) -> list[Any]:
    held = [cell.cell_contents for cell in function.__closure__ or ()]
    told = [function.__module__, function.__qualname__, tell([held, function.__defaults__, function.__kwdefaults__])]
    module = function.__globals__.get("__name__")
    if not own(module):
        return [*told, _version(module)]
    codes, known = list(_codes(function.__code__)), function.__globals__
    loaded = {i.argval for code in codes for i in get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    names = {name for code in codes for name in code.co_names}
    read = {name: _read(known[name], names - {name}, tell) for name in sorted(loaded & known.keys())}
    return [*told, tell(function.__code__), read]


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A code object and those nested in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _read(value: Any, names: set[str], tell: Tell) -> Any:
    """A global, or of a module of the user's what the code's further names mean there."""
    if isinstance(value, ModuleType) and own(value.__name__):
        return {name: _read(vars(value)[name], names - {name}, tell) for name in sorted(names & vars(value).keys())}
    return tell(value)


def _of_class(of: type, tell: Tell) -> list[Any]:
    name = [of.__module__, of.__qualname__]
    if not own(of.__module__):
        return [*name, _version(of.__module__)]
    members = {
        key: tell(_unwrapped(member))
        for key, member in vars(of).items()
        if key != "_abc_impl" and (not key.startswith("__") or isinstance(_unwrapped(member), FunctionType))
    }
    return [*name, members, tell(of.__bases__)]


def _unwrapped(member: Any) -> Any:
    """The functions of what a class body makes of them."""
    if isinstance(member, property):
        return [member.fget, member.fset, member.fdel]
    if isinstance(member, cached_property):
        return member.func
    return member.__func__ if isinstance(member, staticmethod | classmethod) else member


def _of_object(value: Any, tell: Tell) -> list[Any]:
    try:
        reduced = value.__reduce_ex__(4)
    except Exception as error:  # whatever has no copies, as locks, files and generators
        raise OptionError(
            f"folder: got the option {value!r:.200}, or what a function among them reads; expected names, numbers, "
            "functions and what can be pickled: of other objects it cannot be told later whether they are the same"
        ) from error
    if isinstance(reduced, str):  # known by its name, as a cached function
        return [reduced, tell(getattr(value, "__wrapped__", None))]
    make, *content = reduced
    return [tell(make), *(tell(list(part) if isinstance(part, Iterator) else part) for part in content)]


def _version(module: str | None) -> str | None:
    """Of the package that a module belongs to."""
    package = sys.modules.get((module or "").split(".")[0])
    version = getattr(package, "__version__", None)
    return version if isinstance(version, str) else None
