"""The contract of parts, as checks that raise: for priors, likelihoods and posteriors of one's own. Used on all of ours.

Each check builds a small model around a part and raises an `AssertionError` that says what failed, or the library's own
error where the part cannot even be used. They have fixed seeds, so that a part passes always or never; the caller's random
state and Pyro's are left as they were. With another seed a sound part of up to 3 dimensions fails each of its two tests of
draws by chance at about `RATE`: over 100 seeds the smallest p-value was 0.007 for normals of 2 dimensions and 0.010 for
Student's t of 3 degrees of freedom in 3. In 4 dimensions, where neighbours are far, p-values are too small: a fifth were
below 0.1, and the smallest, of Laplace's distribution, was 6e-6. Draws that float32 rounds to an edge fail too, as those of
a beta with concentrations of 0.2 do.

    from ppl_vae.testing import check_prior

    def test_my_prior():
        check_prior(MyPrior(latent=3), latent=3)
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import combinations_with_replacement
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.testing.gof import volume_of_sphere
from pyro.poutine.util import site_is_subsample
from scipy import spatial, stats
from torch import Tensor, nn
from torch.distributions import biject_to, constraints

from ppl_vae.errors import DataError, OptionError, ProgramError, whole
from ppl_vae.infer.draws import draws
from ppl_vae.infer.objectives import BOUNDS
from ppl_vae.infer.objectives import objective as chosen_objective
from ppl_vae.infer.rules import base, draw
from ppl_vae.infer.scope import in_mode, unchecked
from ppl_vae.infer.training import fit
from ppl_vae.model.build import build, column_type
from ppl_vae.model.conditional import distribution, width
from ppl_vae.model.vae import call, global_sites
from ppl_vae.use.store import load, save

Report = dict[str, str]
"""What was checked, and what was found."""

RATE = 1e-6
"""A p-value below this is a failure."""
QUERIES, OTHERS = 4000, 60_000
"""Draws looked at, and draws among which their neighbours are looked for: a normaliser wrong by 10 % is 6 standard errors,
a scale wrong by 5 % also."""
MOST = 4
"""Dimensions: beyond, neighbours are far, and sound families fail."""
STEPS = (12, 60, 240)
"""Steps of each attempt of `check_fit`."""
DRAWS, GROUPS = 120, 40
"""Draws a row by which `check_fit` measures a bound, and the fewest groups of `particles` that these make."""
ERRORS = 3.0
"""Standard errors by which the bound has to rise: a model that learns nothing passes an attempt at about 1.7e-3 (Student's t
of 120 groups) to 2.4e-3 (of 40), one of the three attempts at no more than 0.7 %."""


# ---- data


class Example(NamedTuple):
    """Columns of one type.

    Attributes:
        make: a standard normal factor (n,) and a generator to own values (n,).
        outside: own values that likelihoods of such columns may have to refuse, the first one always.
    """

    make: Callable[[np.ndarray, np.random.Generator], Any]
    outside: tuple[Any, ...]


def _levels(factor: np.ndarray, noise: np.random.Generator) -> np.ndarray:
    return np.array(["low", "mid", "high"], object)[np.digitize(factor, [-0.5, 0.5])]


EXAMPLES: dict[str, Example] = {
    "real": Example(lambda f, noise: 1 + 2 * f, (np.inf, -3.0, 0.0)),
    "positive": Example(lambda f, noise: np.exp(f), (-1.0, 0.0)),
    "count": Example(lambda f, noise: noise.poisson(np.exp(1 + 0.5 * f)).astype(float), (0.5, -1.0)),
    "unit": Example(lambda f, noise: 1 / (1 + np.exp(-f)), (1.5, 0.0, 1.0)),
    "boolean": Example(lambda f, noise: (f > 0).astype(float), (0.5, 2.0)),
    "categorical": Example(_levels, ("unseen",)),
    "ordinal": Example(lambda f, noise: pd.Categorical(_levels(f, noise), ["low", "mid", "high"], True), ("unseen",)),
    "angle": Example(lambda f, noise: f, (np.inf,)),
    "pixel": Example(lambda f, noise: np.clip(np.round(127.5 + 60 * f), 0, 255), (0.5, 256.0)),
}


def example(types: dict[str, str], rows: int = 60, seed: int = 0) -> pd.DataFrame:
    """Rows whose columns a common factor moves, beside a covariate "age" and a group "site" of four levels.

    Args:
        rows: how many.
        seed: of their values.
        types: of each column, by its name.

    Returns: rows of these columns, "age" and "site".

    Example:
        >>> example({"weight": "positive", "kind": "categorical"}, rows=5).columns.tolist()
        ['weight', 'kind', 'age', 'site']
    """
    noise = np.random.default_rng(seed)
    factor = noise.normal(size=rows)
    frame = {}
    for j, (name, kind) in enumerate(types.items()):
        own = (1.0, -0.8, 0.6)[j % 3] * factor + 0.5 * noise.normal(size=rows)
        frame[name] = EXAMPLES[kind].make(own, noise)
    beside = {"age": factor + noise.normal(size=rows), "site": noise.integers(0, 4, rows).astype(str)}
    return pd.DataFrame({**frame, **beside})


# ---- the checks


def check_prior(prior: Any, *, latent: int = 2, seed: int = 0, **options: Any) -> Report:
    """Check a prior: shapes, draws against density, gradients, state, and that no posterior off its support is taken.

    Args:
        prior: as for `build`: a name, a Pyro distribution of event (k,), or a callable that returns one.
        latent: k, 1 to 4.
        seed: of everything.
        options: further ones of `build`.

    Returns: what was checked.

    Raises: AssertionError that says what failed; OptionError of a size or of `build`.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> sorted(check_prior(dist.Gumbel(torch.zeros(2), 1.0).to_event(1)))
        ['draws', 'gradients', 'keyed draws', 'shapes', 'spaces', 'state', 'vmap']
    """
    _check_size("latent", latent)
    rows = example({"a": "real", "b": "real", "c": "real"})
    roles: dict[str, Any] = {"covariates": ["age"], "group": "site"}

    def model(posterior: str) -> Any:
        return build(rows, latent=latent, hidden=(8,), prior=prior, posterior=posterior, seed=seed, **roles, **options)

    with _room(seed):
        vae = model("mean_field")
        batch = vae.batch(rows)
        few = batch.rows(slice(2))
        given = {"mask": None, "c": few.c, "group": few.group, "shared": global_sites(vae.prior)}
        with in_mode(vae, training=False):
            first: Any = poutine.trace(call).get_trace(vae.prior, **given)

        def prior_of(vae: Any) -> Any:  # given the sites that the first call drew, if any
            with in_mode(vae, training=False):
                return poutine.replay(call, first)(vae.prior, **given)

        p = first.nodes["_RETURN"]["value"]
        found = _check_shapes("prior", p, prior_of(vae), latent, (2,))
        found |= _check_vmap("prior", p)
        found |= _check_draws("prior", p)
        found |= _check_prior_gradients(vae, batch, latent)
        used, spaces = _check_spaces("prior", rows, model, SPACES.values())
        z = _values(p, (4,))
        alone = None if used else lambda vae: prior_of(vae).log_prob(z)
        return found | spaces | _check_state("prior", used or vae, rows, seed, alone)


def check_likelihood(likelihood: Any, *, features: int = 2, seed: int = 0, **options: Any) -> Report:
    """Check a likelihood: shapes, draws against density, gradients, state, and that rows off its support are refused.

    Args:
        likelihood: as for `build`: a name, a class of Pyro distributions, or a callable of d; its attribute `type`, if it
            is not for real columns, says for which ("count", "positive", ..., a name in `data.columns.TYPES`).
        features: d, 1 to 4.
        seed, options: as for `check_prior`.

    Returns: what was checked.

    Raises: AssertionError that says what failed; OptionError of a size; OptionError and DataError of `build`.

    Example:
        >>> import pyro.distributions as dist
        >>> check_likelihood(dist.Geometric)["outside"]
        "refused in 'x1': 0.5, -1.0"
    """
    _check_size("features", features)
    kind = column_type(likelihood)
    names = [f"x{j}" for j in range(features)]
    rows = example(dict.fromkeys(names, kind))[names]
    with _room(seed):
        vae = build(rows, latent=2, hidden=(8,), likelihood=likelihood, seed=seed, **options)
        with in_mode(vae, training=False):
            found = _check_family("likelihood", vae.decoder.family, features)
        found |= _check_outside(vae, rows, EXAMPLES[kind].outside)
        return found | _check_state("likelihood", vae, rows, seed)


def check_posterior(posterior: Any, *, latent: int = 2, seed: int = 0, **options: Any) -> Report:
    """Check a posterior family: shapes, draws against density, keyed draws, gradients, state, and priors off its support.

    Args:
        posterior: as for `build`: a name, or a module with `.outputs` or `.width`.
        latent, seed, options: as for `check_prior`.

    Returns: what was checked.

    Raises: AssertionError that says what failed; OptionError of a size or of `build`.

    Example:
        >>> sorted(check_posterior("full_rank"))
        ['draws', 'gradients', 'keyed draws', 'shapes', 'spaces', 'state', 'vmap']
    """
    _check_size("latent", latent)
    rows = example({"a": "real", "b": "real", "c": "real"})[["a", "b", "c"]]

    def model(prior: str) -> Any:
        return build(rows, latent=latent, hidden=(8,), prior=prior, posterior=posterior, seed=seed, **options)

    with _room(seed):
        vae = model("standard_normal")
        with in_mode(vae, training=False):
            found = _check_family("posterior", vae.encoder.family, latent)
            used, spaces = _check_spaces("posterior", rows, model, SPACES)
            x = vae.batch(rows).x
            z = _values(vae.encoder(x), (4,))
            alone = None if used else lambda vae: vae.encoder(x).log_prob(z)
            return found | spaces | _check_state("posterior", used or vae, rows, seed, alone)


def check_fit(
    vae: Any, data: Any, objective: Any = "elbo", *, particles: int = 1, lr: float = 2e-2, seed: int = 0
) -> Report:
    """Check that a model trains: its bound rises, every parameter moves, nothing turns NaN or infinite.

    A few steps on all rows at once. The bound of these rows is measured before and after with the same noise, which
    cancels most of its error; what is left is judged by its standard error over draws. Where the bound did not rise or a
    parameter stayed, the fit is tried again from the start with more steps.

    Args:
        vae: a model with its guide; left as it was.
        data: some tens of rows.
        objective, particles, lr, seed: as for `fit`.

    Returns: the gain in nats a row, its standard error, and the steps that were needed.

    Raises: AssertionError that says what failed; what `fit` raises.

    Example:
        >>> rows = example({"a": "real", "b": "count"})[["a", "b"]]
        >>> check_fit(build(rows, latent=2, hidden=(8,), likelihood={"b": "poisson"}), rows)["steps"]
        '12'
    """
    target = chosen_objective(objective, particles)
    start = {name: value.clone() for name, value in vae.state_dict().items()}
    options: dict[str, Any] = {"particles": particles, "lr": lr, "batch_size": len(data), "schedule": "constant"}

    def bounds() -> Tensor:
        number = max(DRAWS // particles, GROUPS) * particles
        groups = draws(vae, data, number, seed).log_weight.unflatten(0, (-1, particles))
        return BOUNDS[target.bound](groups.transpose(0, 1)).mean(1)

    faults: list[str] = []
    before = bounds()
    try:
        for steps in STEPS:
            vae.load_state_dict(start)
            history = fit(vae, data, objective=objective, epochs=steps, seed=seed, valid=0, progress=False, **options)
            gain = bounds() - before
            error = float(gain.std() / len(gain) ** 0.5)
            moved = {name: not torch.equal(p, start[name]) for name, p in vae.named_parameters()}
            finite = np.isfinite([*history["bound"], *history["grad_norm"], *gain.tolist()])
            assert finite.all(), "training: got a bound that is not finite"
            faults = [f"the parameter {name!r} did not move" for name, did in moved.items() if not did]
            if not gain.mean() > ERRORS * error:
                faults.append(f"the bound rose by {gain.mean():.3g}, with standard error {error:.2g}")
            if not faults:
                return {"gain": f"{gain.mean():.3g}", "error": f"{error:.2g}", "steps": f"{steps}"}
    finally:
        vae.load_state_dict(start)
    raise AssertionError(f"training: after {STEPS[-1]} steps {'; '.join(faults)}")


# ---- what they are made of

SPACES = {
    "standard_normal": "mean_field",
    "dirichlet": "dirichlet",
    "sphere": "power_spherical",
    "bernoulli": "bernoulli",
    "categorical": "categorical",
}
"""A prior on each space, and a posterior on the same."""


@contextmanager
def _room(seed: int) -> Iterator[None]:
    """Generators, parameter store and validation of Pyro's of one's own."""
    with torch.random.fork_rng(devices=[]), pyro.get_param_store().scope(), unchecked():
        torch.manual_seed(seed)
        yield


def _check_size(name: str, size: Any) -> None:
    if whole(name, size) > MOST:
        raise OptionError(
            f"{name}: got {size}, expected at most {MOST}, beyond which the tests of draws fail sound parts"
        )


def _values(p: Any, shape: tuple[int, ...]) -> Tensor:
    with torch.no_grad():
        return torch.zeros(*shape, *p.event_shape) if _improper(p) else p.sample(shape)


def _improper(p: Any) -> bool:
    return isinstance(base(p), dist.ImproperUniform)


def _check_shapes(kind: str, p: Any, again: Any, size: int, batch: tuple[int, ...]) -> Report:
    """Event (size,), draws and densities of any leading shape, and the same densities from the part called again."""
    assert isinstance(p, torch.distributions.Distribution), f"{kind}: got {p!r}, expected a Pyro distribution"
    event = tuple(p.event_shape)
    assert event == (size,), f"{kind}: got event shape {event}, expected ({size},); declare it with .to_event(1)"
    assert p.batch_shape in ((), batch), f"{kind}: got batch shape {tuple(p.batch_shape)}, expected () or {batch}"
    wide = p.expand((3, *batch))
    z = _values(wide, ()).expand(3, *batch, size)
    assert z.shape == (3, *batch, size), f"{kind}: got draws of shape {tuple(z.shape)}, expected {(3, *batch, size)}"
    log_p = wide.log_prob(z)
    got, expected = tuple(log_p.shape), (3, *batch)
    assert got == expected, f"{kind}: got log densities of shape {got}, expected {expected}"
    assert log_p.isfinite().all(), f"{kind}: got a log density of its own draw that is not finite"
    same = torch.equal(again.expand((3, *batch)).log_prob(z), log_p)
    assert same, f"{kind}: got other log densities of the same values from a second call of the part"
    support: Any = p.support
    assert support.check(z).all(), f"{kind}: got draws outside its own support, {support}"
    alone = torch.stack([p.expand(batch).log_prob(one) for one in z])
    assert torch.allclose(log_p, alone, rtol=1e-4, atol=1e-4), f"{kind}: log densities depend on the leading shape"
    return {"shapes": f"{(3, *batch, size)}"}


def _check_vmap(kind: str, p: Any) -> Report:
    z = _values(p, (5,))
    try:
        mapped = torch.func.vmap(p.log_prob)(z)
    except RuntimeError as error:
        raise AssertionError(f"{kind}: log_prob failed under torch.func.vmap: {error}") from error
    alone = torch.stack([p.log_prob(one) for one in z])
    assert torch.allclose(mapped, alone, rtol=1e-4, atol=1e-4), (
        f"{kind}: log_prob has other values under torch.func.vmap"
    )
    return {"vmap": "log_prob"}


def _check_family(kind: str, family: Any, size: int) -> Report:
    """A family at raw parameters (n, width)."""
    raw = 0.5 * torch.randn(64, width(family, size))
    p: Any = distribution(family, raw)
    found = _check_shapes(kind, p, distribution(family, raw), size, (64,))
    found |= _check_vmap(kind, p)
    try:
        first: Any = distribution(family, raw[0])
    except (IndexError, RuntimeError, ValueError) as error:
        what = f"raw parameters without leading dimensions, of shape {tuple(raw[0].shape)}"
        raise AssertionError(f"{kind}: failed on {what}, expected any leading dimensions to do: {error}") from error
    z = _values(p.expand((64,)), ())
    same = torch.allclose(first.log_prob(z[0]), p.log_prob(z)[0], rtol=1e-4, atol=1e-4)
    assert same, f"{kind}: the log density of a row depends on other rows, over the leading dimensions"
    found |= _check_draws(kind, first)
    return found | _check_family_gradients(kind, family, raw)


# ---- draws


def _check_draws(kind: str, p: Any) -> Report:
    """Draws of torch's generator and of keyed noise against the density."""
    if _improper(p) or isinstance(base(p), dist.Delta):
        what = "none, it is improper" if _improper(p) else "a point"
        return {"draws": what, "keyed draws": what}
    with torch.no_grad():
        number = QUERIES + OTHERS
        found = {"draws": p.sample((number,)), "keyed draws": _keyed(p.expand((number, *p.batch_shape)))}
        if found["keyed draws"] is None:
            rule = "register one with ppl_vae.infer.noise.draw.register"
            assert kind != "posterior", f"posterior: {type(base(p)).__name__} has no rule for keyed draws; {rule}"
        return {what: "no rule" if z is None else _check_follows(kind, p, what, z) for what, z in found.items()}


