"""Each picture shows the numbers it says it shows, leaves pyplot alone, and refuses what it cannot draw."""

import subprocess
import sys
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from ppl_vae.criticism import plots
from ppl_vae.criticism.checks import Finding
from ppl_vae.criticism.diagnostics import Diagnosis
from ppl_vae.criticism.explanation import explain
from ppl_vae.criticism.pit import PIT
from ppl_vae.criticism.predictive import decode, encode, generate, manifold, reconstruct
from ppl_vae.criticism.sbc import sbc
from ppl_vae.criticism.scores import Scores, score
from ppl_vae.data import datasets
from ppl_vae.data.datasets import Dataset
from ppl_vae.errors import DataError, OptionError, PplVaeError
from ppl_vae.infer.history import History
from ppl_vae.infer.training import fit
from ppl_vae.model.autoencoder import Autoencoder
from ppl_vae.model.build import build
from ppl_vae.model.linear import PPCA


@pytest.fixture(scope="module")
def digits() -> Dataset:
    whole = datasets.load("digits")
    return whole._replace(x=whole.x[:100], y=whole.y[:100])


@pytest.fixture(scope="module")
def vae(digits: Dataset) -> Any:
    return build(digits, latent=2, hidden=(8,), likelihood="continuous_bernoulli")


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rows = np.random.default_rng(0).normal(size=(40, 4)) * [1.0, 10.0, 1e3, 1e-3] + [0.0, 5.0, 1e4, 0.0]
    return pd.DataFrame(rows, columns=["a", "b", "c", "d"])


@pytest.fixture(scope="module")
def tabular(frame: pd.DataFrame) -> Any:
    return build(frame, latent=2, hidden=(8,))


@pytest.fixture
def history() -> History:
    history = History()
    for epoch in range(1, 6):
        bounds = {"bound": -20.0 / epoch, "valid_bound": -21.0 / epoch, "kl": 1.0 * epoch}
        history.append({"epoch": epoch, **bounds})
    return history


def rendered(figure: Figure) -> bytes:
    """The picture as a PNG: whatever can go wrong on drawing goes wrong here."""
    file = BytesIO()
    figure.savefig(file, dpi=40)
    return file.getvalue()


def lines(axes: Axes) -> dict[str, np.ndarray]:
    return {str(line.get_label()): np.asarray(line.get_ydata()) for line in axes.get_lines()}


def pixels(axes: Axes) -> np.ndarray:
    return np.stack([np.asarray(image.get_array()) for image in axes.get_images()])


def new_axes() -> Axes:
    return Figure().subplots()


# ---- the fit


def test_training_curve_draws_the_columns_of_the_history(history: History) -> None:
    history.best_epoch = 3
    figure = plots.training_curve(history)
    left, right = figure.axes
    assert np.array_equal(lines(left)["training"], history["bound"])
    assert np.array_equal(lines(left)["validation"], history["valid_bound"])
    assert np.array_equal(lines(right)["KL (right axis)"], history["kl"])
    best = next(line for line in left.get_lines() if line.get_label() == "best epoch (3)")
    assert list(best.get_xdata()) == [3, 3]
    assert (left.get_xlabel(), left.get_ylabel(), right.get_ylabel()) == (
        "epoch",
        "bound (nats a row)",
        "KL (nats a row)",
    )
    assert rendered(figure)


def test_training_curve_of_a_fit_without_validation_draws_no_validation(vae: Any, digits: Dataset) -> None:
    model = build(digits, latent=2, hidden=(4,), likelihood="bernoulli")
    history = fit(model, (digits.x > 0.5).astype(np.float32), epochs=2, valid=0.0, progress=False)
    figure = plots.training_curve(history)
    assert set(lines(figure.axes[0])) == {"training"}
    assert rendered(figure)


