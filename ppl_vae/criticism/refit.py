"""A fresh encoder for a fitted decoder: evidence that does not depend on the encoder that came with it."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ppl_vae.data.schema import Schema
from ppl_vae.errors import ProgramError, choose, whole
from ppl_vae.infer.draws import row_keys, space, traces
from ppl_vae.infer.scope import reading
from ppl_vae.infer.training import check_options as check_fit
from ppl_vae.infer.training import fit
from ppl_vae.model.build import sizes
from ppl_vae.model.conditional import Encoder, width
from ppl_vae.model.inputs import Inputs
from ppl_vae.model.nets import mlp
from ppl_vae.model.posteriors import POSTERIORS
from ppl_vae.model.vae import VAE


def refitted(
    vae: Any,
    train: Any,
    *,
    hidden: Sequence[int] = (256,),
    posterior: str = "full_rank",
    objective: Any = "iwae",
    particles: int = 8,
    epochs: int = 100,
    lr: float = 1e-3,
    batch_size: int = 256,
    seed: int = 0,
) -> VAE:
    """A copy of a model with its decoder and prior frozen, and a fresh encoder fitted to the training rows.

    Under one architecture for all models, the K-draw bound of what is returned compares decoders, as annealed importance
    sampling does, at less cost (the evaluation network of Wu et al. 2017, section 5).

    Args:
        vae: a fitted model, left as it is; z on R^k its only latent site.
        train: rows that the encoder is fitted to.
        hidden: widths of the hidden layers of the new encoder.
        posterior: its family, a name of `posteriors()` for z on R^k.
        objective, particles, epochs, lr, batch_size: as in `fit`.
        seed: of the new weights and their fit.

    Returns: the model; only its encoder differs.

    Raises: ProgramError for programs with further latent sites, or z elsewhere than on R^k; OptionError.
    """
    check_options(
        hidden, posterior, objective=objective, particles=particles, epochs=epochs, lr=lr, batch_size=batch_size
    )
    family = POSTERIORS[posterior]
    batch = vae.batch(train)
    few = batch.rows(slice(2))
    with reading(vae):
        guide, model = traces(vae, few, row_keys(few, 0), 1, strict=False)
    if others := [name for name in guide if name != "z"]:
        raise ProgramError(f"site {others[0]!r}: got it beside 'z'; expected z to be the only latent site of the guide")
    prior = model["z"]["fn"]
    if space(prior) != "density on R^k":
        raise ProgramError(f"site 'z': got a {space(prior)}, expected a density on R^k to fit a fresh encoder to")
    frozen = copy.deepcopy(vae).requires_grad_(False)
    schema = vae.schema or Schema.of(train)
    inputs = Inputs(schema)
    given = None if schema.covariates is None else Inputs(schema.covariates)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(whole("seed", seed, None) & 0x7FFFFFFFFFFFFFFF)
        q = family.make(prior.event_shape[0], "softplus")
        net: nn.Module = mlp(
            inputs.width + (0 if given is None else given.width), width(q, prior.event_shape[0]), hidden
        )
    fresh = VAE(Encoder(inputs, net, q, given), frozen.decoder, frozen.prior, vae.schema).to(batch.x)
    options: dict[str, Any] = {"particles": particles, "epochs": epochs, "lr": lr, "batch_size": batch_size}
    fit(fresh, train, objective=objective, valid=0.0, seed=seed, progress=False, **options)
    return fresh


def check_options(hidden: Any = (256,), posterior: Any = "full_rank", **options: Any) -> None:
    """Refuse options that `refitted` would refuse for any model.

    Args:
        hidden, posterior: as there.
        options: of `fit`.

    Raises: OptionError.
    """
    sizes("hidden", hidden)
    choose("posterior", posterior, POSTERIORS)
    check_fit(**options)
