"""From names and data to a model. The one place, with the command line, where a string becomes an object."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import fields
from inspect import Parameter, signature
from math import prod
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vae.data.columns import LIKELIHOOD_TYPES
from ppl_vae.data.schema import Schema
from ppl_vae.errors import OptionError, called, choose, whole
from ppl_vae.model import families
from ppl_vae.model.classes import Classes
from ppl_vae.model.conditional import Decoder, Encoder, beside, width
from ppl_vae.model.inputs import Inputs
from ppl_vae.model.mixed import Mixed
from ppl_vae.model.nets import conv_decoder, conv_encoder, mlp
from ppl_vae.model.posteriors import POSTERIORS
from ppl_vae.model.priors import PRIORS, Setting
from ppl_vae.model.shared import MeanFieldShared, latent_sites
from ppl_vae.model.shrinkage import Shrinkage
from ppl_vae.model.vae import VAE
from ppl_vae.model.weights import WEIGHTS
from ppl_vae.options import ModelOptions as Default
from ppl_vae.plugins import part

Net = Callable[[int, int], nn.Module]


def mlp_pair(schema: Schema, hidden: Sequence[int], activation: str) -> tuple[Net, Net]:
    """Encoder and decoder nets as functions of (inputs, outputs): multilayer perceptrons, one the mirror of the other."""
    return (
        lambda inputs, outputs: mlp(inputs, outputs, hidden, activation),
        lambda inputs, outputs: mlp(inputs, outputs, hidden[::-1], activation),
    )


def cnn_pair(
    schema: Schema, hidden: Sequence[int], activation: str, *, channels: Sequence[int] = (32, 64)
) -> tuple[Net, Net]:
    """Encoder and decoder nets as functions of (inputs, outputs): convolutions of stride 2, then dense layers."""
    shape = schema.shape

    def encoder(inputs: int, outputs: int) -> nn.Module:
        if inputs != prod(shape):
            raise OptionError(
                f"nets='cnn': got {inputs} features, expected the {prod(shape)} pixels alone: no missing cells, "
                "covariates, classes or columns of categories"
            )
        return conv_encoder(shape, outputs, hidden, activation, channels)

    def decoder(inputs: int, outputs: int) -> nn.Module:
        if outputs % prod(shape):
            raise OptionError(
                f"nets='cnn': got a likelihood of {outputs} numbers for {prod(shape)} pixels, expected one with the same "
                "parameters for each pixel"
            )
        return conv_decoder(inputs, shape, outputs, hidden[::-1], activation, channels)

    return encoder, decoder


NETS: dict[str, Callable[..., tuple[Net, Net]]] = {"mlp": mlp_pair, "cnn": cnn_pair}


def build(
    data: Any,
    *,
    latent: int = Default.latent,
    hidden: Sequence[int] = Default.hidden,
    likelihood: Any = Default.likelihood,
    prior: Any = Default.prior,
    posterior: Any = Default.posterior,
    nets: str = Default.nets,
    activation: str = Default.activation,
    scale: str | float = Default.scale,
    scale_link: str = Default.scale_link,
    scale_floor: float = Default.scale_floor,
    standardize: str = Default.standardize,
    nullable: bool | Sequence[str] = Default.nullable,
    covariates: Sequence[str] = Default.covariates,
    group: str | None = Default.group,
    label: str | None = Default.label,
    weights: str = Default.weights,
    schema: Schema | None = None,
    seed: int = Default.seed,
    **options: Any,
) -> VAE:
    """Build a VAE for `data`, by names or from your own objects; sizes come from the data.

    Args:
        data: rows (n, d) or (n, *shape): array, tensor, data frame, table, `Dataset`, or path of a file.
        latent: number of latent dimensions k.
        hidden: widths of the encoder's hidden layers, mirrored in the decoder; () makes a linear net.
        likelihood: a name of `likelihoods()` for all columns; "infer", each column by its type (`Schema.infer`); a class
            of Pyro distributions, whose parameters get heads and links by their constraints; a callable of d that
            returns a module with `.outputs` (net outputs per feature), called with that many tensors (..., d) and
            returning p(x|z); or a dict of these by column, the rest inferred. An attribute `type` of the callable says for
            which columns it is, if not for real ones: "count", "positive", ..., a name in `data.columns.TYPES`.
        prior: a name of `priors()`, a Pyro distribution of event (k,), or a callable that returns one.
        posterior: a name of `posteriors()`, or a module like a likelihood's, returning q(z|x).
        nets: "mlp" or "cnn" (option `channels=(32, 64)`; rows must be images).
        activation: "tanh", "relu", "silu", "elu" or "softplus".
        scale: standard deviation of normal and other scaled likelihoods: "row" (the net gives it, per row and feature),
            "feature", "shared", or a number in encoded units.
        scale_link: "softplus" or "log_variance" (Kingma & Welling 2013, appendix C.2, clamped).
        scale_floor: smallest learned scale, in encoded units: without one a likelihood grows without bound. A pixel's or
            instrument's resolution is a good choice.
        standardize: "feature" (zero mean, unit standard deviation), "center" or "none"; of real columns. Kept with the
            model.
        nullable: columns in which a cell may be missing (NaN), or True for those where one is; missing cells are left out
            of the likelihood, and the encoder sees which they are.
        covariates: columns that are given instead of modelled: p(x | z, c).
        group: column of groups; with prior="hierarchical" z has an effect of each (partial pooling).
        label: column of classes, which may be missing: a discrete site y, semi-supervised (Kingma et al. 2014, M2).
        weights: "point", or "normal": all weights and biases of the decoder's net get a prior N(0, weight_scale^2), option
            `weight_scale=1.0`, and a mean-field normal posterior, whose means are the net's parameters (full variational
            Bayes: Kingma & Welling 2013, appendix F). Numbers of the likelihood that are learned beside the net, such as a
            scale for each feature, stay point estimates, as do the encoder's weights.
        schema: a `Schema` to use instead of one made from `data`; says which columns are nullable, covariates, group and
            label, and may say the likelihood of each.
        seed: of the initial weights.
        options: of the parts, by their names: `components`, `rank`, `flow`, `concentration`, `channels`, ...;
            `label_weight` of the classifier's log probability in training (default 1).

    Returns: a `VAE` with initial weights, to be fitted by `fit`.

    Raises: OptionError, DataError.

    Example:
        >>> import numpy as np
        >>> vae = build(np.random.RandomState(0).randn(20, 3), latent=2, hidden=(16,), prior="mixture")
        >>> vae.decoder(torch.zeros(1, 2)).event_shape
        torch.Size([3])
    """
    missing, given = _columns(nullable), _columns(covariates)
    if likelihood in ("bernoulli", "continuous_bernoulli"):
        standardize = "none"
    if schema is None:
        roles: dict[str, Any] = {"covariates": given, "group": group, "label": label}
        if likelihood == "infer":
            schema = Schema.infer(data, standardize=standardize, **roles)
        else:
            schema = _schema(data, likelihood, standardize, missing, roles)
    elif missing or given or group or label:
        raise OptionError(
            "schema: got one beside nullable, covariates, group or label, expected the schema to say these"
        )
    if likelihood == Default.likelihood and schema.likelihoods is not None:
        likelihood = "infer"
    chosen = Default(
        latent=whole("latent", latent),
        hidden=sizes("hidden", hidden),
        likelihood=likelihood,  # a name, or one of the other kinds
        prior=prior,
        posterior=posterior,
        nets=nets,
        activation=activation,
        scale=scale,
        scale_link=scale_link,
        scale_floor=scale_floor,
        standardize=standardize,
        nullable=missing,
        covariates=given,
        group=group,
        label=label,
        weights=weights,
        seed=seed,
    )
    return assemble(schema, {**vars(chosen), **options}, lambda: schema.tensors(data))


def assemble(schema: Schema, chosen: dict[str, Any], rows: Callable[[], Any] | None = None) -> VAE:
    """The model that `build` makes of these options, with fresh weights.

    Args:
        rows: gives the training rows, for parts that start from some.
    """
    names = [field.name for field in fields(Default)]
    of = Default(**{name: chosen[name] for name in names})
    options = Options({name: value for name, value in chosen.items() if name not in names})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(whole("seed", of.seed, None) & 0x7FFFFFFFFFFFFFFF)
        nets = options.make(choose("nets", of.nets, NETS), schema, of.hidden, of.activation)
        encoder_net, decoder_net = nets
        vae = _programs(schema, of, options, encoder_net, decoder_net, rows)
    options.refuse_unused()
    vae.recipe = _recipe(chosen)
    return vae


OWN = ("likelihood", "prior", "posterior")
"""What may be an object of the user's in the place of a name."""


