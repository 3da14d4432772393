"""From names and data to a model. The one place, with the command line, where a string becomes an object."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import nn

from ppl_vae.data.schema import Schema
from ppl_vae.errors import OptionError, choose, whole
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
    scale_floor: float = Default.scale_floor,
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
        scale_link: "softplus" or "log_variance" (Kingma & Welling 2013, appendix C.2, clamped).
        scale_floor: smallest learned scale of the normal likelihood, in encoded units: without one a likelihood grows
            without bound. A pixel's or instrument's resolution is a good choice.
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
        whole("latent", latent),
        _sizes("hidden", hidden),
        likelihood,  # type: ignore[arg-type]
        prior,  # type: ignore[arg-type]
        posterior,  # type: ignore[arg-type]
        nets,
        activation,
        scale,
        scale_link,
        scale_floor,
        standardize,
        seed,
    )
    return assemble(schema or Schema.fit(data, standardize), {**vars(chosen), **options})


def assemble(schema: Schema, chosen: dict[str, Any]) -> VAE:
    """The model that `build` makes of these options, with fresh weights."""
    names = [field.name for field in fields(Default)]
    of = Default(**{name: chosen[name] for name in names})
    options = {name: value for name, value in chosen.items() if name not in names}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(whole("seed", of.seed, None) & 0x7FFFFFFFFFFFFFFF)
        try:
            encoder_net, decoder_net = choose("nets", of.nets, NETS)(schema, of.hidden, of.activation, **options)
        except TypeError as error:
            raise OptionError(f"build: got the options {sorted(options)}, which these nets do not take") from error
        d = schema.width
        likelihood: Any = _likelihood(of, d)
        posterior: Any = of.posterior
        if _named(posterior):
            posterior = choose("posterior", posterior, POSTERIORS)(of.scale_link)
        posterior = _family("posterior", posterior)
        vae = VAE(
            Conditional(encoder_net(d, posterior.outputs * of.latent), posterior),
            Conditional(decoder_net(of.latent, likelihood.outputs * d), likelihood),
            _prior(of.prior, of.latent),
            schema,
        )
    if all(map(_named, (of.likelihood, of.prior, of.posterior))):
        vae.recipe = {"kind": "build", **chosen}
    return vae


def _named(part: Any) -> bool:
    return isinstance(part, str)


def _sizes(name: str, sizes: Any) -> tuple[int, ...]:
    if isinstance(sizes, str) or not isinstance(sizes, Iterable):
        raise OptionError(f"{name}: got {sizes!r}, expected a sequence of whole numbers such as (128,)")
    return tuple(whole(name, size) for size in sizes)


def _family(name: str, family: Any) -> Any:
    if not callable(family) or not hasattr(family, "outputs"):
        raise OptionError(f"{name}: got {family!r}, expected a name or a module with .outputs, its inputs per feature")
    return family


def _likelihood(of: Any, features: int) -> nn.Module:
    if _named(of.likelihood):
        make = choose("likelihood", of.likelihood, LIKELIHOODS)
        return make(features, of.scale, of.scale_link, of.scale_floor)
    if not callable(of.likelihood) or isinstance(of.likelihood, nn.Module):
        raise OptionError(f"likelihood: got {of.likelihood!r}, expected a name or a callable of the number of columns")
    return _family("likelihood", of.likelihood(features))


def _prior(prior: Any, latent: int) -> Any:
    if _named(prior):
        return choose("prior", prior, PRIORS)(latent)
    if isinstance(prior, torch.distributions.Distribution):
        if not isinstance(prior, TorchDistributionMixin):
            raise OptionError(f"prior: got {prior!r} of torch.distributions, expected one of pyro.distributions")
        return lambda: prior
    return prior
