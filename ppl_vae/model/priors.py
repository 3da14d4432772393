"""Priors: modules that return a distribution of one z, batch () and event (k,).

Most are called with nothing. Some take arguments by name (`c`, `group`, `shared`), have a program `global_sites()` of what
all rows share, or sample a site of their own. A factory takes a `Setting` and its own options.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vae.errors import OptionError, number, whole
from ppl_vae.model.discrete import BitVector
from ppl_vae.model.families import UNIT, softplus_scale
from ppl_vae.model.flows import Flow
from ppl_vae.model.mixture import Mixture, of_normals
from ppl_vae.model.nets import mlp
from ppl_vae.model.posteriors import Point, at_least_two
from ppl_vae.model.shrinkage import ARD, Horseshoe, Shrinkage
from ppl_vae.model.simplex import logistic_normal as on_simplex
from ppl_vae.model.sphere import UniformSphere

JITTER = 0.1
"""Standard deviation, in the features' units, of what sets apart pseudo-inputs drawn from the same row."""


class Setting(NamedTuple):
    """What a prior may need of the rest of the model.

    latent: k. encoder: has `.at(features)`, q(z|.) at features (..., inputs). rows: features (m, inputs) of training rows,
    a function that gives them, or None. covariates: width of the covariates' features. groups: number of known groups.
    first_layer: the decoder's first linear layer, whose columns [:latent] read z.
    """

    latent: int
    encoder: Any = None
    rows: Any = None
    covariates: int = 0
    groups: int = 0
    first_layer: nn.Linear | None = None


class StandardNormal(nn.Module):
    """p(z) = N(0, I) in `latent` dimensions."""

    loc: Tensor
    scale: Tensor

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(latent))
        self.register_buffer("scale", torch.ones(latent))

    def forward(self) -> dist.Distribution:
        return dist.Normal(self.loc, self.scale).to_event(1)


class Flat(nn.Module):
    """The improper prior of log density 0 everywhere: with a point posterior, maximum likelihood. It cannot be sampled."""

    def __init__(self, latent: int = 1) -> None:
        super().__init__()
        self.latent = latent

    def forward(self) -> dist.Distribution:
        return dist.ImproperUniform(constraints.real_vector, (), (self.latent,))


class Family(nn.Module):
    """A prior that is a family at parameters: `Family(dist.Laplace, loc=zeros, scale=ones)`.

    Args:
        family: called with the parameters by name; returns a distribution, entrywise or of event (k,).
        learned: whether the parameters are trained; they should then be unconstrained.
    """

    def __init__(self, family: Callable[..., dist.Distribution], learned: bool = False, **parameters: Tensor) -> None:
        super().__init__()
        self.family, self.names = family, tuple(parameters)
        for name, value in parameters.items():
            if learned:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def extra_repr(self) -> str:
        return self.family.__name__

    def forward(self) -> dist.Distribution:
        made: Any = self.family(**{name: getattr(self, name) for name in self.names})
        return made if made.event_shape else made.to_event(1)


def learned_normal(loc: Tensor, raw: Tensor) -> dist.Distribution:
    """N(loc, diag(softplus_scale(raw)^2))."""
    return dist.Normal(loc, softplus_scale(raw))


class NormalMixture(nn.Module):
    """p(z) = sum_c weight_c N(loc_c, diag(scale_c^2)), all learned; locations start as draws of N(0, I).

    Args:
        latent: k.
        components: C.
        enumerated: sample the component, site "component" marked for Pyro's `TraceEnum_ELBO`, and return its normal,
            instead of the mixture: the same density, and the component in the trace.
    """

    def __init__(self, latent: int, components: int = 10, enumerated: bool = False) -> None:
        super().__init__()
        self.enumerated = enumerated
        self.logits = nn.Parameter(torch.zeros(whole("components", components)))
        self.loc = nn.Parameter(torch.randn(components, latent))
        self.raw = nn.Parameter(torch.full((components, latent), UNIT["softplus"]))

    def forward(self) -> dist.Distribution:
        if not self.enumerated:
            return self.marginal()
        categorical = dist.Categorical(logits=self.logits)
        component = pyro.sample("component", categorical, infer={"enumerate": "parallel"})
        return dist.Normal(self.loc[component], softplus_scale(self.raw)[component]).to_event(1)

    def marginal(self) -> Mixture:
        """The mixture, summed over components."""
        return of_normals(self.logits, self.loc, softplus_scale(self.raw))

    def responsibilities(self, z: Tensor) -> Tensor:
        """p(component | z) at z (..., k): (..., C)."""
        return self.marginal().responsibilities(z)


