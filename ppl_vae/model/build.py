"""From names and data to a model. The one place, with the command line, where a string becomes an object."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from ppl_vae.data.schema import Schema
from ppl_vae.errors import OptionError, choose
from ppl_vae.model.families import LIKELIHOODS, Conditional
from ppl_vae.model.nets import conv_decoder, conv_encoder, mlp
from ppl_vae.model.posteriors import POSTERIORS
from ppl_vae.model.priors import PRIORS
from ppl_vae.model.vae import VAE
from ppl_vae.options import ModelOptions as Default

Net = Callable[[int, int], nn.Module]


def mlp_pair(schema: Schema, hidden: Sequence[int], activation: str) -> tuple[Net, Net]:
    """Encoder and decoder nets as functions of (inputs, outputs): multilayer perceptrons, one the mirror of the other."""
    return (
        lambda inputs, outputs: mlp(inputs, outputs, hidden, activation),
        lambda inputs, outputs: mlp(inputs, outputs, hidden[::-1], activation),
    )


def cnn_pair(
    schema: Schema, hidden: Sequence[int], activation: str, channels: Sequence[int] = (32, 64)
) -> tuple[Net, Net]:
    """Encoder and decoder nets as functions of (inputs, outputs): convolutions of stride 2, then dense layers."""
    shape = schema.shape
    return (
        lambda inputs, outputs: conv_encoder(shape, outputs, hidden, activation, channels),
        lambda inputs, outputs: conv_decoder(inputs, shape, outputs, hidden[::-1], activation, channels),
    )


NETS: dict[str, Callable[..., tuple[Net, Net]]] = {"mlp": mlp_pair, "cnn": cnn_pair}


def build(
    data: Any,
    *,
    latent: int = Default.latent,
    hidden: Sequence[int] = Default.hidden,
    likelihood: str | Callable[[int], nn.Module] = Default.likelihood,
    prior: str | Callable = Default.prior,
    posterior: str | nn.Module = Default.posterior,
    nets: str = Default.nets,
    activation: str = Default.activation,
    scale: str | float = Default.scale,
    scale_link: str = Default.scale_link,
    standardize: str = Default.standardize,
    schema: Schema | None = None,
    seed: int = Default.seed,
    **options: Any,
) -> VAE:
    """Build a VAE for `data`, by names or from your own objects; sizes come from the data.

    Args:
        data: rows (n, d) or (n, *shape): array, tensor, data frame, table, `Dataset`, or path of a file.
        latent: number of latent dimensions k.
        hidden: widths of the encoder's hidden layers, mirrored in the decoder; () makes a linear net.
        likelihood: "normal", "bernoulli", "continuous_bernoulli", or a callable of d that returns a module with
            `.outputs` (net outputs per feature), called with that many tensors (..., d) and returning p(x|z).
        prior: "standard_normal", "flat", a Pyro distribution of event (k,), or a callable that returns one.
        posterior: "mean_field", "delta", or a module like a likelihood's, returning q(z|x).
        nets: "mlp" or "cnn" (option `channels=(32, 64)`; rows must be images).
        activation: "tanh", "relu", "silu", "elu" or "softplus".
        scale: standard deviation of the normal likelihood: "row" (the net gives it, per row and feature), "feature",
            "shared", or a number in encoded units.
        scale_link: "softplus" (floor 1e-3) or "log_variance" (Kingma & Welling 2013, appendix C.2, clamped).
        standardize: "feature" (zero mean, unit standard deviation), "center" or "none"; used with a normal likelihood
            or a callable one, since {0, 1} and [0, 1] have units of their own. Kept with the model.
        schema: a `Schema` to use instead of one made from `data`.
        seed: of the initial weights.

    Raises: OptionError, DataError.

    Example:
        >>> import numpy as np
        >>> vae = build(np.random.RandomState(0).randn(20, 3), latent=2, hidden=(16,))
        >>> vae.decoder(torch.zeros(1, 2)).event_shape
        torch.Size([3])
    """
    if likelihood in ("bernoulli", "continuous_bernoulli"):
        standardize = "none"
    chosen = Default(
        latent, tuple(hidden), likelihood, prior, posterior, nets, activation, scale, scale_link, standardize, seed
    )  # type: ignore[arg-type]
    return assemble(schema or Schema.fit(data, standardize), {**asdict(chosen), **options})


def assemble(schema: Schema, chosen: dict[str, Any]) -> VAE:
    """The model that `build` made with these options, with fresh weights."""
    chosen = dict(chosen)
    names = ("likelihood", "prior", "posterior", "nets", "scale_link", "activation")
    by_name = all(isinstance(chosen[name], str) for name in names)
    recipe = {"kind": "build", **chosen} if by_name else None
    latent, hidden, link = chosen.pop("latent"), chosen.pop("hidden"), chosen.pop("scale_link")
    for name, sizes in (("latent", (latent,)), ("hidden", hidden)):
        if any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sizes):
            raise OptionError(f"{name}: got {chosen.get(name, sizes)!r}, expected positive whole numbers")
    pair = choose("nets", chosen.pop("nets"), NETS)
    make_likelihood, make_prior, make_posterior = (chosen.pop(n) for n in ("likelihood", "prior", "posterior"))
    scale, seed, activation = chosen.pop("scale"), chosen.pop("seed"), chosen.pop("activation")
    chosen.pop("standardize")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            encoder_net, decoder_net = pair(schema, tuple(hidden), activation, **chosen)
        except TypeError as error:
            raise OptionError(f"build: got the options {sorted(chosen)}, which these nets do not take") from error
        d = schema.width
        if isinstance(make_likelihood, str):
            family = choose("likelihood", make_likelihood, LIKELIHOODS)(d, scale, link)
        else:
            family = make_likelihood(d)
        if isinstance(make_posterior, str):
            make_posterior = choose("posterior", make_posterior, POSTERIORS)(link)
        vae = VAE(
            Conditional(encoder_net(d, make_posterior.outputs * latent), make_posterior),
            Conditional(decoder_net(latent, family.outputs * d), family),
            _prior(make_prior, latent),
            schema,
        )
    vae.recipe = recipe
    return vae


def _prior(prior: Any, latent: int) -> Any:
    if isinstance(prior, str):
        return choose("prior", prior, PRIORS)(latent)
    return (lambda: prior) if hasattr(prior, "log_prob") else prior