def _check_follows(kind: str, p: Any, what: str, z: Tensor) -> str:
    assert p.support.check(z).all(), f"{kind}: got {what} outside its own support, {p.support}"
    z = z[:, 0] if p.batch_shape else z
    p_value = min(_discrete(p, z) if p.support.is_discrete else _continuous(p, z), 1.0)
    assert p_value > RATE, f"{kind}: its {what} do not follow its log_prob (p = {p_value:.1g})"
    return f"p = {p_value:.2g}"


def _log_prob(p: Any, z: Tensor) -> Tensor:
    """(N,) of draws (N, k) from the first row of p."""
    return p.log_prob(z[:, None].expand(-1, *p.batch_shape, -1))[:, 0] if p.batch_shape else p.log_prob(z)


def _continuous(p: Any, z: Tensor) -> float:
    """The mass of the ball from a draw to the nearest of n others is exponential with mean 1 / n (Bickel & Breiman 1983).

    In unconstrained coordinates, which have no edge, of about one scale, and with tails shortened by asinh, lest neighbours
    be far; on the sphere by chords. All masses together are held against exponentials, and their mean against 1 where a
    coordinate, its square, a product of two, or the density is high or low. Pyro's own `auto_goodness_of_fit` takes
    distances within one sample, of which many are mutual: exact normals of 2 dimensions fail.
    """
    log_p = _log_prob(p, z[:QUERIES]).double()
    dim, y = z.shape[-1], z.double()
    support = p.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if type(support).__name__ == "_Sphere":
        dim -= 1
    else:
        transform = biject_to(support)
        y = transform.inv(y)
        slope = transform.log_abs_det_jacobian(y[:QUERIES], transform(y[:QUERIES]))
        low, middle, high = y[:QUERIES].quantile(torch.tensor([0.25, 0.5, 0.75]).double(), 0)
        scale = (high - low).clamp(min=1e-12)  # draws that do not differ fail as others do
        y, dim = (y - middle) / scale, y.shape[-1]
        stretch = scale.log() + 0.5 * y[:QUERIES].square().log1p()
        log_p, y = log_p + slope.reshape(QUERIES, -1).sum(1) + stretch.sum(1), y.asinh()
    distance, _ = spatial.cKDTree(y[QUERIES:].numpy()).query(y[:QUERIES].numpy())
    mass = OTHERS * log_p.exp() * volume_of_sphere(dim, torch.as_tensor(distance))
    ranks = stats.rankdata(np.column_stack([y[:QUERIES], log_p]), method="ordinal", axis=0) / (QUERIES + 1)
    where = np.column_stack([np.ones(QUERIES), 2 * ranks - 1])
    where = np.column_stack([a * b for a, b in combinations_with_replacement(where.T, 2)])
    errors = (mass.numpy() - 1) @ where / np.linalg.norm(where, axis=0)  # standard ones: a mass has variance 1
    return 2 * min(stats.kstest(mass.numpy(), "expon").pvalue, 2 * stats.norm.sf(abs(errors)).min() * len(errors))


