"""Draws `vae.png`, the picture of the first page: a digit through the guide to z, and from z through the model.

python docs/picture.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Ellipse

import ppl_vae as pv

SHOWN, SIDE, REACH = 13, 12, 2.8
"""The row of the digits whose way is drawn; images along each side of the plane, which goes so far each way."""


def main() -> None:
    data = pv.datasets.load("digits")
    vae = pv.build(data.x, latent=2, hidden=(256, 256), likelihood="continuous_bernoulli")
    pv.fit(vae, data.x, epochs=300, lr=2e-3, progress=False)
    draws = pv.draws(vae, data.x[SHOWN : SHOWN + 1], num_draws=1000).z[:, 0].numpy()
    loc, scale = draws.mean(0), draws.std(0)

    figure = plt.figure(figsize=(12, 4.4), dpi=90)
    row, plane, again = (
        figure.add_axes(place) for place in ((0.02, 0.3, 0.14, 0.38), (0.29, 0.1, 0.28, 0.76), (0.7, 0.1, 0.28, 0.76))
    )
    row.imshow(data.x[SHOWN].reshape(8, 8), cmap="gray_r")
    row.set_title("a row x", fontsize=11)

    z = pv.encode(vae, data.x)
    dots = plane.scatter(*z.T, c=data.y, cmap="tab10", s=5, alpha=0.6, linewidths=0)
    for size in (1, 2):
        plane.add_patch(Ellipse(loc, *(2 * size * scale), fill=False, lw=1.6))
    plane.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH))
    plane.set_title("z, a point a row; the ellipses are q(z|x)", fontsize=11)
    plane.legend(
        *dots.legend_elements(),
        fontsize=7,
        ncols=2,
        loc="lower left",
        frameon=False,
        handletextpad=0,
        columnspacing=0.4,
    )

    levels = np.linspace(-REACH, REACH, SIDE)
    grid = np.array([(a, b) for b in levels[::-1] for a in levels])
    images = np.pad(np.asarray(pv.decode(vae, grid)).reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
    images = images.reshape(SIDE, SIDE, 10, 10).swapaxes(1, 2).reshape(SIDE * 10, SIDE * 10)
    again.imshow(images, cmap="gray_r", interpolation="nearest")
    again.set_title("E[x|z] over the same square", fontsize=11)

    for start, stop, above, below in (
        (0.165, 0.275, "vae.guide", "encoder, q(z|x)"),
        (0.58, 0.69, "vae.model", "decoder, p(x|z)"),
    ):
        figure.text((start + stop) / 2, 0.53, above, ha="center", family="monospace", fontsize=11)
        figure.text((start + stop) / 2, 0.42, below, ha="center", fontsize=9)
        blank = figure.add_axes((0, 0, 1, 1), zorder=-1)
        blank.axis("off")
        blank.annotate("", (stop, 0.49), (start, 0.49), arrowprops={"arrowstyle": "-|>", "lw": 1.6, "color": "black"})
    for axes in (row, plane, again):
        axes.set(xticks=[], yticks=[])
    figure.savefig(Path(__file__).with_name("vae.png"), metadata={"Software": None}, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    main()
