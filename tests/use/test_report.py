"""The report: one file, no request, inert whatever columns are called, and an explorer that hands and keyboards move."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae.criticism.cells import Cell
from ppl_vae.criticism.checks import Finding
from ppl_vae.criticism.diagnostics import Diagnosis
from ppl_vae.criticism.predictive import as_frame
from ppl_vae.infer.history import History
from ppl_vae.model.linear import PPCA
from ppl_vae.use.cli import main
from ppl_vae.use.report import sections as of
from ppl_vae.use.report.charts import MINUS, histogram, lines, short
from ppl_vae.use.report.explorer import inert
from ppl_vae.use.report.folder import of_folder

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    '"><svg onload=alert(3)>',
    "{{ 7*7 }}<!--",
)


def frame(n: int = 80) -> pd.DataFrame:
    """Three columns that agree and one of levels, under names that mean no good."""
    random = np.random.default_rng(0)
    z = random.normal(size=n)
    numbers = {name: z + 0.1 * random.normal(size=n) for name in HOSTILE[:3]}
    return pd.DataFrame({**numbers, HOSTILE[3]: np.where(z > 0, "<b onclick=alert(4)>up", "down")})


def history() -> History:
    found = History()
    for epoch in (1, 2, 3):
        found.append(
            {"epoch": epoch, "bound": -3.0 / epoch, "kl": 0.5, "valid_bound": -3.5 / epoch, "seconds": 0.1 * epoch}
        )
    return found


@pytest.fixture(scope="module")
def table() -> tuple[Any, pd.DataFrame]:
    """A model of a mixed table, hardly fitted, and rows of which one is odd."""
    data = frame()
    vae = pv.build(data, likelihood="infer", latent=2, hidden=(8,))
    pv.fit(vae, data, epochs=2, progress=False)
    data.iloc[7, 1] = 25.0
    return vae, data


@pytest.fixture(scope="module")
def page(table: tuple[Any, pd.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> Path:
    vae, data = table
    calibration = pv.calibrate(vae, frame(200), level=0.05)
    labels = np.where(data.iloc[:, 0] > 0, "<u>one", "other")
    path = tmp_path_factory.mktemp("report") / "report.html"
    title = "A <i onmouseover=alert(5)>title"
    return pv.report(vae, data, path, history=history(), calibration=calibration, labels=labels, title=title)


def section(text: str, name: str) -> str:
    found = re.search(rf'<section id="{name}".*?</section>', text, re.DOTALL)
    assert found is not None, f"no section {name}"
    return found.group()


# ---- what it says


def test_each_section_says_what_the_library_finds(table: tuple[Any, pd.DataFrame], page: Path) -> None:
    (vae, data), text = table, page.read_text(encoding="utf-8")
    calibration = pv.calibrate(vae, frame(200), level=0.05)
    decided = calibration.decide(data)
    scores = section(text, "scores")
    assert calibration.guarantee in scores and f"{decided.anomalous.sum()} of 80 rows are flagged" in scores
    assert "stroke-dasharray" not in scores and 'class="mark"' in scores  # the threshold, in the page's own style
    rows = re.findall(r'data-name="row">(\d+)<', section(text, "anomalous"))
    assert rows == [str(row) for row in np.argsort(decided.scores, kind="stable")[:10]] and rows[0] == "7"
    assert short(decided.scores.min()) in section(text, "anomalous")
    assert "&lt;/script&gt;&lt;script&gt;alert(2)&lt;/script&gt;</b> 25" in section(text, "anomalous")  # the reason
    found = pv.diagnose(vae, data, checks="active_units")["active_units"].verdict
    assert found in section(text, "diagnosis")
    assert "3 epochs in 0.3 s" in section(text, "training")
    fitted = section(text, "fitted")
    assert "standard_normal (Normal)" in fitted and "1 bernoulli" in fitted and "2 dimensions" in fitted


def test_without_a_calibration_nothing_is_promised(table: tuple[Any, pd.DataFrame], tmp_path: Path) -> None:
    vae, data = table
    text = pv.report(vae, data, tmp_path / "a.html", contamination=0.1).read_text(encoding="utf-8")
    assert "whether these are such rows, nothing here tells" in text
    assert "0.1 quantile of these same rows" in text and "No error rate is promised" in text
    assert f"{(pv.score(vae, data).values < pv.score(vae, data).threshold(0.1)).sum()} of 80 rows" in text


def header(text: str) -> str:
    return text[text.index("<header>") : text.index("</header>")]


def test_a_column_of_one_value_is_drawn_beside_what_a_continuous_model_makes_of_it() -> None:
    data, model = pd.Series(np.zeros(50)), pd.Series(np.random.default_rng(0).normal(size=50))
    assert "Histogram" in of.marginal(data, model) and "Histogram" not in of.marginal(data, data)


def test_the_page_says_how_many_of_its_rows_the_fit_was_given(tmp_path: Path) -> None:
    data, others = frame(), frame(200)[100:150]
    vae = pv.build(data, likelihood="infer", latent=1, hidden=(4,))
    fit = pv.fit(vae, data, epochs=1, progress=False)
    mixed = pd.concat([data[:10], others])
    pages = [
        header(pv.report(vae, rows, tmp_path / "a.html", history=fit).read_text(encoding="utf-8"))
        for rows in (data, mixed, others)
    ]
    assert '<p class="note">80 of these 80 rows are among the 80 rows that the fit was given. Scores' in pages[0]
    assert '<p class="quiet">10 of these 60 rows are among the 80 rows' in pages[1]
    assert "None of these 50 rows is one of the 80 rows that the fit was given.</p>" in pages[2]


def test_checks_leave_anomalous_rows_out_and_say_so(table: tuple[Any, pd.DataFrame], tmp_path: Path) -> None:
    vae, data = table
    odd = np.arange(80) % 2 == 0
    shifted = data.assign(**{HOSTILE[0]: np.where(odd, 100.0, data[HOSTILE[0]])})
    asked = of.Asked(vae, shifted, 80, np.arange(80), None, None, 0.05, 4, 0, odd)
    assert len(asked.few) == 40 and asked.few[HOSTILE[0]].max() < 100
    path = tmp_path / "a.html"
    text = pv.report(vae, shifted, path, anomalous=odd, contamination=0.1).read_text(encoding="utf-8")
    told = "40 rows that are labelled normal; anomalous ones are left out"
    assert told in section(text, "predictive") and told in section(text, "diagnosis")
    low = pv.score(vae, shifted).values < pv.score(vae, shifted).threshold(0.1)
    assert f"Flagged are {(low & odd).sum()} of the 40 labelled anomalous and 0 of the 40" in section(text, "scores")
    text = pv.report(vae, shifted, path, labels=odd, diagnosis=pv.diagnose(vae, data, checks="predictive")).read_text()
    assert "Of the rows of the diagnosis that was handed in: " in section(text, "predictive")  # and labels are no marks


def test_labels_0_and_1_of_a_data_set_are_marks_and_those_of_classes_are_not(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(30, 2))
    vae, y = pv.build(x, latent=1, hidden=(4,)), np.arange(30) % 3
    for labels, told in (
        (np.minimum(y, 1), "Of 10 rows that are labelled normal"),
        (y, "Of 30 rows, whatever their label"),
    ):
        np.savez(tmp_path / "rows.npz", x=x, y=labels)
        text = pv.report(vae, tmp_path / "rows.npz", tmp_path / "a.html").read_text(encoding="utf-8")
        assert told in section(text, "predictive")


def test_one_sign_is_minus_and_one_of_a_thing_is_no_plural(table: tuple[Any, pd.DataFrame], tmp_path: Path) -> None:
    one = History()
    one.append({"epoch": 1, "bound": -3.0, "kl": 0.5, "valid_bound": -3.5, "seconds": 0.1})
    labels = np.where(np.arange(80) % 2 == 0, -1, 1)
    text = pv.report(*table, tmp_path / "a.html", history=one, labels=labels).read_text(encoding="utf-8")
    body = re.sub(r"<script.*?</script>|<path[^>]*>", "", text[text.index("<body>") :], flags=re.DOTALL)
    words = re.sub(r"<[^>]*>", " ", body)
    assert f"bound {MINUS}3.0000 nats a row" in words and f"label {MINUS}1" in words
    assert not re.findall(r"(?<![\w.])-[\d.]", words) and not re.findall(
        r"\b1 (?:epoch|row|check|draw|dimension)s", words
    )
    assert "1 epoch in 0.1 s" in words


def test_a_promise_names_its_delta_and_its_condition_for_rows_with_holes() -> None:
    x = np.random.default_rng(0).normal(size=(240, 3)).astype(np.float32)
    x[:40, 0] = np.nan
    vae = pv.build(x, latent=1, hidden=(4,), nullable=True)
    calibration = pv.calibrate(vae, x[60:], level=0.2, rule="conditional", delta=0.03, num_draws=4)
    asked = of.Asked(vae, as_frame(x[:60]), 60, np.arange(60), None, calibration, 0.05, 4, 0)
    words = " ".join(of.promised(asked))
    assert "level 0.2, delta 0.03." in words and "Of 40 rows judged against rows whose other" in words


def test_verdicts_do_not_hang_on_one_statistic_on_noise_or_on_one_fact_told_twice() -> None:
    """Of three statistics one lies outside in 27 % of right models; a figure below its error says nothing."""

    def outside(share: float, m: int) -> bool:
        return of.DOUBTS["predictive"]({"share outside the 90 % interval": (share, 0.0), "statistics": (float(m), 0.0)})

    assert [outside(1 / 3, 3), outside(2 / 3, 3), outside(1 / 4, 20), outside(0.3, 20)] == [False, True, False, True]
    low, high = "KL(q(z) || p(z)), at least", "KL(q(z) || p(z)), at most"
    figures = ((1.5, 0.4, 3.0), (1.5, 0.1, 3.0), (0.0, 0.01, 0.05), (0.1, 0.1, 0.9))
    found = [of.DOUBTS["information"]({low: (a, e), high: (b, e)}) for a, e, b in figures]
    assert (
        found == [None, True, False, None] and of.DOUBTS["information"]({}) is None
    )  # bounds on either side tell nothing
    idle = {"dimensions": (4.0, 0.0), "active units": (3.0, 0.0), "share of idle dimensions": (0.25, 0.0)}
    assert [name for name in ("active_units", "collapse") if name in of.DOUBTS and of.DOUBTS[name](idle)] == [
        "collapse"
    ]


def test_statistics_at_an_end_of_their_interval_are_not_outside(table: tuple[Any, pd.DataFrame]) -> None:
    """12 / 30 of [5 / 30, 12 / 30]: in half widths 1 and a rounding."""
    index = pd.MultiIndex.from_tuples(
        [(table[1].columns[0], f"share {k}") for k in range(3)], names=["column", "statistic"]
    )
    ends = {"data": [12 / 30, 5 / 30, 0.9], "low": [5 / 30] * 3, "high": [12 / 30] * 3, "model": 0.2, "above": 0.5}
    found = Finding({}, "", {"table": pd.DataFrame(ends, index)})
    asked = of.Asked(table[0], table[1], 80, np.arange(80), None, None, 0.05, 4, 0)
    words = of.predictive(asked, Diagnosis({"predictive": found}, (80, 80), 1000))["words"]
    assert words.startswith("Of 80 rows: 1 of 3 statistics of columns lies outside")


def test_equal_arguments_give_equal_bytes_and_a_small_file(table: tuple[Any, pd.DataFrame], tmp_path: Path) -> None:
    vae, data = table
    one, two = (pv.report(vae, data, tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert one == two and len(one) < 500_000


def explorer_data(path: Path) -> dict[str, Any]:
    raw = re.search(r'id="explorer-data">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)
    assert raw is not None
    return json.loads(raw.group(1))


def test_the_explorer_holds_what_decode_and_encode_give(table: tuple[Any, pd.DataFrame], page: Path) -> None:
    (vae, data), held = table, explorer_data(page)
    assert held["columns"] == list(HOSTILE) and held["axes"] == ["z[0]", "z[1]"]
    assert np.allclose(held["at"], pv.encode(vae, data)[held["row"]], atol=1e-4)
    across, down = held["side"]
    corner = pv.decode(vae, np.array([[held["x"][1], held["y"][0]]]))
    assert held["grid"][0][across - 1] == short(float(corner.iloc[0, 0]))
    assert held["grid"][3][across - 1] == corner.iloc[0, 3] and len(held["grid"][0]) == across * down
    assert held["rows"][1][held["row"].index(7)] == "25"


def test_more_than_two_latents_are_shown_in_a_plane_and_the_caps_are_told(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(500, 45)) * np.array([9.0, 5.0, 4.0, *[0.1] * 42])
    vae = PPCA(4).fit(x)
    path = pv.report(vae, x, tmp_path / "a.html")
    text, held = path.read_text(encoding="utf-8"), explorer_data(path)
    means = pv.encode(vae, x)
    axes = sorted(np.argsort(-means.std(0))[:2].tolist())
    assert held["axes"] == [f"z[{axis}]" for axis in axes] and len(held["columns"]) == 40 and len(held["row"]) <= 400
    assert (
        "move most, with the other 2 at their means" in text
        and "The first 40 of 45 columns" in text
        and "of 500 rows are in this file" in text
    )
    code = means.mean(0)
    code[axes] = held["x"][0], held["y"][0]
    assert held["grid"][0][0] == short(float(pv.decode(vae, code[None])[0, 0]))


def test_images_are_embedded_as_bytes(tmp_path: Path) -> None:
    digits = pv.datasets.load("digits")
    vae = pv.build(digits, latent=1, hidden=(8,), likelihood="continuous_bernoulli")
    few = digits._replace(x=digits.x[:40], y=digits.y[:40] if digits.y is not None else None)
    path = pv.report(vae, few, tmp_path / "a.html")
    held, text = explorer_data(path), path.read_text(encoding="utf-8")
    assert held["shape"] == [8, 8, 1] and held["side"][1] == 1 and len(held["axes"]) == 1
    assert set(held["kind"]) == {f"label {digit}" for digit in range(10)}  # the data set's own labels
    assert text.count("data:image/png") >= 12 and "http:" not in text.replace("http-equiv", "")


@pytest.mark.parametrize("posterior", ["delta", "mean_field"])
def test_what_does_not_apply_says_so(posterior: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(30, 3))
    options = (
        {"prior": "flat", "scale": 1.0} if posterior == "delta" else {"prior": "dirichlet", "posterior": "dirichlet"}
    )
    vae = pv.build(x, latent=3, hidden=(4,), **({"posterior": posterior} | options))
    text = pv.report(vae, x, tmp_path / "a.html").read_text(encoding="utf-8")
    told = "improper prior" if posterior == "delta" else "there is no plane to move in"
    assert told in text and "Traceback" not in text


def test_a_model_without_a_schema_goes_by_the_position_of_columns(tmp_path: Path) -> None:
    """Also one whose programs cannot draw rows without knowing how wide they are."""
    x, nets = np.random.default_rng(0).normal(size=(30, 3)), torch.nn.ModuleList(map(torch.nn.Linear, (3, 2), (2, 3)))

    def encoder(x: Any) -> Any:
        return dist.Normal(nets[0](x), 0.5).to_event(1)

    def decoder(z: Any) -> Any:
        return dist.Normal(nets[1](z), 1.0).to_event(1)

    def model(x: Any) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", decoder(z), obs=x)

    def guide(x: Any) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", encoder(x))

    vae = pv.VAE(encoder, decoder, lambda: dist.Normal(torch.zeros(2), 1.0).to_event(1))
    for data in (x, pd.DataFrame(x, columns=list("abc"))):
        text = pv.report(vae, data, tmp_path / "a.html").read_text(encoding="utf-8")
        assert "<figcaption>x1</figcaption>" in text
    text = pv.report(pv.Programs(model, guide, nets), x, tmp_path / "b.html").read_text(encoding="utf-8")
    assert "got no schema" in text and "x1" in text


# ---- bad input


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "neither a model nor a comparison"),
        ({"vae": True}, "a model without data"),
        ({"vae": True, "data": True, "history": {"bound": [1.0]}}, "history: got a dict, expected a History"),
        ({"vae": True, "data": True, "calibration": 3}, "calibration: got a int"),
        ({"vae": True, "data": True, "comparison": [1]}, "comparison: got a list, expected a Comparison or DataFrame"),
        ({"vae": True, "data": True, "labels": [1, 2]}, r"labels: got shape \(2,\), expected \(80,\)"),
        ({"vae": True, "data": True, "anomalous": [0, 1]}, r"anomalous: got shape \(2,\) of int64, expected \(80,\)"),
        (
            {"vae": True, "data": True, "anomalous": np.ones(80, bool)},
            "anomalous: got 80 of 80 rows, expected two or more",
        ),
        ({"vae": True, "data": True, "contamination": 0.9}, "contamination"),
        ({"vae": True, "data": True, "num_draws": 0}, "num_draws"),
        ({"vae": "model", "data": True}, "expected"),
    ],
)
def test_bad_input_is_refused_before_a_file_is_written(
    given: dict[str, Any], message: str, table: tuple[Any, pd.DataFrame], tmp_path: Path
) -> None:
    real = {"vae": table[0], "data": table[1]}
    options = {name: real[name] if value is True else value for name, value in given.items()}
    with pytest.raises(pv.PplVaeError, match=message):
        pv.report(**options, path=tmp_path / "a.html")
    assert not list(tmp_path.iterdir())


# ---- parts


def test_json_and_charts_keep_what_is_hostile_inert() -> None:
    text = str(inert({"a": list(HOSTILE), "b": 1.5}))
    assert not set("<>&") & set(text) and json.loads(text)["a"] == list(HOSTILE)
    with pytest.raises(ValueError):
        inert({"a": float("nan")})
    drawn = str(lines({HOSTILE[0]: ([1, 2, 3], [1.0, float("nan"), 2.0])}, HOSTILE[1], HOSTILE[2]))
    drawn += str(histogram({HOSTILE[0]: np.arange(5.0)}, np.linspace(0, 4, 5), HOSTILE[1], 2.0))
    assert "<img" not in drawn and "<script" not in drawn and drawn.count("M") >= 3  # a gap lifts the pen


def test_a_comparison_alone_is_a_report(tmp_path: Path) -> None:
    rows = {"mcse": np.zeros(3), "doubtful": np.zeros(3), "k_hat": np.zeros(3)}
    a, b = np.array([-1.0, -2.0, -3.0]), np.array([-2.0, -2.0, -5.0])
    cells = [Cell(n, 0, {"num_draws": 1000}, {"log_p": x, "bound": x, **rows}) for n, x in ((HOSTILE[0], a), ("b", b))]
    cells.append(Cell("c", 0, {}, {}, "it broke"))
    cells.append(Cell("a long name, latent=8, tanh", 0, {"num_draws": 1000}, {"log_p": a, "bound": a, **rows}))
    found = pv.Comparison(cells, {"seeds": [0], "num_draws": 1000})
    text = pv.report(comparison=found, path=tmp_path / "a.html").read_text(encoding="utf-8")
    assert "c, seed 0 failed: it broke" in text and HOSTILE[0] not in text and "A comparison of models" in text
    assert "<text" in text and ">a long name, latent=8, tanh</text>" in text and "Draws for bound and k-hat" in text
    assert "sd seeds" not in text and "difference sd" not in text  # of one seed
    assert "evidence: mean log p(x) of the test rows" in text
    found.save(tmp_path / "x")
    again = of_folder(tmp_path / "x").read_text(encoding="utf-8")
    assert section(again, "comparison").count("<tr>") == 5 and "difference to the best" in again


# ---- folders and the command line


def test_the_report_of_a_folder(
    table: tuple[Any, pd.DataFrame], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (vae, data), folder = table, tmp_path / "x"
    pv.save(vae, folder)
    history().save(folder / "history.csv")
    data.to_csv(folder / "rows.csv", index=False)
    assert main(["report", str(folder)]) == 2 and "expected --data" in capsys.readouterr().err
    (folder / "options.json").write_text(json.dumps({"data": "rows.csv", "fit": {"epochs": 2}}))
    assert main(["report", str(folder)]) == 0
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "epochs 2" in section(text, "fitted") and "3 epochs" in section(text, "training")
    assert "80 of these 80 rows are among the 80 rows that the fit was given" in header(text)
    assert "<dt>Fitted to</dt><dd>rows.csv" in text and "of 80 rows of rows.csv" in text
    pv.save(pv.calibrate(vae, frame(200)), folder / "calibration")
    asked = [
        "report",
        str(folder),
        "--data",
        str(folder / "rows.csv"),
        "--out",
        str(tmp_path / "b.html"),
        "--title",
        "<b>",
    ]
    assert main(asked) == 0 and "b.html" in capsys.readouterr().out
    assert "nothing here tells" in (tmp_path / "b.html").read_text(encoding="utf-8")
    assert "<h1>&lt;b&gt;</h1>" in (text := (tmp_path / "b.html").read_text(encoding="utf-8")) and "Promised" in text


def test_a_folder_is_no_file(table: Any, tmp_path: Path) -> None:
    with pytest.raises(pv.OptionError, match=r"path: got the folder .*, expected a file, as .*report.html"):
        pv.report(*table, tmp_path)
    assert not list(tmp_path.iterdir())


def test_wrong_folders_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2 and "neither a model nor a table.csv" in capsys.readouterr().err
    pv.save(PPCA(1).fit(np.random.default_rng(0).normal(size=(20, 2))), tmp_path)
    (tmp_path / "history.csv").write_text("a,b\n1,2\n")
    np.save(tmp_path / "x.npy", np.zeros((5, 2)))
    assert main(["report", str(tmp_path), "--data", str(tmp_path / "x.npy")]) == 2
    assert "no history of a fit" in capsys.readouterr().err
    (tmp_path / "options.json").write_text("[1]")
    assert main(["report", str(tmp_path)]) == 2 and "expected names and values" in capsys.readouterr().err


# ---- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    if CHROMIUM is None:
        pytest.skip("no chromium on the path (Debian: apt-get install chromium): the report is not tried in a browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


class Visit:
    """A page opened with the network blocked; what it asked for, and what it complained of."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.dialogs: list[str] = []
        self.context = browser.new_context(**options)
        self.context.route("**/*", self._answer)
        self.page = self.context.new_page()
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", self._dismiss)
        self.own = path.as_uri()
        self.page.goto(self.own)

    def _answer(self, route: Any) -> None:
        if route.request.url == self.own or route.request.url.startswith("data:"):
            return route.continue_()
        self.requests.append(route.request.url)
        route.abort()

    def _dismiss(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *error: Any) -> None:
        self.context.close()


