"""The linear case against its closed forms: a linear VAE against probabilistic PCA, a linear autoencoder against PCA.

    python benchmarks/linear_frey.py            # every cell, one after another
    python benchmarks/linear_frey.py vae        # cells whose name starts so: vae, autoencoder
    python benchmarks/linear_frey.py --tiny     # a few epochs, to see that it runs; figures mean nothing

VAE: all 1965 Frey faces, x / 255, float64 in and float32 in the nets; one linear layer each way, one noise scale for
all pixels, data centred only. Trained by SVI on the bound with the analytic KL (batches of 200, Adam, L = 1): three
fits, each going on from the last, with falling step sizes, each with a cosine schedule to zero. "closed form" is
Tipping & Bishop's (1999) maximum log likelihood from the eigenvalues of the covariance, by NumPy alone; `PPCA` and the
linear VAE (its importance-weighted bound with 200 draws, and its bound) have to reach it.
Autoencoder: point posterior, flat prior, unit noise, which is squared error; Adam on Frey, Adam and plain gradient
descent on scikit-learn's digits. "angle" is the largest principal angle, in radians, between the columns of the decoder
and PCA's components; "gap" is the q-th eigenvalue over the next one: the closer to 1, the longer it takes.
"""

import sys
from collections.abc import Callable

import numpy as np
from cells import cell, show
from scipy.linalg import subspace_angles

import ppl_vae as pv

TINY = "--tiny" in sys.argv
FIT = {"batch_size": 200, "valid": 0.0, "progress": False}
STEPS = [(1e-2, 300), (3e-3, 400), (1e-3, 500)]  # (lr, epochs) of each fit
AUTOENCODERS = {  # data, q, optimizer, (lr, epochs) of each fit
    "digits-adam": ("digits", 5, "adam", [(1e-2, 100), (1e-3, 200)]),
    "digits-sgd": ("digits", 5, "sgd", [(0.3, 300), (0.1, 300)]),
    "frey-adam": ("frey", 5, "adam", [(1e-2, 300), (3e-3, 300), (1e-3, 300)]),
}


def spectrum(x: np.ndarray) -> np.ndarray:
    """Eigenvalues of the covariance, largest first."""
    return np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]


def closed_form(x: np.ndarray, q: int) -> float:
    """Maximum log likelihood per row of pPCA: -1/2 (d log 2 pi + sum_q log l_j + (d - q) log s^2 + d)."""
    d, eigenvalues = x.shape[1], spectrum(x)
    noise = eigenvalues[q:].mean()
    return float(-0.5 * (d * np.log(2 * np.pi) + np.log(eigenvalues[:q]).sum() + (d - q) * np.log(noise) + d))


def train(vae: pv.VAE, x: np.ndarray, steps: list, **options: object) -> None:
    """Several fits, each going on from the one before."""
    for lr, epochs in steps:
        pv.fit(vae, x, lr=lr, epochs=3 if TINY else epochs, **FIT, **options)


def linear_vae(q: int) -> dict[str, float]:
    """One row of the first table."""
    x = pv.datasets.load("frey").x.astype(np.float64)
    reference, ppca = closed_form(x, q), float(pv.PPCA(q).fit(x).log_prob(x).mean())
    vae = pv.build(x, latent=q, hidden=(), likelihood="normal", scale="shared", standardize="center")
    train(vae, x, STEPS, objective="analytic_kl")
    iwae, elbo = (float(pv.score(vae, x, how, num_draws=200).values.mean()) for how in ("iwae", "elbo"))
    return {
        "closed form": reference,
        "PPCA": ppca,
        "linear VAE, iwae": iwae,
        "linear VAE, elbo": elbo,
        "PPCA - closed": ppca - reference,
        "iwae - closed": iwae - reference,
        "elbo - closed": elbo - reference,
    }


def linear_autoencoder(data: str, q: int, optimizer: str, steps: list) -> dict[str, float]:
    """One row of the second table."""
    x = pv.datasets.load(data).x.astype(np.float64)
    pca, eigenvalues = pv.PCA(q).fit(x), spectrum(x)
    options = {"prior": "flat", "posterior": "delta", "scale": 1.0}
    vae = pv.build(x, latent=q, hidden=(), standardize="center", **options)
    train(vae, x, steps, optimizer=optimizer)
    angles = subspace_angles(vae.decoder.net[0].weight.detach().double().numpy(), pca.components.T.numpy())
    error = [float(-pv.score(model, x, "reconstruction_error").values.mean()) for model in (vae, pca)]
    return {
        "gap": float(eigenvalues[q - 1] / eigenvalues[q]),
        "angle": float(angles.max()),
        "error / PCA's": error[0] / error[1],
    }


def kept(name: str, settings: dict, run: Callable[[], dict]) -> dict:
    """A cell; a tiny one is not kept."""
    return {"cell": name, **run()} if TINY else cell("linear_frey", name, settings, run)


if __name__ == "__main__":
    wanted = next((a for a in sys.argv[1:] if not a.startswith("-")), "")
    first, second = [], []
    for q in (2, 5, 10, 20):
        if f"vae-{q}".startswith(wanted):
            settings = {**FIT, "steps": [list(s) for s in STEPS], "objective": "analytic_kl", "draws": 200}
            first.append(kept(f"vae-{q}", settings, lambda q=q: linear_vae(q)))
            print(first[-1], flush=True)
    for name, (data, q, optimizer, steps) in AUTOENCODERS.items():
        if f"autoencoder-{name}".startswith(wanted):
            settings = {**FIT, "q": q, "optimizer": optimizer, "steps": [list(s) for s in steps]}
            run = lambda d=data, q=q, o=optimizer, s=steps: linear_autoencoder(d, q, o, s)  # noqa: E731
            second.append(kept(f"autoencoder-{name}", settings, run))
            print(second[-1], flush=True)
    if first:
        show(first, "Frey faces, nats a face: maximum likelihood of pPCA and a linear VAE trained by SVI")
    if second:
        show(second, "The subspace of a linear autoencoder against PCA's")
