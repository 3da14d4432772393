"""Uncertain weights after the fit: Laplace's approximation for the decoder's last layer (Daxberger et al. 2021)."""

import copy
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vae.errors import OptionError, ProgramError, number, whole
from ppl_vae.infer.draws import (
    batch_of,
    check,
    jacobians,
    log_densities,
    log_prob_per_feature,
    programs,
    row_keys,
    shared_key,
)
from ppl_vae.infer.noise import Keyed
from ppl_vae.infer.scope import in_mode, isolated
from ppl_vae.model.conditional import Decoder, Encoder
from ppl_vae.model.vae import VAE
from ppl_vae.model.weights import WeightPrior, normals, site

NUMBERS = 2**22
"""Numbers held at a time."""
PROBES = 64
"""Rows that show which outputs of the net belong to which feature."""


def last_layer_laplace(vae: VAE, data: Any, prior_scale: float = 1.0, *, num_draws: int = 16, seed: int = 0) -> VAE:
    """A copy of a fitted model with a normal posterior for the weights of the decoder's last linear layer.

    Given z, output j of the net is f_j = w_j' h with h the hidden units and a 1 for the bias, and

        q(w) = prod_j N(w_j; fitted w_j, C_j),
        C_j^-1 = sum_i E_q(z|x_i)[-d^2/df_j^2 log p(x_i|z) h h'] + I / prior_scale^2,

    one block for each output (Daxberger et al. 2021, Laplace Redux, section 2). Under a normal likelihood of given scale
    this is the exact posterior at these draws of z, if the fit is its mode: the mode under this prior is what
    `fit(..., weight_decay=1 / (n * prior_scale**2))` seeks, but with "adamw". In a direction in which log p(x|z) is not
    concave the prior's curvature is there alone. Whatever else was learned stays as it is.

    The copy is a VAE whose last layer is a site that all rows share, as with `build(..., weights="normal")`: scores, draws
    and predictions integrate over it.

    Args:
        vae: a model of `build`, fitted with weights="point".
        data: the n rows that it was fitted to.
        prior_scale: standard deviation of p(w) = N(0, prior_scale^2).
        num_draws: of z for each row.
        seed: of these draws.

    Returns: a `VAE`. Time grows with n, outputs and the square of the hidden units; memory with outputs and that square.

    Raises: OptionError for another kind of model or decoder; DataError for rows that the model was not built for.

    Example:
        >>> import numpy as np
        >>> from ppl_vae.criticism.scores import score
        >>> from ppl_vae.model.build import build
        >>> x = np.random.RandomState(0).randn(30, 3)
        >>> vae = build(x, latent=2, hidden=(8,))
        >>> uncertain = last_layer_laplace(vae, x)
        >>> sorted(name for name in score(uncertain, x, "iwae").__dict__)
        ['mcse', 'per_feature', 'scoring', 'values']
    """
    number("prior_scale", prior_scale), whole("num_draws", num_draws)
    batch = batch_of(vae, data)
    last = _last_layer(vae)
    with isolated(vae, seed), in_mode(vae, training=False):
        with torch.no_grad():
            check(vae, batch)
        precision = _curvature(vae, last, batch, num_draws, seed)
    values, vectors = torch.linalg.eigh(precision)
    half = vectors * (values.clamp(min=0) + prior_scale**-2).rsqrt()[:, None]  # of the covariance, half half'
    upper = torch.linalg.qr(half.mT).R
    tril = (upper * upper.diagonal(dim1=-2, dim2=-1).sign()[..., None]).mT
    return uncertain(copy.deepcopy(vae), prior_scale, tril)


def uncertain(vae: Any, prior_scale: float = 1.0, tril: Tensor | None = None) -> Any:
    """Put a posterior in the place of the weights of the decoder's last linear layer, and return the model.

    Args:
        vae: a model of `build` with weights="point"; it is changed.
        prior_scale: as in `last_layer_laplace`.
        tril: as in `LayerPosterior`; None: of the right size, to be filled from a file.
    """
    last = _last_layer(vae)
    layer = vae.decoder.net.get_submodule(last)
    names = [f"{last}.{name}".lstrip(".") for name, _ in layer.named_parameters()]
    if tril is None:
        size = layer.in_features + (layer.bias is not None)
        tril = torch.empty(layer.out_features, size, size)
    vae.decoder.weights = WeightPrior(vae.decoder.net, prior_scale, names).to(layer.weight)
    vae.encoder.weights = LayerPosterior(layer, names, tril.to(layer.weight))
    vae.recipe = vae.recipe and {**vae.recipe, "kind": "laplace"}
    return vae


def _last_layer(vae: Any) -> str:
    """The name, in the decoder's net, of the linear layer that gives its outputs."""
    decoder, encoder = getattr(vae, "decoder", None), getattr(vae, "encoder", None)
    if not isinstance(decoder, Decoder) or not isinstance(encoder, Encoder) or decoder.weights is not None:
        raise OptionError(
            f"last_layer_laplace: got a {type(vae).__name__} with the decoder {type(decoder).__name__}, expected a model "
            "that build() made with weights='point'"
        )
    *_, (name, last) = decoder.net.named_modules()
    if not isinstance(last, nn.Linear):
        raise OptionError(
            f"last_layer_laplace: got a decoder that ends in {type(last).__name__}, expected a linear layer (nets='mlp')"
        )
    return name


