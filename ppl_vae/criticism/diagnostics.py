"""Is this fit to be trusted, and where not: `diagnose`."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ppl_vae.criticism.checks import CHECKS, Finding, Subject, spaced
from ppl_vae.criticism.predictive import as_frame
from ppl_vae.errors import OptionError, PplVaeError, choose, whole
from ppl_vae.infer.draws import batch_of


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """Findings by name of the check; print it for the verdicts and the figures.

    Attributes:
        findings: {name: `Finding`}, also by `diagnosis[name]`.
        rows: how many were looked at, and how many there are.
        num_draws: S.
    """

    findings: dict[str, Finding]
    rows: tuple[int, int]
    num_draws: int

    def __getitem__(self, name: str) -> Finding:
        return choose("check", name, self.findings)

    @property
    def table(self) -> Any:
        """A pandas data frame: one row for each (check, figure), columns "value" and "mcse", the Monte Carlo error."""
        import pandas as pd

        rows = [
            ((name, figure), *pair) for name, found in self.findings.items() for figure, pair in found.figures.items()
        ]
        index = pd.MultiIndex.from_tuples([row[0] for row in rows], names=["check", "figure"])
        return pd.DataFrame({"value": [row[1] for row in rows], "mcse": [row[2] for row in rows]}, index)

    @property
    def verdicts(self) -> dict[str, str]:
        """The sentence of each check."""
        return {name: found.verdict for name, found in self.findings.items()}

    def __repr__(self) -> str:
        rows, total = self.rows
        head = (
            f"Diagnosis of {rows} rows" + (f" of {total}" if total > rows else "") + f", {self.num_draws} draws a row"
        )
        width = max(map(len, self.findings))
        first: dict[str, str] = {}  # one reason may keep many checks from being made: it is said once
        lines = []
        for name, found in self.findings.items():
            told = first.setdefault(found.verdict, name)
            verdict = found.verdict if found.figures or told == name else f"not checked, for the reason of {told}"
            lines.append(f"  {name.ljust(width)}  {verdict}")
        return "\n".join([head, *lines, "", _figures(self.findings)])


def _figures(findings: dict[str, Finding]) -> str:
    """All figures as text, a line each."""
    lines = [
        (name, figure, f"{value:.4g}", "" if math.isnan(error) else f"{error:.2g}")
        for name, found in findings.items()
        for figure, (value, error) in found.figures.items()
    ]
    lines = [("check", "figure", "value", "mcse"), *lines]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def diagnose(
    vae: Any,
    data: Any,
    *,
    checks: str | Iterable[str] | None = None,
    num_draws: int = 1000,
    seed: int = 0,
    rows: int = 1000,
) -> Diagnosis:
    """Check a fitted model and its guide.

    Args:
        vae: a fitted model with its guide.
        data: rows, better not those that it was fitted to: the checks of the model's predictions forgive those a little.
        checks: name or names of those wanted; None: all that apply, the others saying why they do not.
            "active_units", how many latent dimensions move with x (Burda et al. 2016);
            "collapse", whether z is used;
            "kl", nats of each dimension;
            "information", what z tells of the row, and how far the aggregate posterior is from the prior (Hoffman &
            Johnson 2016);
            "rate_distortion", the two terms of the bound (Alemi et al. 2018);
            "evidence", the share of rows whose importance weights cannot be trusted (Vehtari et al. 2024);
            "gaps", what the bound loses by the family of q and by the encoder (Cremer et al. 2018), of 50 rows;
            "gradients", noise and signal-to-noise ratio of the encoder's gradient by estimator (Rainforth et al. 2018), of
            100 rows;
            "calibration", ranks of the truth among the guide's draws on simulated rows (Talts et al. 2018), at level 0.001
            over all quantities;
            "predictive", means, spreads and zeros of columns beside those of data sets that the model draws;
            "pit", where cells lie in the model's predictions (Dawid 1984), at level 0.001 over all columns.
        num_draws: S, of z a row; 1000 at least for "evidence".
        seed: of the noise.
        rows: at most so many, evenly spaced, are looked at.

    Returns: `Diagnosis`.

    Raises: OptionError for an unknown check, or one asked for by name that does not apply; DataError, ProgramError.

    Example:
        >>> import numpy as np
        >>> from ppl_vae.model.linear import PPCA
        >>> x = np.random.RandomState(0).randn(50, 4)
        >>> diagnosis = diagnose(PPCA(2).fit(x), x, checks=["active_units", "evidence"])
        >>> diagnosis["active_units"].verdict
        'all 2 dimensions are active'
        >>> diagnosis.table.loc[("evidence", "share of bad k-hat"), "value"].item()
        0.0
    """
    names = list(CHECKS) if checks is None else [checks] if isinstance(checks, str) else list(checks)
    wanted = {name: choose("checks", name, CHECKS) for name in names}
    if not wanted:
        raise OptionError(f"checks: got none, expected some of {', '.join(map(repr, CHECKS))}")
    num_draws, rows = whole("num_draws", num_draws, 2), whole("rows", rows, 2)
    batch = batch_of(vae, data, minimum_rows=2)
    total, kept = len(batch.x), spaced(len(batch.x), rows)
    if len(kept) < total:
        data, batch = as_frame(data).iloc[kept.tolist()], batch.rows(kept)
    subject = Subject(vae, data, batch, num_draws, seed)
    findings = {}
    for name, check in wanted.items():
        try:
            findings[name] = check(subject)
        except PplVaeError as error:
            if checks is not None:
                raise
            findings[name] = Finding({}, f"not checked: {error}", {})
    return Diagnosis(findings, (len(kept), total), num_draws)