def _recipe(chosen: dict[str, Any]) -> dict[str, Any]:
    """How a model was made, in names and numbers; "own" says which arguments were objects, and what these are called."""
    own = {name: _called(chosen[name]) for name in OWN if not _named(chosen[name])}
    rest = {name: value for name, value in chosen.items() if name not in own}
    if isinstance(own.get("likelihood"), dict):
        rest["likelihood"] = {column: of for column, of in chosen["likelihood"].items() if isinstance(of, str)}
    return {"kind": "build", **rest, **({"own": own} if own else {})}


def _called(part: Any) -> Any:
    if isinstance(part, dict):
        return {column: called(of) for column, of in part.items() if not isinstance(of, str)}
    return called(part)


def own_parts(vae: VAE) -> dict[str, Any]:
    """The objects that stand in a model in the place of names, as arguments that `assemble` makes the same model of."""
    family, own = vae.decoder.family, (vae.recipe or {}).get("own", {})
    parts = {"prior": vae.prior, "posterior": vae.encoder.family, "likelihood": lambda features: family}
    columns = own.get("likelihood")
    if isinstance(columns, dict):
        parts["likelihood"] = {name: of for name, of in _by_column(vae).items() if name in columns}
    return {name: parts[name] for name in own}


def _by_column(vae: VAE) -> dict[str, Callable[[int], Any]]:
    """For each column a factory of its family, the same for columns of the same family."""
    assert vae.schema is not None
    family, names = vae.decoder.family, vae.schema.names
    groups = [(family, range(len(names)))]
    if isinstance(family, Mixed):
        groups = list(zip(family.families, family.columns.split(family.sizes)))
    return {names[int(j)]: make for f, columns in groups for make in [lambda d, f=f: f] for j in columns}


