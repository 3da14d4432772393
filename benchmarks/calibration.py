"""Does simulation-based calibration tell good guides from bad ones? Guides whose fault is known, each put to the same tests.

    python benchmarks/calibration.py          # every cell, one after another, and the tables
    python benchmarks/calibration.py exact    # cells whose name starts so: exact, narrow, wide, shifted, prior, vsbc
    python benchmarks/calibration.py --tiny   # a few repeats, to see that it runs; figures mean nothing

SBC of the encoder: probabilistic PCA with 5 latent dimensions, fitted in closed form to scikit-learn's digits (64 grey
pixels), whose guide is the exact posterior; then the same model under guides that are wrong in one way: scales times 0.7 or
1.4, means moved by 0.2 scales, or the prior for every row, which is a full collapse of the guide. 1000 simulated rows, 99
draws of each, 20 bins; p is the chi-square test's. One run, seed 0, is the first table. In the second there are 100 runs,
seeds 0 to 99: the share of runs in which p of z (the smallest of its five, times 5) or of log p(x|z) is below 1e-3, and,
since p of the exact guide should be uniform, its Kolmogorov-Smirnov p-value (of all 500 or 100) and the smallest of them.

Variational SBC of what all rows share (Yao et al. 2018, algorithm 2): the mean and the precision of one normal column of 30
rows, with the priors N(0, 1) and gamma(2, 1): 100 data sets, each fitted by a normal and a log-normal (200 steps of Adam, 8
draws), which together are nearly the posterior. "shifted" is the same fit with the posterior of the mean moved up by half
its scale. "p" is by the exact distribution of the statistic, "usual p" by the two-sample test that the paper uses, whose
samples are one another's mirror image: the last table has the share of 20,000 uniform samples of 100 that each calls
asymmetric.
"""

import copy
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from cells import cell, show
from scipy.stats import ks_2samp, kstest
from torch import Tensor

import ppl_vae as pv
from ppl_vae.criticism.vsbc import Symmetry, asymmetry

TINY = "--tiny" in sys.argv
LATENT, SIMULATIONS, DRAWS, RUNS = 5, 1000, 99, 3 if TINY else 100
ROWS, DATA_SETS, FIT = 30, 4 if TINY else 100, {"epochs": 200, "batch_size": 30, "lr": 0.05, "particles": 8}
NULL, SIZE = 200 if TINY else 20_000, 100


class Guide(torch.nn.Module):
    """q(z|x) with loc and scale made of the exact ones."""

    def __init__(self, exact: Callable, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.exact, self.change = exact, change

    def forward(self, x: Tensor) -> Any:
        q = self.exact(x)
        return dist.Normal(*self.change(q.mean, q.stddev)).to_event(1)


GUIDES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "exact": lambda loc, scale: (loc, scale),
    "narrow, x 0.7": lambda loc, scale: (loc, 0.7 * scale),
    "wide, x 1.4": lambda loc, scale: (loc, 1.4 * scale),
    "shifted, 0.2": lambda loc, scale: (loc + 0.2 * scale, scale),
    "prior": lambda loc, scale: (torch.zeros_like(loc), torch.ones_like(scale)),
}


def calibrated(name: str) -> dict[str, Any]:
    """p-values of all runs under one guide, as text: first those of z, then of log p(x|z)."""
    vae = pv.PPCA(LATENT).fit(pv.datasets.load("digits").x)
    vae.encoder = Guide(copy.deepcopy(vae.encoder), GUIDES[name])
    found = [pv.sbc(vae, SIMULATIONS, DRAWS, seed=seed) for seed in range(RUNS)]
    p = [" ".join(f"{value:.3g}" for value in ranks.p_values()) for ranks in found]
    return {"p": p, "finding": found[0].table["finding"].tolist()}