class Vamp(nn.Module):
    """p(z) = 1/K sum_k q(z | u_k), the u learned pseudo-inputs (Tomczak & Welling 2018, eq. 9).

    Args:
        encoder: has `.at(features)`; it stays the model's: its parameters are not this module's.
        pseudo_inputs: where they start, (K, inputs), in the units of the encoder's net's inputs.
    """

    logits: Tensor

    def __init__(self, encoder: Any, pseudo_inputs: Tensor) -> None:
        super().__init__()
        # in a tuple, so that its parameters are registered once and a copy of the model keeps the tie
        self._encoder = (encoder,)
        self.pseudo_inputs = nn.Parameter(pseudo_inputs)
        self.register_buffer("logits", torch.zeros(len(pseudo_inputs)).to(pseudo_inputs))

    def forward(self) -> Mixture:
        return Mixture(self.logits, self._encoder[0].at(self.pseudo_inputs))

    def responsibilities(self, z: Tensor) -> Tensor:
        """p(pseudo-input | z) at z (..., k): (..., K)."""
        return self().responsibilities(z)


class ConditionalNormal(nn.Module):
    """p(z|c) = N(loc(c), diag(scale(c)^2)), both from a net.

    Args:
        latent: k.
        covariates: width of the features of c.
        hidden: widths of the net's hidden layers.
    """

    def __init__(self, latent: int, covariates: int, hidden: Sequence[int] = (64,)) -> None:
        super().__init__()
        self.net = mlp(covariates, 2 * latent, hidden)

    def forward(self, c: Tensor) -> dist.Distribution:
        loc, raw = self.net(c).chunk(2, -1)
        return dist.Normal(loc, softplus_scale(raw + UNIT["softplus"])).to_event(1)


class Hierarchical(nn.Module):
    """z | group g ~ N(effect_g, within^2 I), effect_g = location + spread * offset_g: groups pooled in part.

    location ~ N(0, I), spread ~ HalfNormal(1) and offsets ~ N(0, I) in the plate "groups" are sites that all rows share, so
    they have a posterior of their own, under whatever algorithm fits the model. The offsets are kept apart from their scale
    for the sake of samplers (Papaspiliopoulos et al. 2007, "non-centred").

    Args:
        latent: k.
        groups: G.
        within: standard deviation of z about its group's effect.
    """

    zero: Tensor
    one: Tensor

    def __init__(self, latent: int, groups: int, within: float = 1.0) -> None:
        super().__init__()
        self.groups, self.within = groups, number("within", within)
        self.register_buffer("zero", torch.zeros(latent))
        self.register_buffer("one", torch.ones(latent))

    def global_sites(self) -> dict[str, Tensor]:
        """Sample location and spread (k,) and offsets (G, k); under a plate of S draws (S, 1, k) and (S, G, k)."""
        location = pyro.sample("location", dist.Normal(self.zero, self.one).to_event(1))
        spread = pyro.sample("spread", dist.HalfNormal(self.one).to_event(1))
        with pyro.plate("groups", self.groups, dim=-1):
            offsets = pyro.sample("offsets", dist.Normal(self.zero, self.one).to_event(1))
        return {"location": location, "spread": spread, "offsets": offsets}

    def forward(self, group: Tensor | None, shared: dict[str, Tensor]) -> dist.Distribution:
        """p(z | group, shared), batch (n,) or (S, n).

        Args:
            group: (n,) codes; -1 is a group that was not seen, drawn from the population: its effect is integrated out,
                for each row alone. None: all of them.
            shared: what `global_sites` returned.
        """
        group = torch.tensor([-1], device=self.one.device) if group is None else group
        effects = shared["location"] + shared["spread"] * shared["offsets"]
        known = (group >= 0)[..., None]
        loc = torch.where(known, effects[..., group, :], shared["location"])
        between = torch.where(known, 0.0, shared["spread"])
        return dist.Normal(loc, (self.within**2 + between**2).sqrt()).to_event(1)