def _programs(
    schema: Schema, of: Default, options: "Options", encoder_net: Net, decoder_net: Net, rows: Callable[[], Any] | None
) -> VAE:
    k, d = of.latent, schema.width
    heads = families.Heads(of.scale, of.scale_link, of.scale_floor, options)
    likelihood = families.likelihood(schema, _choice(schema, of.likelihood, options), heads)
    posterior: Any = of.posterior
    if _named(posterior):
        posterior = options.make(factory("posterior", posterior, POSTERIORS), k, of.scale_link)
    posterior = _family("posterior", posterior)
    inputs = Inputs(schema)
    given = None if schema.covariates is None else Inputs(schema.covariates)
    beyond = (0 if given is None else given.width) + _classes(schema)  # what the nets see of c and y
    encoder = Encoder(inputs, encoder_net(inputs.width + beyond, width(posterior, k)), posterior, given)
    decoder = Decoder(decoder_net(k + beyond, width(likelihood, d)), likelihood, given)

    def features() -> Tensor:
        if rows is None:  # weights come from a file
            return torch.zeros(1, inputs.width + beyond)
        batch = rows().rows(slice(ROWS))
        y = torch.full((len(batch.x), _classes(schema)), 1 / max(_classes(schema), 1))
        return beside(encoder.features(batch.x, batch.mask, batch.c), y)

    first = next((m for m in decoder.net.modules() if isinstance(m, nn.Linear)), None)
    groups = 0 if schema.group is None else len(schema.group.levels)
    setting = Setting(
        k,
        encoder=encoder,
        rows=features,
        covariates=0 if given is None else given.width,
        groups=groups,
        first_layer=first,
    )
    vae = VAE(encoder, decoder, _prior(of.prior, setting, options, given), schema)
    decoder.weights, encoder.weights = options.make(choose("weights", of.weights, WEIGHTS), decoder.net)
    if decoder.weights is not None and isinstance(vae.prior, Shrinkage):
        raise OptionError(
            f"weights: got {of.weights!r} with prior={of.prior!r}, which is a prior on weights too; expected one of the two"
        )
    if schema.label is not None:
        classifier = encoder_net(inputs.width + beyond - _classes(schema), _classes(schema))
        weight = options.take("label_weight", 1.0)
        vae.classes = Classes(inputs, classifier, _classes(schema), given, weight)
    if hasattr(vae.prior, "global_sites"):
        with torch.no_grad(), _beside(vae.prior):
            sites = poutine.trace(vae.prior.global_sites).get_trace().nodes
        if latent_sites(sites):
            with _beside(vae.prior):
                encoder.shared = MeanFieldShared(vae.prior.global_sites)
    return vae