def _discrete(p: Any, z: Tensor) -> float:
    """Pearson's test, column by column where these are independent; values expected fewer than 10 times are one cell."""
    apart = isinstance(p, torch.distributions.Independent) and not p.batch_shape
    p_values = []
    for j, column in enumerate(z.split(1, 1) if apart else [z]):
        values, counts = column.unique(dim=0, return_counts=True)
        log_mass = p.base_dist.log_prob(values.expand(-1, z.shape[1]))[:, j] if apart else _log_prob(p, values)
        expected = len(z) * log_mass.double().exp()
        assert expected.sum() < len(z) * 1.001, "draws: got masses whose sum is above 1"
        often = expected > 10
        rest = (len(z) - expected[often].sum()).clamp(min=0.0)
        got, want = counts[often].double(), expected[often]
        if rest > 10:
            got, want = torch.cat([got, counts[~often].sum()[None]]), torch.cat([want, rest[None]])
        p_values.append(float(stats.chi2.sf(((got - want) ** 2 / want).sum(), max(len(want) - 1, 1))))
    return min(p_values) * len(p_values)


def _keyed(p: Any) -> Tensor | None:
    """A draw by the rule of its family, from noise of torch's generator."""
    batch, event = tuple(p.batch_shape), tuple(p.event_shape)
    return draw(p, lambda *shape: torch.rand(*batch, *(shape or event), dtype=torch.float64).clamp(1e-12, 1 - 1e-12))