def _curvature(vae: Any, last: str, batch: Any, num_draws: int, seed: int) -> Tensor:
    """Minus the Hessian of sum_i E_q[log p(x_i|z)] in each output's bias and weights: (outputs, 1 + hidden, 1 + hidden)."""
    layer, groups = vae.decoder.net.get_submodule(last), None
    size = layer.in_features + (layer.bias is not None)
    total = torch.zeros(layer.out_features, size, size, dtype=torch.float64, device=batch.x.device)
    height = max(1, NUMBERS // (num_draws * max(layer.out_features, size)))
    for start in range(0, len(batch.x), height):
        block = batch.rows(slice(start, start + height))
        hidden, raw, model = _tapped(vae, layer, block, num_draws, seed)
        if groups is None:
            probe = block.rows(slice(PROBES))
            groups = _groups(*_tapped(vae, layer, probe, 1, seed)[1:])
        log_lik = log_densities(model, jacobians(vae, block), block)[1]
        weight = _second(log_lik.sum(), raw, groups).flatten(0, -2).double() / num_draws
        hidden = hidden.flatten(0, -2).double()
        hidden = hidden if layer.bias is None else torch.cat([torch.ones_like(hidden[:, :1]), hidden], 1)
        few = max(1, 4 * NUMBERS // (layer.out_features * size))
        for some, of in zip(hidden.split(few), weight.split(few)):
            total += (some.T * of.T[:, None]) @ some
    return total


def _tapped(vae: Any, layer: nn.Linear, block: Any, num_draws: int, seed: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """The layer's input and output (S, n, ...), the output a leaf of the graph of what follows, and the model's sites."""
    seen: list[Tensor] = []

    def tap(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        seen[:] = args[0].detach(), output.detach().requires_grad_()
        return seen[1]

    handle = layer.register_forward_hook(tap)
    try:
        with Keyed(row_keys(block, seed), shared=shared_key(block.x, seed)):
            _, model = programs(vae, block, num_draws)
    finally:
        handle.remove()
    return seen[0], seen[1], model


def _second(log_lik: Tensor, raw: Tensor, groups: Tensor) -> Tensor:
    """-d^2 log p / d raw_j^2 for every output j, by one product with the Hessian for each group of outputs."""
    (first,) = torch.autograd.grad(log_lik, raw, create_graph=True)
    found = torch.zeros_like(raw)
    for group in range(int(groups.max()) + 1 if first.requires_grad else 0):
        own = groups == group
        (row,) = torch.autograd.grad(first[..., own].sum(), raw, retain_graph=True, materialize_grads=True)
        found[..., own] = -row[..., own]
    return found


def _groups(raw: Tensor, model: dict[str, Any]) -> Tensor:
    """Numbers (outputs,) of groups within which no two outputs are of one feature: their Hessian is then diagonal.

    Where the entries of a row depend on each other, each output is a group of its own.
    """
    alone = torch.arange(raw.shape[-1], device=raw.device)
    try:
        features = log_prob_per_feature(model["x"]).flatten(0, -2).sum(0)
    except ProgramError:
        return alone
    one = torch.eye(len(features), dtype=features.dtype, device=raw.device)
    slopes = torch.stack([torch.autograd.grad(features, raw, row, retain_graph=True)[0] for row in one])
    of = (slopes != 0).flatten(1, -2).any(1)  # (features, outputs)
    if (of.sum(0) > 1).any():
        return alone
    together = of.T.double() @ of.double() > 0
    return together.tril(-1).sum(1)


class LayerPosterior(nn.Module):
    """q(w) of a linear layer: a normal for bias and weights of each output, whose means are the layer's own.

    Args:
        layer: it stays the decoder's.
        names: of its parameters in the decoder's net, the weights' first.
        tril: Cholesky factors of the covariances (outputs, 1 + inputs, 1 + inputs), the bias first if there is one.
    """

    tril: Tensor

    def __init__(self, layer: nn.Linear, names: list[str], tril: Tensor) -> None:
        super().__init__()
        self._layer, self.names = (layer,), names  # in a tuple: its parameters are registered once
        self.register_buffer("tril", tril)

    def forward(self) -> None:
        """Sample the bias, and the weights given the bias."""
        layer, loc, tril = self._layer[0], self._layer[0].weight, self.tril
        if layer.bias is not None:
            scale, below = tril[:, 0, 0], tril[:, 1:, 0]
            bias = pyro.sample(site(self.names[1]), normals(layer.bias, scale))
            loc, tril = loc + below * ((bias - layer.bias) / scale)[..., None], tril[:, 1:, 1:]
        noise = normals(torch.zeros_like(layer.weight), torch.ones_like(layer.weight))
        pyro.sample(site(self.names[0]), dist.TransformedDistribution(noise, [Rows(loc, tril)]))


class Rows(dist.transforms.Transform):
    """y_j = loc_j + tril_j x_j for each row j of a matrix: x (..., m, k), loc (..., m, k), tril (m, k, k)."""

    domain = codomain = constraints.independent(constraints.real, 2)
    bijective = True

    def __init__(self, loc: Tensor, tril: Tensor) -> None:
        super().__init__()
        self.loc, self.tril = loc, tril

    def _call(self, x: Tensor) -> Tensor:
        return self.loc + torch.einsum("mij,...mj->...mi", self.tril, x)

    def _inverse(self, y: Tensor) -> Tensor:
        residual = (y - self.loc).movedim(-2, 0)  # (m, ..., k)
        flat = residual.reshape(len(residual), -1, residual.shape[-1])
        solved = torch.linalg.solve_triangular(self.tril, flat.mT, upper=False).mT
        return solved.reshape(residual.shape).movedim(0, -2)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.tril.diagonal(dim1=-2, dim2=-1).log().sum().expand(x.shape[:-2])