@pytest.mark.parametrize("row", [{"bound": -3.0}, {"bound": -3.0, "kl": np.inf, "valid_bound": np.nan}])
def test_training_curve_leaves_out_what_is_absent_or_infinite(row: dict[str, float]) -> None:
    history = History()
    history.append({"epoch": 1, **row})
    figure = plots.training_curve(history)
    assert list(lines(figure.axes[0])) == ["training"]
    assert not figure.axes[1].get_lines()
    assert figure.axes[0].get_lines()[0].get_marker() == "o"  # a line of one point would be invisible
    assert rendered(figure)


def test_training_curve_refuses_an_empty_history() -> None:
    with pytest.raises(OptionError, match=r"History\(no epochs\).*at least one epoch"):
        plots.training_curve(History())


# ---- what the model predicts


def test_reconstructions_of_images_are_originals_over_decoded_values(vae: Any, digits: Dataset) -> None:
    figure = plots.reconstructions(vae, digits, n=6)
    (axes,) = figure.axes
    drawn = pixels(axes)
    assert drawn.shape == (12, 8, 8)
    assert np.array_equal(drawn[:6], digits.x[:6].reshape(6, 8, 8))
    assert np.array_equal(drawn[6:], reconstruct(vae, digits.x[:6]).reshape(6, 8, 8))
    assert {image.get_clim() for image in axes.get_images()} == {(0.0, 1.0)}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["original", "reconstruction"]
    tops = [image.get_extent()[3] for image in axes.get_images()]
    low, high = axes.get_ylim()
    assert low > high and max(tops[:6]) < min(tops[6:])  # downwards, the originals above
    assert rendered(figure)


def test_reconstructions_share_the_grey_scale_of_the_originals(digits: Dataset) -> None:
    own = (digits.x * 16).reshape(-1, 8, 8)
    figure = plots.reconstructions(build(own, latent=2, hidden=(4,)), own, n=3)
    assert {image.get_clim() for image in figure.axes[0].get_images()} == {(own[:3].min(), own[:3].max())}


def test_reconstructions_draws_all_rows_where_there_are_fewer(vae: Any, digits: Dataset) -> None:
    assert len(plots.reconstructions(vae, digits.x[:2]).axes[0].get_images()) == 4


def test_reconstructions_of_a_table_are_two_lines_a_row_in_encoded_units(tabular: Any, frame: pd.DataFrame) -> None:
    figure = plots.reconstructions(tabular, frame[["d", "b", "a", "c"]], n=7)  # columns are matched by name
    panels = [axes for axes in figure.axes if axes.get_visible()]
    encoded = ((frame - frame.mean()) / frame.std(ddof=0)).to_numpy()[:7]
    decoded = (reconstruct(tabular, frame[:7]) - frame.mean()) / frame.std(ddof=0)
    assert len(panels) == 7
    for i, axes in enumerate(panels):
        assert lines(axes)["original"] == pytest.approx(encoded[i], abs=1e-5)
        assert lines(axes)["reconstruction"] == pytest.approx(decoded.to_numpy()[i], abs=1e-5)
    assert [label.get_text() for label in panels[-1].get_xticklabels()] == ["a", "b", "c", "d"]
    assert rendered(figure)


def test_reconstructions_of_many_columns_number_them() -> None:
    rows = np.random.default_rng(0).normal(size=(30, 40))
    figure = plots.reconstructions(PPCA(2).fit(rows), rows, n=1)
    rendered(figure)
    assert "x0" not in {label.get_text() for label in figure.axes[0].get_xticklabels()}


def test_a_deterministic_autoencoder_reconstructs_too(digits: Dataset, vae: Any) -> None:
    from torch import nn

    model = Autoencoder(nn.Linear(64, 2), nn.Linear(2, 64), vae.schema)
    assert len(plots.reconstructions(model, digits, n=2).axes[0].get_images()) == 4
    with pytest.raises(OptionError, match="improper prior"):
        plots.samples(model)