def _beside(part: Any) -> Any:
    """Make tensors where a part has its own: it may be the user's, in a model that is otherwise laid out on "meta"."""
    held = [*part.parameters(), *part.buffers()] if isinstance(part, nn.Module) else []
    return held[0].device if held else nullcontext()


def priors() -> dict[str, str]:
    """The priors that `build` takes by name, each in a line.

    Returns: {name: what it is}.

    Example:
        >>> sorted(priors())[:3]
        ['ard', 'bernoulli', 'categorical']
    """
    return {name: prior.text for name, prior in PRIORS.items()}


def likelihoods() -> dict[str, str]:
    """The likelihoods that `build` takes by name, each in a line, with the type of column that it is for.

    Returns: {name: what it is}.

    Example:
        >>> likelihoods()["bernoulli"]
        'Bernoulli (Kingma & Welling 2013, C.1); boolean columns'
    """
    return {name: f"{of.text}; {of.type} columns" for name, of in families.LIKELIHOODS.items()}


def posteriors() -> dict[str, str]:
    """The posteriors that `build` takes by name, each in a line.

    Returns: {name: what it is}.

    Example:
        >>> sorted(posteriors())[:3]
        ['bernoulli', 'categorical', 'delta']
    """
    return {name: posterior.text for name, posterior in POSTERIORS.items()}


ROWS = 4096
"""Training rows that a part may start from."""


class Options(dict):
    """Options by name, each handed to the factories whose signature names it; none may be left over."""

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        self.used: set[str] = set()

    def make(self, factory: Callable, *args: Any) -> Any:
        """`factory(*args)` with those options that are its keyword-only arguments."""
        names = keywords(factory)
        self.used |= names
        return factory(*args, **{name: self[name] for name in names & self.keys()})

    def take(self, name: str, default: Any) -> Any:
        """One option."""
        self.used.add(name)
        return self.get(name, default)

    def refuse_unused(self) -> None:
        """Raises: OptionError for options that no part took."""
        if left := sorted(self.keys() - self.used):
            known = f"those of these parts are {sorted(self.used)}" if self.used else "these parts have none"
            raise OptionError(f"build: got the options {left}, which no part of this model takes; {known}")


def keywords(factory: Callable) -> set[str]:
    """The keyword-only arguments of a factory: its options."""
    return {name for name, p in signature(factory).parameters.items() if p.kind is Parameter.KEYWORD_ONLY}


def factory(kind: str, name: str, own: dict[str, Any]) -> Callable:
    """The factory of a part by name; another package may give one without a text."""
    found = part(kind, name, own)
    return getattr(found, "make", found)


def _columns(names: Any) -> Any:
    """Names of columns as a tuple, of one name too; a truth value as it is."""
    return names if isinstance(names, bool) else (names,) if isinstance(names, str) else tuple(names)


def _classes(schema: Schema) -> int:
    return 0 if schema.label is None else len(schema.label.levels)


def _named(part: Any) -> bool:
    return isinstance(part, str) or (isinstance(part, dict) and all(isinstance(value, str) for value in part.values()))