def standard_normal(setting: Setting) -> nn.Module:
    return StandardNormal(setting.latent)


def flat(setting: Setting) -> nn.Module:
    return Flat(setting.latent)


def normal(setting: Setting) -> nn.Module:
    unit = torch.full((setting.latent,), UNIT["softplus"])
    return Family(learned_normal, learned=True, loc=torch.zeros(setting.latent), raw=unit)


def mixture(setting: Setting, *, components: int = 10) -> nn.Module:
    return NormalMixture(setting.latent, components)


def enumerated_mixture(setting: Setting, *, components: int = 10) -> nn.Module:
    return NormalMixture(setting.latent, components, enumerated=True)


def vamp(setting: Setting, *, components: int = 50) -> nn.Module:
    count, rows = whole("components", components), setting.rows() if callable(setting.rows) else setting.rows
    if setting.encoder is None or rows is None:
        raise OptionError("prior: got 'vamp' without an encoder and training rows, expected both")
    if len(rows) >= count:
        start = rows[torch.randperm(len(rows))[:count]].clone()
    else:
        start = rows[torch.randint(len(rows), (count,))]
        start = start + JITTER * torch.randn_like(start)
    if isinstance(setting.encoder.family, Point):
        raise OptionError("prior: got 'vamp' with a point posterior, expected one with a density, which it mixes")
    return Vamp(setting.encoder, start)


def flow(
    setting: Setting, *, flow: str = "spline", transforms: int = 3, flow_hidden: Sequence[int] = (64, 64)
) -> nn.Module:
    return Flow(setting.latent, flow, transforms, flow_hidden)


def laplace(setting: Setting) -> nn.Module:
    return Family(dist.Laplace, loc=torch.zeros(setting.latent), scale=torch.ones(setting.latent))


def student_t(setting: Setting, *, df: float = 5.0) -> nn.Module:
    zeros = torch.zeros(setting.latent)
    return Family(dist.StudentT, df=zeros + number("df", df), loc=zeros, scale=torch.ones(setting.latent))


def ard(setting: Setting, *, ard_concentration: float = 1e-3, ard_rate: float = 1e-3) -> nn.Module:
    return Shrinkage(_first_layer("ard", setting), setting.latent, ARD(setting.latent, ard_concentration, ard_rate))


def horseshoe(setting: Setting, *, global_scale: float = 0.1, slab: float = 2.0) -> nn.Module:
    return Shrinkage(_first_layer("horseshoe", setting), setting.latent, Horseshoe(setting.latent, global_scale, slab))


def _first_layer(name: str, setting: Setting) -> nn.Linear:
    layer = setting.first_layer
    if not isinstance(layer, nn.Linear) or layer.in_features < setting.latent:
        raise OptionError(f"prior: got {name!r} with a decoder that does not start with a linear layer, expected one")
    return layer


def logistic_normal(setting: Setting, *, alpha: float = 1.0) -> nn.Module:
    """N(0, I / alpha) in log-ratio coordinates: the Laplace approximation of a symmetric Dirichlet(alpha) (ProdLDA).

    Srivastava & Sutton (2017), section 3.2; in these orthonormal coordinates its curvature is alpha in every direction.
    """
    zeros = torch.zeros(at_least_two("logistic_normal", setting.latent) - 1)
    return Family(on_simplex, loc=zeros, scale=zeros + number("alpha", alpha) ** -0.5)