# ---- gradients


def _check_reached(kind: str, what: str, total: Tensor, leaves: dict[str, Tensor]) -> None:
    """Every number of every leaf has a gradient somewhere, and all are finite."""
    assert total.requires_grad or not leaves, f"{kind}: {what} has no gradient to {', '.join(leaves)}: detached"
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True) if leaves else ()
    for name, gradient in zip(leaves, gradients):
        assert gradient is not None and (gradient != 0).any(), f"{kind}: {what} has no gradient to {name}"
        assert gradient.isfinite().all(), f"{kind}: {what} has a gradient to {name} that is not finite"
        if name == RAW:
            dead = (gradient == 0).all(0).nonzero().flatten().tolist()
            assert not dead, f"{kind}: {what} has no gradient to the net's outputs {dead}"


RAW = "the net's outputs"


def _parameters(part: Any) -> dict[str, Tensor]:
    named = part.named_parameters() if isinstance(part, nn.Module) else ()
    return {f"the parameter {name!r}": p for name, p in named if p.requires_grad}


def _check_family_gradients(kind: str, family: Any, raw: Tensor) -> Report:
    raw = raw.clone().requires_grad_()
    leaves = {**({RAW: raw} if raw.shape[-1] else {}), **_parameters(family)}
    p: Any = distribution(family, raw)
    found = []
    if not isinstance(base(p), dist.Delta):
        log_p = _weighed(p.log_prob(_values(p, (4,))))
        _check_known(kind, log_p, list(leaves.values()))
        _check_reached(kind, "log_prob", log_p, leaves)
        found.append("log_prob")
    if p.has_rsample:
        keyed = _keyed(p := distribution(family, raw))
        _check_reached(kind, "a draw", _weighed(p.rsample() if keyed is None else keyed), leaves)
        found.append("draws")
    return {"gradients": " and ".join(found)}