def test_a_model_without_schema_draws_lines(digits: Dataset) -> None:
    from torch import nn

    model = Autoencoder(nn.Linear(64, 2), nn.Linear(2, 64))
    assert set(lines(plots.reconstructions(model, digits.x, n=1).axes[0])) == {"original", "reconstruction"}


def test_samples_are_the_decoded_draws(vae: Any) -> None:
    figure = plots.samples(vae, n=7, seed=3)
    (axes,) = figure.axes
    assert np.array_equal(pixels(axes), decode(vae, generate(vae, 7, seed=3).z))
    places = {tuple(image.get_extent()) for image in axes.get_images()}
    assert len(places) == 7  # none above another
    assert rendered(figure)


def test_samples_of_a_table_are_lines(tabular: Any, frame: pd.DataFrame) -> None:
    figure = plots.samples(tabular, n=5, seed=1)
    (axes,) = figure.axes
    drawn = np.stack([np.asarray(line.get_ydata()) for line in axes.get_lines()])
    decoded = (decode(tabular, generate(tabular, 5, seed=1).z) - frame.mean()) / frame.std(ddof=0)
    assert drawn == pytest.approx(decoded.to_numpy(), abs=1e-5)
    assert axes.get_ylabel() == "E[x|z] (standard deviations)"
    assert rendered(figure)


def test_colour_images_are_drawn_in_colour() -> None:
    rows = np.random.default_rng(0).random((20, 3, 4, 6)).astype(np.float32)
    figure = plots.reconstructions(build(rows, latent=2, hidden=(4,), standardize="none"), rows, n=2)
    drawn = pixels(figure.axes[0])
    assert drawn.shape == (4, 4, 6, 3)
    assert np.allclose(drawn[:2], np.moveaxis(rows[:2], 1, -1))
    assert rendered(figure)


def test_manifold_grid_is_one_picture_of_the_decoded_grid(vae: Any) -> None:
    figure = plots.manifold_grid(vae, side=3)
    (axes,) = figure.axes
    (picture,) = pixels(axes)
    tiles = np.asarray(manifold(vae, 3))
    assert picture.shape == (24, 24)
    assert np.array_equal(picture[:8, 8:16], tiles[1])  # the first row of the picture
    assert np.array_equal(picture[16:, :8], tiles[6])
    top_left = decode(vae, [[-0.967421566, 0.967421566]])[0]  # the normal quantiles of 1/6 and 5/6
    assert picture[:8, :8] == pytest.approx(top_left, abs=1e-6)
    assert axes.get_images()[0].get_extent() == [0, 1, 0, 1]
    assert axes.get_images()[0].origin == "upper"  # so z[1] rises with the axis
    assert rendered(figure)


def test_manifold_grid_keeps_the_proportions_of_an_image() -> None:
    rows = np.random.default_rng(0).random((20, 4, 6)).astype(np.float32)
    figure = plots.manifold_grid(build(rows, latent=2, hidden=(4,)), side=2)
    assert figure.axes[0].get_aspect() == pytest.approx(4 / 6)
    assert pixels(figure.axes[0]).shape == (1, 8, 12)


def test_manifold_grid_refuses_tables_and_other_latent_sizes(tabular: Any, digits: Dataset) -> None:
    with pytest.raises(OptionError, match=r"rows of shape \(4,\), expected images"):
        plots.manifold_grid(tabular)
    with pytest.raises(OptionError, match="two latent dimensions"):
        plots.manifold_grid(build(digits, latent=3, hidden=(4,)), side=2)


@pytest.mark.parametrize("bad", [0, -1, 2.5, True, "3"])
def test_counts_are_positive_whole_numbers(vae: Any, digits: Dataset, bad: Any) -> None:
    for draw in (
        lambda: plots.reconstructions(vae, digits, n=bad),
        lambda: plots.samples(vae, n=bad),
        lambda: plots.manifold_grid(vae, side=bad),
    ):
        with pytest.raises(OptionError, match="expected a whole number of at least 1"):
            draw()


