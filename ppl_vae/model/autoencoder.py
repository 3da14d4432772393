"""The deterministic limit: a point posterior, a flat prior, a unit normal. Squared error, as a program."""

from collections.abc import Callable

from ppl_vae.data.schema import Schema
from ppl_vae.model.conditional import Conditional
from ppl_vae.model.families import Normal
from ppl_vae.model.posteriors import Point
from ppl_vae.model.priors import Flat
from ppl_vae.model.vae import VAE


class Autoencoder(VAE):
    """A deterministic autoencoder (Hinton & Salakhutdinov 2006) as two programs.

    Its bound is -1/2 |x - decoder(encoder(x))|^2 and a constant.

    Args:
        encoder: a net, (..., d) to a code (..., k).
        decoder: a net, (..., k) to (..., d).
        schema: as for `VAE`.

    From data: `build(data, posterior="delta", prior="flat", scale=1.0)`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> autoencoder = Autoencoder(nn.Linear(5, 2), nn.Linear(2, 5))
        >>> autoencoder.encoder(torch.zeros(3, 5)).event_shape
        torch.Size([2])
    """

    def __init__(self, encoder: Callable, decoder: Callable, schema: Schema | None = None) -> None:
        super().__init__(Conditional(encoder, Point()), Conditional(decoder, Normal(1, scale=1.0)), Flat(), schema)