def test_a_click_a_key_and_a_point_move_the_explorer(browser: Any, page: Path) -> None:
    with Visit(browser, page) as visit:
        tab = visit.page
        panel = lambda: tab.locator("#panel").inner_text()  # noqa: E731
        seen = [panel()]
        tab.locator("#field").scroll_into_view_if_needed()
        box = tab.locator("#field").bounding_box()
        tab.mouse.click(box["x"] + 0.1 * box["width"], box["y"] + 0.9 * box["height"])
        seen.append(panel())
        for key in ("ArrowRight", "Shift+ArrowUp"):
            tab.keyboard.press(key)
            seen.append(panel())
        held = explorer_data(page)
        last = len(held["row"]) - 1
        place = tab.locator(f".point[data-i='{last}']").bounding_box()
        middle = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
        tab.mouse.move(*middle)
        seen.append(panel())
        assert f"row {held['row'][last]} " in seen[-1]
        tab.locator(f".point[data-i='{last}']").focus()
        assert f"row {held['row'][last]} " in panel()
        tab.keyboard.press("ArrowLeft")
        seen.append(panel())
        assert f"row {held['row'][last - 1]} " in seen[-1] and held["rows"][0][last - 1] in seen[-1]
        tab.keyboard.press("Enter")
        where = tab.locator("#where").inner_text()
        assert f"z[0] = {held['at'][last - 1][0]:.2f}".replace("-", MINUS) in where
        assert len(set(seen)) == len(seen), "a move that changed nothing"
        assert (visit.requests, visit.complaints, visit.dialogs) == ([], [], [])