def test_data_of_other_columns_are_refused(vae: Any, tabular: Any, frame: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="expected 64"):
        plots.reconstructions(vae, np.zeros((3, 5)))
    with pytest.raises(DataError, match="missing"):
        plots.reconstructions(tabular, frame.rename(columns={"a": "other"}))


# ---- the latent space


def test_latent_scatter_draws_posterior_means_by_label(vae: Any, digits: Dataset) -> None:
    figure = plots.latent_scatter(vae, digits, digits.y)
    (axes,) = figure.axes
    means = encode(vae, digits)
    assert len(axes.collections) == 10
    for digit, points in enumerate(axes.collections):
        assert np.allclose(points.get_offsets(), means[digits.y == digit])
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == list("0123456789")
    assert len({to_hex(points.get_facecolor()[0]) for points in axes.collections}) == 10
    assert axes.get_aspect() == 1.0
    assert rendered(figure)


def test_latent_scatter_without_labels_is_one_cloud(vae: Any, digits: Dataset) -> None:
    axes = plots.latent_scatter(vae, digits, dimensions=(1, 0)).axes[0]
    (points,) = axes.collections
    assert np.allclose(points.get_offsets(), encode(vae, digits)[:, ::-1])
    assert axes.get_legend() is None
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("z[1] (posterior mean)", "z[0] (posterior mean)")


def test_latent_scatter_of_twenty_labels_has_twenty_looks(vae: Any, digits: Dataset) -> None:
    axes = plots.latent_scatter(vae, digits, [f"kind {i % 20}" for i in range(100)]).axes[0]
    looks = {(to_hex(p.get_facecolor()[0]), p.get_paths()[0].vertices.shape) for p in axes.collections}
    assert len(looks) == 20


