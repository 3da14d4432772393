"""Rows judged, as a table: by their scores alone, or by a calibration; and the reasons of those that are flagged."""

from typing import Any

import numpy as np

from ppl_vae.criticism.calibration import Calibration, selected
from ppl_vae.criticism.explanation import explain
from ppl_vae.criticism.scores import score
from ppl_vae.errors import OptionError, whole
from ppl_vae.use.reading import Rows


def scored(vae: Any, rows: Rows, contamination: float, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Rows by their scores, the lowest of them flagged.

    Args:
        vae: a model.
        rows: n of them.
        contamination: the share of these rows to flag.
        options: of `score`.

    Returns: a DataFrame of row, score, mcse, flagged (0 or 1), and by feature score.<column>; and figures by name.
    """
    import pandas as pd

    if not hasattr(vae, "guide"):
        raise OptionError(f"MODEL: got a {type(vae).__name__}, expected a model with a guide, or a calibration")
    found = score(vae, rows.data, **options)
    threshold = found.threshold(contamination)
    flagged = (found.values < threshold).astype(int)
    frame = pd.DataFrame({"row": rows.numbers, "score": found.values, "mcse": found.mcse, "flagged": flagged})
    if found.per_feature is not None:
        names = vae.schema.names if vae.schema is not None else [f"x{j}" for j in range(found.per_feature.shape[1])]
        frame = frame.join(pd.DataFrame(found.per_feature, columns=[f"score.{name}" for name in names]))
    return frame, {"scoring": found.scoring, "threshold": threshold}


def decided(
    calibration: Calibration, rows: Rows, level: float | None, rule: str | None, fdr: float | None
) -> tuple[Any, dict[str, Any]]:
    """Rows by their p-values against a calibration's.

    Args:
        calibration: against whose rows.
        rows: n of them.
        level: flag rows whose p-value is no larger; None: the calibration's own.
        rule: a name of `RULES`; None: the calibration's own.
        fdr: also pick rows, of which this share is normal at most, on average; None: do not.

    Returns: a DataFrame of row, score, mcse, p_value, flagged, unsure, against, and with `fdr` picked; and figures by name.
    """
    import pandas as pd

    asked = calibration.at(calibration.level if level is None else level, rule)
    found = asked.decide(rows.data)
    columns = {
        "row": rows.numbers,
        "score": found.scores,
        "mcse": found.mcse,
        "p_value": found.p_values,
        "flagged": found.anomalous.astype(int),
        "unsure": found.unsure.astype(int),
        "against": found.against,
    }
    figures = {
        "level": asked.level,
        "rule": asked.rule,
        "unsure": int(found.unsure.sum()),
        "guarantee": asked.guarantee,
    }
    if fdr is not None:
        columns["picked"] = selected(found.p_values, asked.rule, fdr).astype(int)
        figures |= {"fdr": fdr, "picked": int(columns["picked"].sum())}
    return pd.DataFrame(columns), figures


def with_reasons(frame: Any, thing: Any, rows: Rows, most: int, num_draws: int, seed: int) -> Any:
    """The table with `reasons`: of rows that are flagged, the columns whose repair gains most, each with its nats."""
    vae = thing.folds[0].vae if isinstance(thing, Calibration) else thing
    places = np.flatnonzero(frame["flagged"])
    texts = np.full(len(frame), "", dtype=object)
    if len(places):
        found = explain(vae, rows.at(places).data, num_draws=num_draws, seed=seed)
        for j, place in enumerate(places):
            texts[place] = "; ".join(f"{name} {gain:+.3g}" for name, gain in found.columns(j, whole("reasons", most)))
    return frame.assign(reasons=texts.astype(str))


def against_labels(frame: Any, anomalous: np.ndarray) -> dict[str, Any]:
    """How well the scores rank rows (n,) that are known to be anomalous, and how many of these were flagged."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    flagged, score = frame["flagged"].to_numpy(bool), np.nan_to_num(frame["score"].to_numpy())
    both = 0 < anomalous.sum() < len(anomalous)
    return {
        "anomalous": int(anomalous.sum()),
        "found": int((flagged & anomalous).sum()),
        "normal": int((~anomalous).sum()),
        "false": int((flagged & ~anomalous).sum()),
        "auroc": roc_auc_score(anomalous, -score) if both else None,
        "average_precision": average_precision_score(anomalous, -score) if both else None,
    }