def test_hostile_names_are_text_and_nothing_else(browser: Any, page: Path) -> None:
    with Visit(browser, page) as visit:
        names = visit.page.locator("#table-body th").all_inner_texts()
        assert names == list(HOSTILE)
        assert visit.page.locator("h1").inner_text() == "A <i onmouseover=alert(5)>title"
        assert visit.page.locator("img[src=x], h1 i, svg[onload], td b b, u, [onclick]").count() == 0
        assert visit.page.locator("script").count() == 2  # the data and the program
        visit.page.wait_for_timeout(100)
        assert (visit.requests, visit.complaints, visit.dialogs) == ([], [], [])


def test_the_browser_test_sees_planted_faults(browser: Any, page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    policy = re.search(r"<meta http-equiv=.*?>", text)
    assert policy is not None
    bad = text.replace(policy.group(), "").replace(
        "</body>", "<img src=http://localhost/x><script>alert(9)</script></body>"
    )
    (tmp_path / "bad.html").write_text(bad, encoding="utf-8")
    with Visit(browser, tmp_path / "bad.html") as visit:
        visit.page.wait_for_timeout(100)
        assert visit.dialogs == ["9"] and visit.requests == ["http://localhost/x"] and visit.complaints
    (tmp_path / "held.html").write_text(
        bad.replace("<meta charset", f"{policy.group()}<meta charset"), encoding="utf-8"
    )
    with Visit(browser, tmp_path / "held.html") as visit:  # the page's policy alone stops both
        visit.page.wait_for_timeout(100)
        assert visit.dialogs == [] and visit.requests == []


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_its_window(browser: Any, page: Path, width: int) -> None:
    with Visit(browser, page, viewport={"width": width, "height": 800}) as visit:
        assert visit.page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("width", [390, 1280])
def test_a_table_that_is_cut_off_says_so(browser: Any, tmp_path: Path, width: int) -> None:
    wide = pd.DataFrame({f"a figure {j}": [-1.5, 2.0] for j in range(30)}, index=["a", "b"]).reset_index()
    for name, many in (("wide", True), ("narrow", False)):
        shown = wide if many else wide.iloc[:, :2]
        path = pv.report(comparison=shown, path=tmp_path / f"{name}.html")
        with Visit(browser, path, viewport={"width": width, "height": 800}) as visit:
            said = "getComputedStyle(document.querySelector('.wide'), '::before').content"
            visit.page.wait_for_function(f"{said} {'!==' if many else '==='} 'none'")
            assert visit.page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible(browser: Any, page: Path, scheme: str) -> None:
    with Visit(browser, page, color_scheme=scheme) as visit:
        paper = brightness(visit.page, "body", "backgroundColor")
        assert paper < 0.05 if scheme == "dark" else paper > 0.9
        for place, style in (
            ("p", "color"),
            ("a", "color"),
            (".quiet", "color"),
            ("svg text", "fill"),
            ("svg .tick", "fill"),
        ):
            ink = brightness(visit.page, place, style)
            ratio = (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05)
            assert ratio >= 4.5, f"{place}: contrast {ratio:.2f}, expected 4.5 (WCAG AA)"


def brightness(tab: Any, place: str, style: str) -> float:
    """Relative luminance of a colour (WCAG 2)."""
    text = tab.locator(place).first.evaluate(f"element => getComputedStyle(element).{style}")
    rgb = np.array(re.findall(r"[\d.]+", text)[:3], float) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ np.array([0.2126, 0.7152, 0.0722]))


def test_everything_that_can_be_used_is_in_reach_of_tab(browser: Any, page: Path) -> None:
    with Visit(browser, page) as visit:
        wanted = visit.page.locator("a, summary, #field, .wide >> visible=true").count() + 1  # and one of the points
        reached, kinds = set(), set()
        for _ in range(2 * wanted):
            visit.page.keyboard.press("Tab")
            told = visit.page.evaluate(
                "(one => [one.tagName, one.id, one.className.baseVal || '', Array.from(document.querySelectorAll('*'))"
                ".indexOf(one), getComputedStyle(one).outlineStyle])(document.activeElement)"
            )
            if told[0] != "BODY":
                reached.add(told[3])
                kinds.add(told[2].partition(" ")[0])
                assert told[4] != "none" or told[1] == "field" or "point" in told[2], f"no visible focus on {told}"
        assert len(reached) == wanted and {"field", "point"} <= kinds
