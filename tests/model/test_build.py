import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae.model.families import LIKELIHOODS
from ppl_vae.options import FitOptions, ModelOptions

X = np.random.RandomState(0).rand(60, 6)


def test_the_defaults_are_written_once():
    import inspect

    for function, options in ((pv.build, ModelOptions), (pv.fit, FitOptions)):
        parameters = inspect.signature(function).parameters
        fields = options.__dataclass_fields__
        assert {n: f.default for n, f in fields.items()} == {n: parameters[n].default for n in fields}


IMAGES = {
    "real": lambda u: u,
    "positive": lambda u: u + 0.1,
    "unit": lambda u: u,
    "boolean": lambda u: (u > 0.5).astype(float),
    "count": lambda u: np.floor(8 * u),
    "categorical": lambda u: np.floor(3 * u),
    "ordinal": lambda u: np.floor(3 * u),
    "pixel": lambda u: np.floor(256 * u),
    "angle": lambda u: 3 * u,
}


@pytest.mark.parametrize("nets", ["mlp", "cnn"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("posterior", ["mean_field", "delta"])
def test_every_combination_trains_every_parameter(nets, likelihood, posterior):
    images = IMAGES[LIKELIHOODS[likelihood].type](np.random.RandomState(0).rand(30, 5, 4))
    if nets == "cnn" and likelihood in ("full_normal", "categorical", "von_mises"):
        with pytest.raises(pv.OptionError, match="nets='cnn': got"):
            pv.build(images, nets=nets, likelihood=likelihood)
        return
    prior = "flat" if posterior == "delta" else "standard_normal"
    vae = pv.build(images, latent=2, hidden=(8,), nets=nets, likelihood=likelihood, posterior=posterior, prior=prior)
    before = [p.detach().clone() for p in vae.parameters()]
    pv.fit(vae, images, epochs=2, progress=False)
    assert all(not torch.equal(a, b) for a, b in zip(before, vae.parameters()))
    assert pv.reconstruct(vae, images).shape == images.shape


def test_weights_are_a_function_of_the_seed_and_leave_the_generator_alone():
    state = torch.get_rng_state()
    a, b, c = pv.build(X, seed=1), pv.build(X, seed=1), pv.build(X, seed=2)
    assert torch.equal(state, torch.get_rng_state())
    assert all(map(torch.equal, a.parameters(), b.parameters()))
    assert not all(map(torch.equal, a.parameters(), c.parameters()))


def test_standardisation_is_for_the_normal_likelihood():
    assert pv.build(X).schema.scale is not None
    assert pv.build(X, likelihood="continuous_bernoulli").schema.loc is None


def test_parts_may_be_objects():
    prior = dist.Normal(torch.zeros(3), 2.0).to_event(1)

    class Laplace(torch.nn.Module):
        outputs = 2

        def forward(self, loc, raw):
            return dist.Laplace(loc, torch.nn.functional.softplus(raw) + 1e-3).to_event(1)

    vae = pv.build(X, latent=3, prior=prior, likelihood=lambda d: Laplace())
    assert vae.recipe["own"] == {"likelihood": "<lambda>", "prior": "Normal"} and "prior" not in vae.recipe
    assert isinstance(vae.decoder(torch.zeros(1, 3)).base_dist, dist.Laplace)
    history = pv.fit(vae, X, epochs=3, progress=False)
    assert np.isfinite(history["bound"]).all()
    assert pv.generate(vae, 5).x.shape == (5, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"likelihood": "gaussian"}, "likelihood: got 'gaussian', expected one of 'normal'"),
        ({"prior": "cauchy"}, "prior: got 'cauchy'"),
        ({"posterior": "flow"}, "posterior: got 'flow'"),
        ({"nets": "rnn"}, "nets: got 'rnn'"),
        ({"activation": "gelu"}, "activation: got 'gelu'"),
        ({"scale": "rows"}, "scale: got 'rows'"),
        ({"scale_link": "exp"}, "scale_link: got 'exp'"),
        ({"standardize": "minmax"}, "standardize: got 'minmax'"),
        ({"latent": 0}, "latent: got 0"),
        ({"latent": 2.5}, "latent: got 2.5"),
        ({"hidden": (8, -1)}, "hidden: got -1"),
        ({"hidden": 32}, "hidden: got 32, expected a sequence"),
        ({"seed": 1.5}, "seed: got 1.5"),
        ({"likelihood": None}, "likelihood: got None"),
        ({"likelihood": lambda d: d}, "likelihood: got 6, expected a module"),
        ({"posterior": torch.nn.Identity()}, "posterior: got Identity"),
        ({"prior": torch.distributions.Normal(0, 1)}, "of torch.distributions, expected one of pyro.distributions"),
        ({"layers": 3}, r"options \['layers'\]"),
        ({"nets": "cnn"}, r"rows of shape \(6,\)"),
    ],
)
def test_bad_options_say_what_was_got_and_expected(options, message):
    with pytest.raises(pv.OptionError, match=message):
        pv.build(X, **options)


def test_a_class_of_distributions_tells_the_type_of_its_columns():
    for family, x in (
        (dist.Gamma, X + 0.1),
        (dist.Exponential, X + 0.1),
        (dist.Weibull, X + 0.1),
        (dist.Poisson, np.floor(9 * X)),
    ):
        schema = pv.build(x, likelihood=family).schema
        assert set(schema.types) == {"positive" if family is not dist.Poisson else "count"}
    assert pv.build(X, likelihood=dist.Gumbel).schema.types is None


@pytest.mark.parametrize(("size", "event"), [(4, 1), (3, 0)])
def test_a_prior_of_another_shape_is_refused_by_name(size, event):
    with pytest.raises(pv.OptionError, match=r"prior: got a .* expected event shape \(3,\)"):
        pv.build(X, latent=3, prior=dist.Laplace(torch.zeros(size), 1.0).to_event(event))


def test_a_class_of_modules_is_a_likelihood_of_real_columns():
    class Own(torch.nn.Module):  # its attribute `type` is torch's, a cast
        outputs = 1

        def __init__(self, d):
            super().__init__()

        def forward(self, loc):
            return dist.Laplace(loc, 1.0).to_event(1)

    assert isinstance(pv.build(X, likelihood=Own).decoder.family, Own)
    assert set(pv.build(X, likelihood=dist.VonMises).schema.types) == {"angle"}


def test_one_column_by_its_name_alone():
    table = pd.DataFrame(X, columns=list("abcdef")).mask(X < 0.2)
    table["b"] = X[:, 1]
    schema = pv.build(table, covariates="b", nullable=True).schema
    assert schema.covariates.names == ("b",)
    only = table[["a", "b"]]
    assert pv.build(only, nullable="a").schema.nullable == ("a",)
