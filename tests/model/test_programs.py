"""Two plain functions are fitted, scored, sampled and saved as a VAE is."""

import copy
from contextlib import nullcontext
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

import ppl_vae as pv

X = np.random.RandomState(0).randn(60, 4).astype(np.float32)


def nets(seed: int = 0) -> nn.ModuleDict:
    torch.manual_seed(seed)
    return nn.ModuleDict({"encoder": nn.Linear(4, 4), "decoder": nn.Linear(2, 4)})


def encoded(of: Any, x: Any) -> Any:
    loc, raw = of["encoder"](x).chunk(2, -1)
    return dist.Normal(loc, nn.functional.softplus(raw)).to_event(1)


def pair(of: Any, seen: list[str] | None = None, **options: Any) -> pv.Programs:
    """As one writes them for Pyro's own SVI, with names of one's own."""

    def model(x):
        with pyro.plate("data", len(x)):
            code = pyro.sample("code", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("row", dist.Normal(of["decoder"](code), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("code", encoded(of, x))

    return pv.Programs(model, guide, of, **{"obs": "row", "local": ("code",), "schema": pv.Schema.fit(X), **options})


class Encoder(nn.Module):
    def __init__(self, of: Any) -> None:
        super().__init__()
        self.of = of

    def forward(self, x: Any) -> Any:
        return encoded(self.of, x)


class Decoder(nn.Module):
    def __init__(self, of: Any) -> None:
        super().__init__()
        self.net = of["decoder"]

    def forward(self, z: Any) -> Any:
        return dist.Normal(self.net(z), 1.0).to_event(1)


def parts(of: Any) -> pv.VAE:
    """The same two programs as a VAE of parts."""
    prior = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    return pv.VAE(Encoder(of), Decoder(of), lambda: prior, pv.Schema.fit(X))


def test_they_are_the_vae_of_the_same_parts():
    """Same noise, same steps, same scores: names are all that differs."""
    programs, vae = pair(nets()), parts(nets())
    histories = [pv.fit(one, X, epochs=5, lr=1e-2, progress=False)["bound"] for one in (programs, vae)]
    assert np.array_equal(*histories) and histories[0][-1] > histories[0][0]
    for scoring in ("reconstruction_probability", "elbo", "iwae"):
        assert np.array_equal(*(pv.score(one, X, scoring, num_draws=8).values for one in (programs, vae)))
    for read in (pv.encode, pv.reconstruct, lambda m, x: pv.decode(m, np.ones((3, 2)))):
        assert np.allclose(read(programs, X), read(vae, X), atol=1e-6)
    for seed in (0, 1):
        assert np.array_equal(pv.generate(programs, 6, seed).x, pv.generate(vae, 6, seed).x)


def test_rows_are_reconstructed_without_a_schema_in_their_own_units():
    of = nets()
    programs = pair(of, schema=None)
    with torch.no_grad():
        means = of["decoder"](encoded(of, torch.as_tensor(X)).mean).numpy()
    assert np.allclose(pv.reconstruct(programs, X), means, atol=1e-6)
    assert pv.reconstruct(programs, X, num_draws=2).shape == X.shape


def test_missing_cells_are_left_out_of_the_likelihood():
    holes = np.where(np.random.RandomState(1).rand(*X.shape) < 0.3, np.nan, X).astype(np.float32)
    schema = pv.Schema.fit(holes, nullable=True)
    programs, vae = pair(nets(), schema=schema), parts(nets())
    vae.schema = schema
    assert np.isnan(holes).any()
    assert np.array_equal(*(pv.score(one, holes, num_draws=8).values for one in (programs, vae)))
    assert np.array_equal(*(np.asarray(pv.impute(one, holes).frame) for one in (programs, vae)))


def test_sites_of_all_rows_and_further_ones_of_each_are_sampled():
    of = nets()

    def model(x, n=None):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.1))
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(of["decoder"](z) + shift[..., None], scale[..., None]).to_event(1), obs=x)

    def guide(x):
        pyro.sample("scale", dist.LogNormal(0.0, 0.05))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", encoded(of, x))
            pyro.sample("shift", dist.Normal(z[..., 0], 1.0))

    programs = pv.Programs(model, guide, of, local=("z", "shift"))
    pv.fit(programs, X, epochs=2, progress=False)
    drawn = pv.draws(programs, X, 5)
    assert set(drawn.sites) == {"z", "shift"} and drawn.sites["shift"].shape == (5, 60)
    assert drawn.shared["scale"].shape[0] == 5
    assert pv.generate(programs, 7).x.shape == (7, 4)  # by `n`, no schema needed


def test_posterior_and_evidence_are_those_of_the_linear_model():
    """A linear decoder has both in closed form; Laplace is exact there, and annealing does without the guide.

    Errors of 20 rows: 5 standard errors fail once in 1e5 (the log of a mean of 64 is nearly normal here).
    """
    programs, few = pair(nets()), X[:20]
    weight, bias = (p.detach().double() for p in programs.module["decoder"].parameters())
    precision = torch.eye(2, dtype=torch.double) + weight.T @ weight
    x = programs.batch(few).x.double()
    found = pv.posterior(programs, few, "laplace", num_draws=4)
    mean = torch.linalg.solve(precision, weight.T @ (x - bias).T).T
    log_q = dist.MultivariateNormal(mean, precision_matrix=precision).log_prob(found.z.double())
    assert torch.allclose(torch.as_tensor(found.log_q), log_q, atol=1e-3)  # the mode is sought in float32
    covariance = torch.eye(4, dtype=torch.double) + weight @ weight.T
    log_p = dist.MultivariateNormal(bias, covariance).log_prob(x) - np.log(programs.schema.scale).sum()
    evidence = pv.log_evidence(programs, few, "ais", num_draws=64)
    assert (abs(evidence.log_p - log_p.numpy()) < 5 * evidence.mcse + 1e-6).all()