def test_latent_scatter_of_many_numbers_has_a_colour_bar(vae: Any, digits: Dataset) -> None:
    labels = np.linspace(0.0, 1.0, 100)
    figure = plots.latent_scatter(vae, digits, labels)
    axes, bar = figure.axes
    assert np.array_equal(axes.collections[0].get_array(), labels)
    assert bar.get_ylabel() == "label"
    assert axes.get_legend() is None
    assert rendered(figure)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"labels": [0, 1]}, r"labels: got shape \(2,\), expected \(100,\)"),
        ({"labels": [f"kind {i}" for i in range(100)]}, "100 distinct ones, expected at most 20"),
        ({"dimensions": (0, 2)}, r"got \(0, 2\), expected two different ones of 0 to 1"),
        ({"dimensions": (1, 1)}, "two different ones"),
        ({"dimensions": (-1, 0)}, "two different ones"),
        ({"dimensions": (0,)}, "two different ones"),
    ],
)
def test_latent_scatter_refuses(vae: Any, digits: Dataset, options: dict[str, Any], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        plots.latent_scatter(vae, digits, **options)


# ---- the scores


def overlapping() -> tuple[np.ndarray, np.ndarray]:
    noise = np.random.default_rng(0)
    return np.r_[noise.normal(0.0, 1.0, 80), noise.normal(-2.0, 1.0, 20)], np.repeat([0, 1], [80, 20])


def heights(axes: Axes) -> dict[str, np.ndarray]:
    """The bins of each histogram, read off its outline."""
    found = {}
    for patch in axes.patches:
        outline = patch.get_path().vertices
        found[str(patch.get_label())] = np.asarray(outline)[1:80:2, 1]
    return found


def test_score_histogram_draws_shares_and_auroc() -> None:
    values, labels = overlapping()
    figure = plots.score_histogram(values, labels)
    histogram, roc = figure.axes
    drawn = heights(histogram)
    bins = np.linspace(values.min(), values.max(), 41)
    assert drawn["normal (80 rows)"] == pytest.approx(np.histogram(values[:80], bins)[0] / 80)
    assert drawn["anomalous (20 rows)"] == pytest.approx(np.histogram(values[80:], bins)[0] / 20)
    assert roc.get_title() == f"AUROC {roc_auc_score(labels, -values):.3f}"
    assert float(roc.get_title().split()[1]) > 0.8  # higher = more normal
    assert (roc.get_xlabel(), roc.get_ylabel()) == ("false positive rate", "true positive rate")
    assert rendered(figure)


def test_score_histogram_draws_the_threshold_in_both_panels() -> None:
    values, labels = overlapping()
    histogram, roc = plots.score_histogram(values, labels, threshold=-1.0).axes
    assert list(histogram.get_lines()[0].get_xdata()) == [-1.0, -1.0]
    point = roc.get_lines()[-1]
    assert point.get_xdata()[0] == np.mean(values[:80] < -1.0)
    assert point.get_ydata()[0] == np.mean(values[80:] < -1.0)


def test_score_histogram_of_scores_names_the_score_and_its_unit(vae: Any, digits: Dataset) -> None:
    for scoring, name in (
        ("elbo", "elbo, nats a row"),
        ("reconstruction_probability", "reconstruction probability, nats a row"),
        ("reconstruction_error", "reconstruction error, squared encoded units"),
    ):
        scores = score(vae, digits, scoring, num_draws=2)
        figure = plots.score_histogram(scores, digits.y == 3, threshold=scores.threshold(0.1))
        assert figure.axes[0].get_xlabel().startswith(f"{name} (higher = more normal)")
        assert figure.axes[1].get_title() == f"AUROC {roc_auc_score(digits.y == 3, -scores.values):.3f}"


def test_score_histogram_gathers_far_scores_and_minus_infinity() -> None:
    values = np.r_[np.random.default_rng(0).normal(size=50), -1e9, -np.inf]
    labels = np.repeat([0, 1], [50, 2])
    figure = plots.score_histogram(values, labels)
    histogram, roc = figure.axes
    assert histogram.get_xlim()[0] > -50
    assert heights(histogram)["anomalous (2 rows)"][0] == 1.0
    assert histogram.get_xlabel().endswith("(the outermost bins hold the scores beyond)")
    assert roc.get_title() == "AUROC 1.000"
    assert rendered(figure)


def test_score_histogram_of_equal_scores_is_drawn() -> None:
    figure = plots.score_histogram(np.zeros(4), [0, 1, 0, 1])
    assert figure.axes[1].get_title() == "AUROC 0.500"
    assert rendered(figure)


@pytest.mark.parametrize(
    ("scores", "labels", "match"),
    [
        (np.zeros(3), [0, 1], r"labels: got shape \(2,\), expected \(3,\)"),
        (np.zeros(3), [0, 0, 0], r"labels: got \[0\], expected 0 \(normal\) and 1 \(anomalous\)"),
        (np.zeros(3), [0, 1, 2], r"labels: got \[0, 1, 2\]"),
        (np.zeros(3), ["a", "b", "a"], r"labels: got \['a', 'b'\]"),
        (np.array([0.0, np.nan, 1.0]), [0, 1, 0], "1 NaN"),
        (np.zeros((3, 2)), [0, 1, 0], r"scores: got shape \(3, 2\)"),
        (Scores(np.full(2, -np.inf), np.zeros(2), "elbo"), [0, 1], "scores: got"),
    ],
)
def test_score_histogram_refuses(scores: Any, labels: Any, match: str) -> None:
    with pytest.raises(OptionError, match=match) as caught:
        plots.score_histogram(scores, labels)
    assert isinstance(caught.value, PplVaeError)


# ---- figures


def test_each_picture_is_drawn_where_it_is_asked_for(vae: Any, digits: Dataset, history: History) -> None:
    for draw in (
        lambda axes: plots.training_curve(history, axes=axes),
        lambda axes: plots.samples(vae, n=2, axes=axes),
        lambda axes: plots.manifold_grid(vae, side=2, axes=axes),
        lambda axes: plots.latent_scatter(vae, digits, digits.y, axes=axes),
    ):
        axes = new_axes()
        assert draw(axes) is axes.figure
        assert axes.has_data()
    pair = Figure().subplots(1, 2)
    assert plots.score_histogram(*overlapping(), axes=pair) is pair[0].figure
    assert all(axes.has_data() for axes in pair)
    with pytest.raises(OptionError, match="axes: got 3, expected two"):
        plots.score_histogram(*overlapping(), axes=Figure().subplots(1, 3))


def test_no_work_at_import_and_never_pyplot() -> None:
    code = """
import sys
import numpy as np
from ppl_vae.criticism import plots
assert "matplotlib" not in sys.modules, "matplotlib is imported with the module"
plots.score_histogram(np.arange(4.0), [1, 0, 1, 0]).canvas.draw()
assert "matplotlib.figure" in sys.modules
assert "matplotlib.pyplot" not in sys.modules, "pyplot is imported by a picture"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_uniformity_of_ranks_and_transforms_is_drawn_against_its_band() -> None:
    ranks = sbc(PPCA(2).fit(np.random.RandomState(0).randn(60, 4)), 200, 19)
    axes = plots.uniformity(ranks).axes[0]
    assert [line.get_label() for line in axes.lines] == list(ranks.names) and axes.get_xlabel() == "u"
    u, apart = axes.lines[0].get_data()
    shares = np.sort(ranks.fractions[:, 0])
    assert np.array_equal(u, shares) and np.allclose(apart, np.arange(1, 201) / 200 - shares)
    assert np.abs(axes.get_ylim()[1]) > 1.628 / np.sqrt(200)  # the band is inside
    holes = np.random.RandomState(0).rand(50, 12)
    holes[:20, 3] = np.nan
    axes = plots.uniformity(PIT(holes, tuple("abcdefghijkl"), 99)).axes[0]
    assert len(axes.lines) == 12 and len(axes.lines[3].get_xdata()) == 30 and axes.get_legend() is None


def test_latent_units_are_sorted_and_coloured_by_whether_they_move() -> None:
    found = {
        "kl": Finding({}, "", {"kl": np.array([0.2, 3.0, 0.001])}),
        "active_units": Finding({}, "", {"activity": np.array([0.1, 0.9, 0.001])}),
    }
    axes = plots.latent_units(Diagnosis(found, (5, 5), 10)).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["z[1]", "z[0]", "z[2]"]
    assert [patch.get_height() for patch in axes.patches] == [3.0, 0.2, 0.001]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["active (2)", "idle (1)"]
    with pytest.raises(OptionError, match="expected nats by dimension"):
        plots.latent_units(Diagnosis(found | {"kl": Finding({}, "no parts", {})}, (5, 5), 10))


# ---- explanations


def test_explained_rows_of_a_table_are_bars_of_their_gains(frame: pd.DataFrame, tabular: Any) -> None:
    found = explain(tabular, frame[:3], num_draws=4)
    figure = plots.explained(found, 2)
    assert len(figure.axes) == 2
    for i, axes in enumerate(figure.axes):
        order = np.argsort(-found.gain[i])
        np.testing.assert_allclose([bar.get_width() for bar in axes.patches], found.gain[i, order])
        first = frame.columns[order[0]]
        assert axes.get_yticklabels()[0].get_text().startswith(f"{first} = {frame.iloc[i][first]:.4g} (")


def test_explained_images_have_their_gains_over_them(digits: Dataset, vae: Any) -> None:
    found = explain(vae, digits._replace(x=digits.x[:3]), num_draws=2)
    (axes,) = plots.explained(found, 9).axes
    assert len(axes.images) == 6
    shown = np.stack([np.asarray(image.get_array())[..., 3] for image in axes.images[3:]]).reshape(3, -1)
    expected = np.maximum(found.gain, 0)
    np.testing.assert_allclose(shown, expected / expected.max())
    np.testing.assert_allclose(np.asarray(axes.images[0].get_array()).ravel(), digits.x[0].ravel())
