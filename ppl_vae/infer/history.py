"""What a fit went through, a row an epoch."""

import csv
import io
from collections.abc import Iterator
from math import isnan
from os import PathLike
from typing import Any

import numpy as np
from torch import Tensor

from ppl_vae.errors import choose, several
from ppl_vae.files import write_text


class History:
    """Columns of one fit, an entry an epoch; bounds in nats a row of the data in its own units, never KL-weighted.

    With sites that all rows share bounds are given these, without their own KL term, which `objective` has.

    Columns: epoch, bound (mean over the epoch's training rows as they were met), reconstruction E_q[log p(x|z)], kl E_q[log
    q(z|x) - log p(z)], valid_bound (on the held-out rows, NaN without; bounds and kl are NaN where no guide is trained),
    objective (what was maximised, a row), grad_norm (mean over steps, before clipping), lr and kl_weight (of the last
    step), seconds, rows_per_s.

    Attributes:
        stopped: why the fit ended: "epochs" or "patience".
        compile_seconds: that it took to make the graph of a step; None: there was none.
        rounding: by how much the bound changed with nets in bfloat16, nats a row, at the start; None: they were not.
        best_epoch: the epoch whose weights the model holds; None: the last.
        rows: (n,) keys by which a report knows the rows that the fit was given again, those held out among them; not kept in
            files, which would tell whoever has a row whether it was one of them.

    Example:
        >>> history = History()
        >>> history.append({"epoch": 1, "bound": -3.5})
        >>> history["bound"]
        array([-3.5])
    """

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []
        self.stopped = "epochs"
        self.best_epoch: int | None = None
        self.compile_seconds: float | None = None
        self.rounding: float | None = None
        self.rows: Tensor | None = None

    def append(self, epoch: dict[str, float]) -> None:
        """Add one epoch.

        Args:
            epoch: {column: figure}.
        """
        self.epochs.append(epoch)

    def __len__(self) -> int:
        return len(self.epochs)

    def keys(self) -> list[str]:
        """The names of the columns.

        Returns: a list of names, in their order.
        """
        return list(self.epochs[0]) if self.epochs else []

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, column: object) -> bool:
        return column in self.keys()

    def __getitem__(self, column: str) -> np.ndarray:
        columns = self.epochs[0] if self.epochs else {}
        choose("column", column, columns)
        return np.array([epoch[column] for epoch in self.epochs])

    def to_frame(self) -> Any:
        """The record as a pandas data frame.

        Returns: a row an epoch.
        """
        import pandas as pd

        return pd.DataFrame(self.epochs)

    def save(self, path: str | PathLike) -> None:
        """Write as CSV, every figure in full.

        Args:
            path: of the file.
        """
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.epochs[0]) if self.epochs else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.epochs)
        write_text(path, text.getvalue())

    def __repr__(self) -> str:
        if not self.epochs:
            return "History(no epochs)"
        return f"History({several(len(self), 'epoch')}, {self.latest()} nats a row)"

    def latest(self, digits: int = 4) -> str:
        """Say the last epoch's bound in words; the objective, where there is no bound.

        Args:
            digits: after the point.

        Returns: a few words.
        """
        last = self.epochs[-1]
        name = "objective" if isnan(last["bound"]) and "objective" in last else "bound"
        return f"{name} {last[name]:.{digits}f}"