class Decoder(torch.nn.Module):
    """N(mean, 1 / precision), both sites that all rows share; z, which every row needs, is not used."""

    def global_sites(self) -> tuple[Tensor, Tensor]:
        """Sample them."""
        mean = pyro.sample("mean", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        return mean, pyro.sample("precision", dist.Gamma(torch.full((1,), 2.0), 1.0).to_event(1))

    def forward(self, z: Tensor, shared: tuple[Tensor, Tensor]) -> Any:
        mean, precision = shared
        return dist.Normal(mean + 0 * z, precision**-0.5).to_event(1)


class Encoder(torch.nn.Module):
    """q(z|x) = p(z), and the posterior of what all rows share; `shift` moves that of the mean, in its scales."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.loc, self.raw = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.full((2,), -1.0))
        self.shift = shift

    def global_sites(self) -> None:
        """Sample them."""
        scale = torch.nn.functional.softplus(self.raw)
        shift = 0.0 if self.training else self.shift * scale[:1].detach()  # the fit does not know of it
        pyro.sample("mean", dist.Normal(self.loc[:1] + shift, scale[:1]).to_event(1))
        pyro.sample("precision", dist.LogNormal(self.loc[1:], scale[1:]).to_event(1))

    def forward(self, x: Tensor) -> Any:
        return dist.Normal(torch.zeros_like(x), 1.0).to_event(1)


def variational(shift: float) -> dict[str, Any]:
    """Probabilities of all data sets, as text."""

    def make(seed: int) -> pv.VAE:
        return pv.VAE(Encoder(shift), Decoder(), lambda: dist.Normal(torch.zeros(1), 1.0).to_event(1))

    blank = np.random.RandomState(0).randn(ROWS, 1).astype(np.float32)
    found = pv.vsbc(make, blank, DATA_SETS, 1000, **FIT)
    return {
        "probabilities": [" ".join(f"{p:.4f}" for p in row) for row in found.probabilities],
        "names": list(found.names),
    }


def null() -> dict[str, float]:
    """How often uniform probabilities are called asymmetric."""
    samples = np.random.RandomState(0).rand(NULL, SIZE)
    ours = np.array([asymmetry(p)[1] for p in samples])
    usual = np.array([ks_2samp(p, 1 - p).pvalue for p in samples])
    return {
        f"{name} p <= {level}": float((p <= level).mean())
        for name, p in (("", ours), ("usual", usual))
        for level in LEVELS
    }


LEVELS = (0.05, 0.01, 0.001)


def numbers(texts: list[str]) -> np.ndarray:
    """Rows of numbers from their text."""
    return np.array([[float(number) for number in text.split()] for text in texts])


def main(prefix: str = "") -> None:
    """Run and print what is asked for."""
    settings = {"latent": LATENT, "simulations": SIMULATIONS, "draws": DRAWS, "runs": RUNS}
    once, often = [], []
    for name in GUIDES:
        if not name.startswith(prefix):
            continue
        made = cell("calibration", name.replace(", ", "-").replace(" ", ""), settings, lambda: calibrated(name))  # noqa: B023
        p = numbers(made["p"])
        z, log_lik = p[:, :-1], p[:, -1]
        once.append({"guide": name, "smallest p of z": z[0].min(), "largest": z[0].max(), "p of log p(x|z)": log_lik[0]}
                    | {"z[0]": made["finding"][0], "log p(x|z)": made["finding"][-1]})  # fmt: skip
        often.append({
            "guide": name,
            "z below 1e-3": (z.min(1) * LATENT < 1e-3).mean(),
            "log p(x|z) below 1e-3": (log_lik < 1e-3).mean(),
            "KS of p of z": kstest(z.ravel(), "uniform").pvalue,
            "KS of p of log p(x|z)": kstest(log_lik, "uniform").pvalue,
            "smallest p of z": z.min(),
            "largest p of log p(x|z)": log_lik.max(),
        })  # fmt: skip
    if once:
        show(once, f"SBC of an encoder, {SIMULATIONS} simulated rows, {DRAWS} draws, seed 0")
        show(often, f"The same over {RUNS} seeds: shares of runs, and uniformity of p")
    if not "vsbc".startswith(prefix):
        return
    rows = []
    settings = {"rows": ROWS, "data sets": DATA_SETS, "fit": FIT}
    for name, shift in (("fitted", 0.0), ("shifted, 0.5", 0.5)):
        made = cell("calibration", f"vsbc-{name[:7].strip(',')}", settings, lambda: variational(shift))  # noqa: B023
        found = Symmetry(numbers(made["probabilities"]), tuple(made["names"]))
        for (quantity, row), p in zip(found.table.iterrows(), found.probabilities.T):
            usual = ks_2samp(p, 1 - p).pvalue
            rows.append({"posterior": name, "quantity": quantity, **row, "usual p": usual})
    show(rows, f"Variational SBC of what all rows share, {DATA_SETS} data sets of {ROWS} rows")
    made = cell("calibration", "vsbc-null", {"samples": NULL, "size": SIZE}, null)
    show([made], f"Share of {NULL} uniform samples of {SIZE} called asymmetric")


if __name__ == "__main__":
    main(*[a for a in sys.argv[1:] if not a.startswith("--")][:1])