def _check_prior_gradients(vae: Any, batch: Any, latent: int) -> Report:
    """The gradient of log p(z) and of the prior's other sites, at a z that is held; of draws where there are no others."""
    args, given = batch.arguments()
    leaves = _parameters(vae.prior)

    def sites(z: Tensor | None) -> dict[str, Any]:
        model = vae.model if z is None else poutine.condition(vae.model, data={"z": z})
        nodes = poutine.trace(model).get_trace(*args, **given).nodes
        return {n: s for n, s in nodes.items() if s["type"] == "sample" and n != "x" and not site_is_subsample(s)}

    z = sites(torch.zeros(len(batch.x), latent))["z"]["fn"]
    found = sites(_values(z, ()))
    log_p = torch.stack([_weighed(site["fn"].log_prob(site["value"])) for site in found.values()]).sum()
    if log_p.requires_grad:
        _check_known("prior", log_p, list(vae.parameters()))
    _check_reached("prior", "log_prob", log_p, leaves)
    if leaves and len(found) == 1 and z.has_rsample:
        _check_reached("prior", "a draw", _weighed(sites(None)["z"]["fn"].rsample()), leaves)
        return {"gradients": "log_prob and draws"}
    return {"gradients": "log_prob" if leaves else "no parameters"}


def _weighed(values: Tensor) -> Tensor:
    """A sum in which no two numbers cancel but by chance."""
    return (values * torch.randn_like(values)).sum()


