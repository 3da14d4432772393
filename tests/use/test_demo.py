"""The demo: nothing of the anomalous digit in training, and a folder that holds all that it promises."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

import ppl_vae as pv
from ppl_vae.use.demo import demo, split
from ppl_vae.use.report.folder import of_folder


@pytest.mark.parametrize("anomaly", [0, 7])
def test_the_anomalous_digit_is_in_the_test_only(anomaly: int) -> None:
    digits = pv.datasets.load("digits")
    assert digits.y is not None
    rows = split(digits, anomaly, seed=0)
    assert rows.train.y is not None and rows.test.y is not None
    assert set(rows.train.y) == set(range(10)) - {anomaly} and set(rows.test.y) == set(range(10))
    assert np.array_equal(rows.anomalous, rows.test.y == anomaly)
    assert rows.anomalous.sum() == (digits.y == anomaly).sum()  # all of them
    assert len(rows.train.x) + len(rows.test.x) == len(digits.x)
    assert len(rows.train.x) == int(0.8 * (digits.y != anomaly).sum())
    again, other = split(digits, anomaly, seed=0), split(digits, anomaly, seed=1)
    assert np.array_equal(again.train.x, rows.train.x) and not np.array_equal(other.train.x, rows.train.x)


def test_the_folder_holds_all_that_it_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = demo(tmp_path, anomaly=0, seed=0, epochs=2)
    printed = capsys.readouterr().out
    assert [(r.model, r.score) for r in results] == [
        ("PCA", "reconstruction_error"),
        ("autoencoder", "reconstruction_error"),
        ("VAE", "reconstruction_probability"),
        ("VAE", "elbo"),
    ]
    table, scores = pd.read_csv(tmp_path / "table.csv"), pd.read_csv(tmp_path / "scores.csv")
    assert np.array_equal(table["auroc"], [r.auroc for r in results])
    for result, column in zip(results, scores.columns[3:], strict=True):
        assert column == f"{result.model}_{result.score}"
        assert result.auroc == roc_auc_score(scores["anomalous"], -scores[column])
        assert result.average_precision == average_precision_score(scores["anomalous"], -scores[column])
        assert f"{result.auroc:.3f}" in printed
    assert len(pd.read_csv(tmp_path / "history.csv")) == 2
    rows = split(pv.datasets.load("digits"), 0, seed=0)
    again = pv.score(pv.load(tmp_path / "model"), rows.test).values
    assert np.array_equal(scores["VAE_reconstruction_probability"], again)
    pictures = sorted(tmp_path.glob("*.png"))
    assert len(pictures) >= 6 and all(p.read_bytes().startswith(b"\x89PNG") for p in pictures)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h1>Finding the digit 0</h1>" in text and f"{results[2].auroc:.4g}" in text
    again = of_folder(tmp_path).read_text(
        encoding="utf-8"
    )  # the folder holds all that the report needs but the fit's rows
    (differs,) = [lines for lines in zip(text.splitlines(), again.splitlines(), strict=True) if len(set(lines)) > 1]
    assert "None of these" in differs[0] and "nothing here tells" in differs[1]
    assert pv.load(tmp_path / "plane").recipe["latent"] == 2 and "A second model of the same columns" in text


@pytest.mark.parametrize("anomaly", [10, -1, True, "0"])
def test_another_digit_is_refused(tmp_path: Path, anomaly: object) -> None:
    with pytest.raises(pv.OptionError, match="expected a digit, 0 to 9"):
        demo(tmp_path / "out", anomaly=anomaly)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
