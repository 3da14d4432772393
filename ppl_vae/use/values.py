"""Options as JSON: names and numbers as they are, rows and models as references to what is stored beside them."""

import math
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from ppl_vae.data.schema import Batch
from ppl_vae.errors import OptionError

CELLS = ("str", "string", "boolean", "Int64", "Int32", "Float64", "Float32")
"""Types of pandas columns that come back as such; other texts and numbers as "object"."""


class Beside:
    """What is stored beside the JSON, in which a dict of one key with a "$" stands for it.

    Attributes:
        tensors: by name.
        parts: further models, by name.
    """

    def __init__(self, tensors: dict[str, Tensor] | None = None, parts: dict[str, Any] | None = None) -> None:
        self.tensors, self.parts = tensors or {}, parts or {}

    def put(self, name: str, value: Any) -> Any:
        """A value as JSON; rows and models are put beside it.

        Args:
            name: of the option, for messages and for what is stored beside.
            value: None, names, numbers, and sequences and dicts of these; an array or tensor of numbers, a pandas
                DataFrame, a `Batch`, a model.

        Raises: OptionError, naming it, for anything else.
        """
        if isinstance(value, Batch):
            return {"$batch": [self.put(f"{name}.{field}", part) for field, part in value._asdict().items()]}
        if isinstance(value, Tensor):
            self.tensors[name] = value.detach().cpu()
            return {"$tensor": name}
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            self.tensors[name] = torch.from_numpy(np.array(value, order="C"))
            return {"$array": name}
        if hasattr(value, "iloc") and hasattr(value, "columns"):
            return {"$frame": [[c, self._column(f"{name}.{c}", value[c])] for c in value.columns]}
        if isinstance(value, nn.Module) or hasattr(value, "score_samples"):
            self.parts[name] = value
            return {"$part": name}
        if isinstance(value, list | tuple):
            return [self.put(f"{name}.{place}", one) for place, one in enumerate(value)]
        if isinstance(value, dict) and all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: self.put(f"{name}.{key}", one) for key, one in value.items()}
        if isinstance(value, dict):
            _refuse(name, value)
        return plain(name, value)

    def get(self, value: Any) -> Any:
        """What `put` was given, every sequence as a tuple."""
        if isinstance(value, list):
            return tuple(map(self.get, value))
        if not isinstance(value, dict) or not any(key.startswith("$") for key in value):
            return {key: self.get(one) for key, one in value.items()} if isinstance(value, dict) else value
        ((kind, held),) = value.items()
        return READ[kind](self, held)

    def _column(self, name: str, cells: Any) -> Any:
        """Numbers as an array; other cells as codes of levels, -1 where one is missing."""
        if isinstance(cells.dtype, np.dtype) and cells.dtype.kind in "biuf":
            return self.put(name, cells.to_numpy())
        import pandas as pd

        if isinstance(cells.dtype, pd.CategoricalDtype):
            codes, levels, dtype = cells.cat.codes.to_numpy(), list(cells.cat.categories), "category"
        else:
            codes, found = pd.factorize(cells)
            levels, dtype = list(found), str(cells.dtype) if str(cells.dtype) in CELLS else "object"
        ordered = bool(getattr(cells.dtype, "ordered", False))
        codes = self.put(name, codes.astype(np.int64))
        return {"codes": codes, "levels": plain(name, levels), "dtype": dtype, "ordered": ordered}

    def _frame(self, columns: Any) -> Any:
        import pandas as pd

        def cells(of: Any) -> Any:
            if "codes" not in of:
                return self.get(of)
            made = pd.Categorical.from_codes(self.get(of["codes"]), of["levels"], ordered=of["ordered"])
            return made if of["dtype"] == "category" else pd.Series(made).astype(_cell_type(of["dtype"]))

        return pd.DataFrame({name: cells(of) for name, of in columns})


def _cell_type(name: str) -> Any:
    if name not in (*CELLS, "object"):  # a type may ask for any amount of memory
        raise OptionError(f"dtype: got {name!r}, expected one of {CELLS}")
    return name


READ = {
    "$tensor": lambda beside, name: beside.tensors[name],
    "$array": lambda beside, name: beside.tensors[name].numpy(),
    "$batch": lambda beside, parts: Batch(*map(beside.get, parts)),
    "$frame": Beside._frame,
    "$part": lambda beside, name: beside.parts[name],
}


def plain(name: str, value: Any) -> Any:
    """Names and numbers as JSON holds them.

    Args:
        name: of the option.
        value: None, a text, a truth value, a finite number, NumPy's included, or sequences and dicts of these.

    Raises: OptionError, naming the option.

    Example:
        >>> plain("hidden", (np.int64(3), 4))
        [3, 4]
    """
    if isinstance(value, list | tuple):
        return [plain(f"{name}.{place}", one) for place, one in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain(f"{name}.{key}", one) for key, one in value.items()}
    value = value.item() if isinstance(value, np.generic) else value
    known = value is None or isinstance(value, str | bool | int)
    if not known and not (isinstance(value, float) and math.isfinite(value)):
        _refuse(name, value)
    return value


def tuples(value: Any) -> Any:
    """What `plain` was given, every sequence as a tuple."""
    if isinstance(value, dict):
        return {key: tuples(one) for key, one in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def _refuse(name: str, value: Any) -> NoReturn:
    raise OptionError(f"{name}: got {value!r:.200}, expected names and finite numbers, which a file can hold")
