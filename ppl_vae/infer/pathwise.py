"""Gradients to the guide along the draws alone, without the score of q: none is left where q is the posterior.

The total derivative of log w = log p(x, z) - log q(z|x) by the guide's parameters is that along z less the score
d log q / d parameters. Here the densities are computed at a copy of z, so that the two can be told apart.
"""

import torch
from torch import Tensor

from ppl_vae.errors import OptionError
from ppl_vae.infer.bounds import elbo, iwae
from ppl_vae.infer.elbo import Weights


def sticking_the_landing(weights: Weights) -> tuple[Tensor, Tensor]:
    """The ELBO, the score of q dropped, whose mean is 0 (Roeder et al. 2017)."""
    return elbo(weights.log_weight), (weights.log_p + along(weights)).mean(0)


def sticking_the_landing_iwae(weights: Weights) -> tuple[Tensor, Tensor]:
    """IWAE, the score of q dropped (Roeder et al. 2017): biased where K > 1, as Tucker et al. (2019) showed.

    Weighted by shares that are themselves functions of the draws, the score's mean is not 0.
    """
    share = shares(weights)
    return iwae(weights.log_weight), (share * (weights.log_p + along(weights))).sum(0)


def doubly_reparameterized(weights: Weights) -> tuple[Tensor, Tensor]:
    """IWAE, the score of q put through the draws once more: its share squared (Tucker et al. 2019); unbiased."""
    share = shares(weights)
    return iwae(weights.log_weight), (share * weights.log_p + share**2 * along(weights)).sum(0)


def shares(weights: Weights) -> Tensor:
    """w_k / sum_j w_j (K, n), as numbers."""
    return weights.log_weight.detach().softmax(0)


def along(weights: Weights) -> Tensor:
    """<d log w / dz, z> (K, n): a surrogate whose gradient is that of log w along the draw, its parameters held.

    Raises: OptionError for a guide with several sites a row: where one is drawn given another, its density also moves
        with that draw, and the squared share would need a term for each pair.
    """
    if len(weights.guide) != 1:
        names = ", ".join(map(repr, weights.guide))
        raise OptionError(
            f"objective: got a guide with the sites {names}, expected one site a row, whose density alone depends on the "
            "guide; use 'elbo' or 'iwae'"
        )
    (site,) = weights.guide.values()
    if not site["value"].requires_grad:  # nothing is asked for
        return torch.zeros_like(weights.log_weight)
    (slope,) = torch.autograd.grad(weights.log_weight.sum(), site["value"], retain_graph=True)
    return (slope * site["drawn"]).reshape(*weights.log_weight.shape, -1).sum(-1)