def dirichlet(setting: Setting, *, concentration: float = 1.0) -> nn.Module:
    parts = at_least_two("dirichlet", setting.latent)
    return Family(dist.Dirichlet, concentration=torch.full((parts,), number("concentration", concentration)))


def sphere(setting: Setting) -> nn.Module:
    return Family(UniformSphere, centre=torch.zeros(at_least_two("sphere", setting.latent)))


def bernoulli(setting: Setting) -> nn.Module:
    return Family(BitVector, learned=True, logits=torch.zeros(setting.latent))


def categorical(setting: Setting) -> nn.Module:
    logits = torch.zeros(at_least_two("categorical", setting.latent))
    return Family(dist.OneHotCategorical, learned=True, logits=logits)


def conditional(setting: Setting, *, prior_hidden: Sequence[int] = (64,)) -> nn.Module:
    if setting.covariates < 1:
        raise OptionError("prior: got 'conditional' without covariates, expected some (covariates=...)")
    return ConditionalNormal(setting.latent, setting.covariates, prior_hidden)


def hierarchical(setting: Setting, *, within: float = 1.0) -> nn.Module:
    if setting.groups < 1:
        raise OptionError("prior: got 'hierarchical' without groups, expected a column of them (group=...)")
    return Hierarchical(setting.latent, setting.groups, within)


class Prior(NamedTuple):
    """A row of `PRIORS`: make(setting, *, its options) to a module, and what it is."""

    make: Callable[..., nn.Module]
    text: str


PRIORS: dict[str, Prior] = {
    "standard_normal": Prior(standard_normal, "N(0, I) (Kingma & Welling 2013)"),
    "flat": Prior(flat, "improper, density 1 everywhere"),
    "normal": Prior(normal, "diagonal normal, learned"),
    "mixture": Prior(mixture, "mixture of diagonal normals, learned; components=10"),
    "enumerated_mixture": Prior(enumerated_mixture, "the same with its component as an enumerated site; components=10"),
    "vamp": Prior(
        vamp, "mixture of the posteriors at learned pseudo-inputs (Tomczak & Welling 2018, eq. 9); components=50"
    ),
    "flow": Prior(
        flow,
        "normalizing flow; flow='spline' (Durkan et al. 2019) or 'affine' (Papamakarios et al. 2017), transforms=3, "
        "flow_hidden=(64, 64)",
    ),
    "laplace": Prior(laplace, "Laplace of unit scale"),
    "student_t": Prior(student_t, "Student-t of unit scale; df=5"),
    "ard": Prior(
        ard,
        "N(0, I), columns of the decoder's first layer shrunk (MacKay 1994; Bishop 1999); ard_concentration=1e-3, "
        "ard_rate=1e-3",
    ),
    "horseshoe": Prior(
        horseshoe, "the same by a regularised horseshoe (Piironen & Vehtari 2017, eq. 2.8); global_scale=0.1, slab=2"
    ),
    "logistic_normal": Prior(
        logistic_normal, "logistic-normal on the simplex (Srivastava & Sutton 2017, section 3.2); alpha=1"
    ),
    "dirichlet": Prior(dirichlet, "Dirichlet on the simplex; concentration=1"),
    "sphere": Prior(sphere, "uniform on the unit sphere (Davidson et al. 2018)"),
    "bernoulli": Prior(bernoulli, "a vector of bits, learned logits"),
    "categorical": Prior(categorical, "one class of k, one-hot, learned logits"),
    "conditional": Prior(conditional, "normal given covariates, by a net (Sohn et al. 2015); prior_hidden=(64,)"),
    "hierarchical": Prior(
        hierarchical,
        "normal about effects of groups, pooled in part (Papaspiliopoulos et al. 2007, non-centred); within=1",
    ),
}
