"""A user's first program: `make dist` runs it, and checks its types, where only the wheel is installed."""

import numpy as np

import ppl_vae as pv


def main() -> None:
    x: np.ndarray = np.random.RandomState(0).randn(200, 4)
    vae = pv.build(x, latent=2, hidden=(16,))
    history: pv.History = pv.fit(vae, x, epochs=5, progress=False)
    scores: pv.Scores = pv.score(vae, x)
    flagged = int((scores.values < scores.threshold(0.05)).sum())
    pv.save(vae, "model")
    same = bool((pv.score(pv.load("model"), x).values == scores.values).all())
    print(f"bound {history['bound'][-1]:.3f}, {flagged} of {len(x)} rows flagged, the same when loaded: {same}")
    assert flagged == 10 and same


if __name__ == "__main__":
    main()
