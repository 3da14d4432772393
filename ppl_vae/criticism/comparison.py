"""The cells of a comparison as one table: means, three kinds of error apart, and paired differences."""

import math
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppl_vae.criticism.cells import Cell
from ppl_vae.criticism.labelled import elpd
from ppl_vae.errors import choose
from ppl_vae.files import to_json, write_text
from ppl_vae.infer.psis import threshold

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OF_ROWS = ("evidence", "se", "mcse", "doubtful", "bound", "gap", "bad_k")
OF_FIT = ("active", "latent", "seconds", "gradients", "epochs", "stopped")
MEANS = ("doubtful", "bound", "gap", "bad_k", "active", "latent", "seconds", "gradients", "epochs")
"""Columns of `cells` of which the table has means over seeds."""
SHOWN = (
    "evidence",
    "se",
    "sd_seeds",
    "mcse",
    "doubtful",
    "difference",
    "difference_se",
    "bound",
    "gap",
    "bad_k",
    "active",
)


class Comparison:
    """Candidates by held-out log evidence, in nats a row of the data in its own units.

    Args:
        cells: of all candidates and seeds, of the same test rows.
        settings: what they have in common: evidence, budget, seeds, versions.

    Attributes:
        cells: a data frame, a row for each candidate and seed.
            evidence: mean over rows of log p(x); se: its standard error over rows; mcse: its Monte Carlo error, also
            that which rows share, such as draws of uncertain weights, and which se does not see; doubtful: share of
            rows whose evidence should not be trusted; bound: mean ELBO of the candidate's posterior; gap: evidence -
            bound, the mean of KL(q(z|x) || p(z|x)), with uncertain weights also what the log of a mean over these
            gains; bad_k: share of rows whose weights under that posterior have a bad Pareto k-hat, NaN of fewer than
            1000 draws; active: latent units in use, of `latent`;
            seconds, gradients (rows times draws) and epochs of the fit, and why it stopped; error: why the cell failed.
        table: a data frame, a row for each candidate, `best` first: by the number of cells that did not fail, then by
            evidence; of those cells.
            evidence: mean over seeds, with its se over rows and its mcse; sd_seeds: standard deviation over seeds of one
            fit's evidence, NaN of one seed;
            difference: of evidence to that of `best`, with difference_se, its standard error over the same rows, and
            difference_sd, its standard deviation over seeds; of the seeds that both have;
            seeds: how many; failed: how many not; the other columns: means over seeds.
        best: the candidate of highest evidence, of those with most cells.
        settings: as given.

    Example:
        >>> rows = {"mcse": np.zeros(3), "doubtful": np.zeros(3), "k_hat": np.zeros(3)}
        >>> a, b = np.array([-1.0, -2.0, -3.0]), np.array([-2.0, -2.0, -5.0])
        >>> cells = [Cell(name, 0, {"num_draws": 1000}, {"log_p": x, "bound": x, **rows}) for name, x in zip("ab", (a, b))]
        >>> Comparison(cells).table["difference"].to_dict()
        {'a': 0.0, 'b': -1.0}
    """

    def __init__(self, cells: list[Cell], settings: dict[str, Any] | None = None) -> None:
        import pandas as pd

        self.settings = settings or {}
        self.cells = pd.DataFrame([_figures(cell) for cell in cells])
        self._done = {(cell.candidate, cell.seed): cell.pointwise for cell in cells if cell.error is None}
        names = list(dict.fromkeys(cell.candidate for cell in cells))
        by_seed = {name: self.log_evidence(name) for name in names}
        names.sort(key=lambda name: (-len(by_seed[name]), -_mean(list(by_seed[name].values()))))
        self.best = names[0]
        lines = pd.DataFrame({name: self._line(name) for name in names}).T.rename_axis("candidate")
        table = lines.join(self.differences()).infer_objects()
        first = ["evidence", "se", "sd_seeds", "mcse", *table.columns[-3:]]
        self.table = table[[*first, *(c for c in lines if c not in first)]]

    def log_evidence(self, candidate: str) -> dict[int, np.ndarray]:
        """Estimates of log p(x) of the test rows by one candidate.

        Args:
            candidate: its name.

        Returns: {seed: (n,)} in nats.

        Raises: OptionError for an unknown name.
        """
        choose("candidate", candidate, dict.fromkeys(self.cells["candidate"]))
        return {seed: rows["log_p"] for (name, seed), rows in self._done.items() if name == candidate}

    def differences(self, to: str | None = None) -> "pd.DataFrame":
        """Differences of mean log evidence to one candidate, on the same rows and seeds.

        Args:
            to: its name; None: `best`.

        Returns: a row for each candidate: difference, difference_se (over rows) and difference_sd (over seeds).
        """
        import pandas as pd

        reference = self.log_evidence(self.best if to is None else to)
        lines = {}
        for name in dict.fromkeys(self.cells["candidate"]):
            own = self.log_evidence(name)
            paired = np.array([own[seed] - reference[seed] for seed in own if seed in reference])
            numbers = (paired.mean(), _se(paired.mean(0)), _sd(paired.mean(1))) if len(paired) else (math.nan,) * 3
            lines[name] = dict(zip(("difference", "difference_se", "difference_sd"), numbers))
        return pd.DataFrame.from_dict(lines, orient="index")

    @property
    def pointwise(self) -> "pd.DataFrame":
        """A row for each test row of each cell: log evidence, its Monte Carlo error, the bound, k-hat."""
        import pandas as pd

        parts = [
            pd.DataFrame({"candidate": name, "seed": seed, "row": range(len(rows["log_p"])), **rows})
            for (name, seed), rows in self._done.items()
        ]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["candidate", "seed", "row"])

    @property
    def elpd(self) -> dict[str, Any]:
        """{candidate: the object that ArviZ's `compare` takes}, of the mean over seeds of the rows' log evidence.

        ArviZ's standard errors are of sums over rows, and of one comparison: what another seed changes is not in them.

        Example:
            `az.compare(comparison.elpd, method="bb-pseudo-bma")`
        """
        found = {}
        for name in self.table.index[self.table["seeds"] > 0]:
            done = [rows for (candidate, _), rows in self._done.items() if candidate == name]
            mcse = np.sqrt(np.sum([rows["mcse"] ** 2 for rows in done], 0)) / len(done)
            found[name] = elpd(np.mean([rows["log_p"] for rows in done], 0), mcse)
        return found

    def plot(self, axes: "Axes | None" = None) -> "Figure":
        """Differences to the best, each with one standard error over the same rows; a dot for each seed.

        Args:
            axes: where to draw; None makes a figure.

        Returns: the figure.
        """
        from matplotlib.figure import Figure

        from ppl_vae.criticism.plots import BLUE, GREY

        names, reference = list(self.table.index[::-1]), self.log_evidence(self.best)
        if axes is None:
            axes = Figure(figsize=(6.0, 1.2 + 0.4 * len(names)), layout="constrained").subplots()
        for place, name in enumerate(names):
            dots = [
                (own - reference[seed]).mean() for seed, own in self.log_evidence(name).items() if seed in reference
            ]
            axes.plot(dots, [place] * len(dots), ".", color=GREY)
        lines = self.table.loc[names]
        axes.errorbar(
            lines["difference"], range(len(names)), xerr=lines["difference_se"], fmt="o", color=BLUE, capsize=3
        )
        axes.axvline(0, color=GREY, linewidth=1, linestyle=":")
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel(f"log evidence less that of {self.best} (nats a row)")
        axes.spines[["top", "right"]].set_visible(False)
        return axes.get_figure()  # type: ignore[return-value]

    def save(self, folder: str | PathLike) -> None:
        """Write table.csv, cells.csv, pointwise.csv and settings.json to a folder.

        Args:
            folder: made where it is not there.
        """
        for name in ("table", "cells", "pointwise"):
            text = getattr(self, name).to_csv(index=name == "table", lineterminator="\n")
            write_text(Path(folder) / f"{name}.csv", text)
        write_text(Path(folder) / "settings.json", to_json(self.settings))

    def __repr__(self) -> str:
        """The table in short, which of it not to trust, and why cells failed."""
        table = self.table[list(SHOWN)].rename(columns=lambda name: name.replace("difference", "diff"))
        text = table.assign(
            seconds=self.table["seconds"].map("{:.1f}".format), gradients=self.table["gradients"]
        ).to_string(float_format="{:.3f}".format, formatters={"gradients": "{:.3g}".format})
        failed = self.cells[self.cells["error"].notna()]
        reasons = [f"{c.candidate}, seed {c.seed} failed: {c.error}" for c in failed.itertuples()]
        return "\n".join([text, *self.warnings, *reasons])

    @property
    def warnings(self) -> list[str]:
        """What of the table should not be trusted, in sentences."""
        found = []
        for name, line in self.table.iterrows():
            if line["doubtful"] > 0:
                found.append(
                    f"{name}: do not trust the log evidence of {100 * line['doubtful']:.3g} % of the rows, which is likely "
                    "higher: a few draws carry it"
                )
            if line["gap"] < -3 * line["mcse"]:
                found.append(
                    f"{name}: log evidence {-line['gap']:.3g} nats below its bound, more than its Monte Carlo error: it is "
                    "too low; expected more draws, or more steps of 'ais'"
                )
        return found

    def _line(self, candidate: str) -> dict[str, Any]:
        """Of one candidate: figures of the mean over its seeds."""
        cells = self.cells[(self.cells["candidate"] == candidate)]
        done = cells[cells["error"].isna()]
        log_p = list(self.log_evidence(candidate).values())
        return {
            "evidence": _mean(log_p),
            "se": _se(np.mean(log_p, 0)) if log_p else math.nan,
            "sd_seeds": _sd(done["evidence"].to_numpy(float)),
            "mcse": float(np.sqrt((done["mcse"] ** 2).sum()) / len(done)) if log_p else math.nan,
            **{name: done[name].mean() for name in MEANS},
            "seeds": len(done),
            "failed": len(cells) - len(done),
        }


def _figures(cell: Cell) -> dict[str, Any]:
    """A row of `Comparison.cells`."""
    figures: dict[str, Any] = dict.fromkeys((*OF_ROWS, *OF_FIT), None)
    if cell.error is None:
        rows = cell.pointwise
        bad = rows["k_hat"] > threshold(max(cell.figures["num_draws"], 11))
        figures |= {
            "evidence": rows["log_p"].mean(),
            "se": _se(rows["log_p"]),
            "mcse": cell.figures.get("mcse", math.nan),
            "doubtful": rows["doubtful"].mean(),
            "bound": rows["bound"].mean(),
            "gap": (rows["log_p"] - rows["bound"]).mean(),
            "bad_k": math.nan if np.isnan(rows["k_hat"]).any() else bad.mean(),
            **{name: cell.figures.get(name) for name in OF_FIT},
        }
    return {"candidate": cell.candidate, "seed": cell.seed, **figures, "error": cell.error}


def _mean(log_p: list[np.ndarray]) -> float:
    return float(np.mean(log_p)) if log_p else math.nan


def _se(values: np.ndarray) -> float:
    """Standard error of a mean over rows; NaN of one."""
    return _sd(values) / math.sqrt(len(values))


def _sd(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