def _check_known(kind: str, total: Tensor, known: list[Tensor]) -> None:
    """Every leaf of the graph is a parameter of the model, so that it is trained and saved."""
    ids, todo = {id(p) for p in known}, [total.grad_fn]
    seen: set[Any] = {None}
    while todo:
        node: Any = todo.pop()
        if node not in seen:
            leaf: Any = getattr(node, "variable", total)
            what = f"a tensor of shape {tuple(leaf.shape)} that takes gradients and is no parameter"
            assert leaf is total or id(leaf) in ids, f"{kind}: got {what}"
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]


# ---- state, support


def _check_state(kind: str, vae: Any, rows: Any, seed: int, alone: Callable[[Any], Tensor] | None = None) -> Report:
    """Weights put into another model give the same scores to the bit; so does a saved model, where it can be saved.

    Args:
        alone: scores of the part, where no model can be used that has it.
    """
    scores = alone or (lambda vae: draws(vae, rows, 4, seed).log_weight)
    before = scores(vae)
    assert before.isfinite().all(), f"{kind}: got a model whose log weights are not finite"
    other = copy.deepcopy(vae)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter))
    other.load_state_dict(vae.state_dict())
    same = torch.equal(scores(other), before)
    assert same, f"{kind}: got other scores from the same state_dict"
    if vae.recipe is None or "own" in vae.recipe:
        return {"state": "state_dict"}
    with TemporaryDirectory() as folder:
        save(vae, folder)
        same = torch.equal(scores(load(folder)), before)
    assert same, f"{kind}: got other scores once saved and loaded"
    return {"state": "state_dict, save and load"}