def sizes(name: str, value: Any) -> tuple[int, ...]:
    """Widths of layers, or an OptionError."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise OptionError(f"{name}: got {value!r}, expected a sequence of whole numbers such as (128,)")
    return tuple(whole(name, size) for size in value)


def _schema(
    data: Any, likelihood: Any, standardize: str, nullable: bool | Sequence[str], roles: dict[str, Any]
) -> Schema:
    """Columns of the types that their likelihoods are for; those that a dict leaves out are inferred."""
    if not isinstance(likelihood, dict):
        kind = column_type(likelihood)
        if kind == "real":
            return Schema.fit(data, standardize, nullable=nullable, **roles)
        name = likelihood if isinstance(likelihood, str) else "own"
        types = {**LIKELIHOOD_TYPES, name: kind}
        return Schema.fit(data, standardize, likelihood=name, nullable=nullable, likelihood_types=types, **roles)
    names = {column: choice if isinstance(choice, str) else f"column {column}" for column, choice in likelihood.items()}
    types = {**LIKELIHOOD_TYPES, **{names[column]: column_type(choice) for column, choice in likelihood.items()}}
    return Schema.fit(data, standardize, likelihood=names, nullable=nullable, likelihood_types=types, **roles)


def column_type(likelihood: Any) -> str:
    """The type of column that a likelihood is for, by its name, its own attribute `type`, or its support."""
    if not callable(likelihood):
        return getattr(part("likelihood", likelihood, families.LIKELIHOODS), "type", "real")
    if isinstance(own := getattr(likelihood, "type", None), str):  # of a module it is a method
        return own
    if likelihood is dist.VonMises:  # which says that its support is all real numbers
        return "angle"
    support = getattr(likelihood, "support", None) if isinstance(likelihood, type) else None
    return SUPPORTS.get(repr(support), "real")


SUPPORTS = {
    repr(constraint): kind
    for constraint, kind in (
        (constraints.positive, "positive"),
        (constraints.nonnegative, "positive"),
        (constraints.nonnegative_integer, "count"),
        (constraints.unit_interval, "unit"),
        (constraints.boolean, "boolean"),
    )
}


def _choice(schema: Schema, likelihood: Any, options: "Options") -> Any:
    """Every column's likelihood, as `families.likelihood` takes it."""
    if likelihood == "infer":
        likelihood = {}
    if isinstance(likelihood, dict):
        named = schema.likelihoods or (Default.likelihood,) * schema.width
        given = () if schema.covariates is None else schema.covariates.names  # their names tell their types alone
        if unknown := sorted(likelihood.keys() - {*schema.names, *given}):
            raise OptionError(f"likelihood: got the columns {unknown}, expected some of {list(schema.names)}")
        likelihood = dict(zip(schema.names, named)) | {c: v for c, v in likelihood.items() if c in schema.names}
    for choice in likelihood.values() if isinstance(likelihood, dict) else (likelihood,):
        if isinstance(choice, str):
            options.used |= keywords(factory("likelihood", choice, families.LIKELIHOODS))
    return likelihood


def _family(name: str, family: Any) -> Any:
    if not callable(family) or not (hasattr(family, "outputs") or hasattr(family, "width")):
        raise OptionError(f"{name}: got {family!r}, expected a name or a module with .outputs, its inputs per feature")
    return family


def _prior(prior: Any, setting: Setting, options: Options, covariates: Any) -> Any:
    if _named(prior):
        return options.make(factory("prior", prior, PRIORS), setting)
    if isinstance(prior, torch.distributions.Distribution):
        if not isinstance(prior, TorchDistributionMixin):
            raise OptionError(f"prior: got {prior!r} of torch.distributions, expected one of pyro.distributions")
        if prior.event_shape != (setting.latent,):
            batch, event = tuple(prior.batch_shape), tuple(prior.event_shape)
            raise OptionError(
                f"prior: got a {type(prior).__name__} of batch shape {batch} and event shape {event}, expected event shape "
                f"({setting.latent},), the latent dimensions; .to_event(1) declares them"
            )
        return lambda: prior
    return prior