def test_saved_ones_come_back_with_functions_and_nets_handed_in(tmp_path):
    programs = pair(nets())
    pv.fit(programs, X, epochs=2, progress=False)
    pv.save(programs, tmp_path)
    fresh = nets(1)
    other = pair(fresh)
    with pytest.raises(pv.OptionError, match=r"expected load\(path, guide=.*model=.*module="):
        pv.load(tmp_path)
    loaded = pv.load(tmp_path, **dict(zip(("model", "guide"), other.functions)), module=fresh)
    assert np.array_equal(pv.score(loaded, X).values, pv.score(programs, X).values)


def weighed(plate: Any = pyro.plate, handler: Any = nullcontext, of: Any = None) -> pv.Programs:
    """Rows in another plate or under a handler."""
    of = of or nets()

    def model(x):
        with plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            with handler():
                pyro.sample("x", dist.Normal(of["decoder"](z), 1.0).to_event(1), obs=x)

    def guide(x):
        with plate("data", len(x)):
            pyro.sample("z", encoded(of, x))

    return pv.Programs(model, guide, of)


def subsampled(name: str, n: int) -> Any:
    return pyro.plate(name, 1000, subsample=torch.arange(n))


def foreign() -> pv.Programs:
    """Programs that register a net which is not among those handed in."""
    of, other = nets(), nn.Linear(4, 4)
    programs = weighed(of=of)
    model, guide = programs.functions

    def wider(x):
        pyro.module("other", other)
        return model(x)

    return pv.Programs(wider, guide, of)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: weighed(subsampled), r"site 'z': got it under a scale of 500, .*expected the plate of the rows"),
        (lambda: weighed(handler=lambda: poutine.scale(scale=0.5)), "site 'x': got it under a scale of 0.5"),
        (lambda: weighed(handler=lambda: poutine.mask(mask=torch.tensor(False))), "site 'x': got it under a mask"),
        (foreign, "parameter 'weight': got it from a module that is no part"),
    ],
)
def test_what_a_fit_would_have_and_scores_would_not_is_refused(make, message):
    for use in (lambda one: pv.fit(one, X, epochs=1, progress=False), lambda one: pv.score(one, X)):
        with pytest.raises(pv.ProgramError, match=message):
            use(make())


def test_sites_that_are_summed_out_are_in_the_evidence():
    """A component of three, by enumeration: log p(x, z) of its mixture, by hand."""
    of = nets()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            k = pyro.sample("k", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(of["decoder"](z) + k[..., None], 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", encoded(of, x))

    programs = pv.Programs(model, guide, of, local=("z", "k"))
    pv.fit(programs, X, objective="enumerate", epochs=1, progress=False)
    found, x = pv.draws(programs, X, 5), torch.as_tensor(X)
    with torch.no_grad():
        of_each = [dist.Normal(of["decoder"](found.z) + k, 1.0).to_event(1).log_prob(x) for k in range(3)]
        by_hand = torch.stack(of_each).logsumexp(0) - np.log(3) + dist.Normal(0.0, 1.0).log_prob(found.z).sum(-1)
    assert torch.allclose(found.log_lik + found.log_prior, by_hand.double(), atol=1e-4)


def test_parameters_of_pyros_own_are_trained_and_kept():
    """`pyro.param`, as Pyro's users write it: a shift of the mean, which scores after the fit have."""
    of = nets()

    def model(x):
        shift = pyro.param("shift", torch.zeros(4))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(of["decoder"](z) + shift, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", encoded(of, x))

    programs, far = pv.Programs(model, guide, of), X + 5
    history = pv.fit(programs, far, epochs=60, lr=0.1, valid=0.0, progress=False)
    found = pv.score(programs, far, "elbo").values.mean()
    plain = pv.Programs(lambda x: poutine.substitute(model, data={"shift": torch.zeros(4)})(x), guide, of)
    assert abs(found - history["bound"][-1]) < 0.5 and pv.score(plain, far, "elbo").values.mean() < found - 5


def rows_outside(x):
    pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(2))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(x, 1.0).to_event(1), obs=x)


def unnamed_inside(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("class", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(x, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: pv.Programs(3, print, nets()), "model: got int, expected a function"),
        (lambda: pv.Programs(print, nets(), nets()), "guide: got ModuleDict, expected a function"),
        (lambda: pv.Programs(print, print, {}), "module: got dict, expected the torch.nn.Module"),
        (lambda: pv.Programs(print, print, nets(), local="z"), "the latent ones in a tuple"),
        (lambda: pair(nets()).model(), "neither x nor n"),
        (lambda: pv.generate(pair(nets(), schema=None), 3), "got no schema, expected one, or `n`"),
        (lambda: copy.deepcopy(pair(nets())), "expected them made anew"),
        (
            lambda: pv.score(pv.Programs(rows_outside, rows_outside, nets()), X),
            "site 'z': got it outside the plate 'data'",
        ),
        (lambda: pv.score(pv.Programs(unnamed_inside, unnamed_inside, nets()), X), "site 'class': got it in the plate"),
    ],
)
def test_what_is_wrong_is_named(make, message):
    with pytest.raises(pv.PplVaeError, match=message.replace("(", r"\(")):
        make()