def _check_spaces(kind: str, rows: Any, model: Callable[[Any], Any], others: Iterable[str]) -> tuple[Any, Report]:
    """The first model that can be used, where each either draws z in the prior's support or is refused by its site."""
    goes: dict[str, Any] = {}
    refused = []
    for name in others:
        try:
            vae = model(name)
            finite = draws(vae, rows, 16).log_weight.isfinite().all()
        except ProgramError as error:
            assert "site 'z'" in str(error), f"{kind}: with {name!r} got an error that does not name the site: {error}"
            refused.append(name)
        except OptionError:  # one that wants more dimensions
            refused.append(name)
        else:
            assert finite, f"{kind}: with {name!r} got log weights that are not finite, expected a declared support"
            goes[name] = vae
    found = f"goes with {', '.join(goes) or 'none of these'}; refused {', '.join(refused)}"
    return next(iter(goes.values()), None), {"spaces": found}


def _check_outside(vae: Any, rows: pd.DataFrame, values: tuple[Any, ...]) -> Report:
    """Cells outside the type or the support are refused by `fit` and in scores, and the column is named."""
    try:
        draws(vae, rows, 1)
    except DataError as error:
        what = "a likelihood that is not for real columns needs an attribute `type` on what is given, not on its module"
        raise AssertionError(f"likelihood: refused all rows of the example; {what}: {error}") from error
    fitted, refused, column = copy.deepcopy(vae), [], rows.columns[-1]
    support = call(vae.decoder, torch.zeros(1, 2), shared=global_sites(vae.decoder)).support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    for number, value in enumerate(values):
        bad = rows.astype({column: object}).copy()
        bad.loc[3, column] = value
        bad = bad.astype({column: rows[column].dtype}) if not isinstance(value, str) else bad
        for what, use in (
            ("fit", lambda bad=bad: fit(fitted, bad, epochs=1, progress=False)),
            ("a score", lambda bad=bad: draws(vae, bad, 1)),
        ):
            try:
                use()
            except DataError as error:
                assert repr(column) in str(error), (
                    f"likelihood: {what} refused a value and did not name the column: {error}"
                )
                refused += [value] if what == "fit" else []
            else:
                in_support = number > 0 and bool(support.check(vae.batch(bad).x[3, -1]))
                assert in_support, f"likelihood: {what} took {value!r} in column {column!r}, which is outside {support}"
    return {"outside": f"refused in {column!r}: {', '.join(map(repr, refused))}"}
