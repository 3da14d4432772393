"""Simulation-based calibration: uniform for exact guides of several kinds of model, and what each planted error does."""

import copy
import re

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import ppl_vae as pv
from ppl_vae.criticism.sbc import Ranks, rank_of_first, sbc
from ppl_vae.model.linear import PPCA

RANDOM = np.random.RandomState(0)
X = RANDOM.randn(300, 3) @ RANDOM.randn(3, 6) + 0.5 * RANDOM.randn(300, 6)
GOOD, BAD = 1e-3, 1e-6


class Guide(torch.nn.Module):
    """q(z|x) from a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.fixture
def ppca():
    return PPCA(3).fit(X)


def prior_of(x):
    return dist.Normal(x.new_zeros(*x.shape[:-1], 3), 1.0).to_event(1)


def test_ranks_of_an_exact_guide_are_uniform(ppca):
    """Four p-values, together above the verdict's level: fails by chance at 1e-3."""
    found = sbc(ppca)
    assert found.ranks.shape == (1000, 4) and found.names == ("z[0]", "z[1]", "z[2]", "log p(x|z)")
    assert found.ranks.min() >= 0 and found.ranks.max() <= 99
    assert (found.p_values() > GOOD / 4).all()
    assert (
        re.search("calibrated as far as .* at level 0.001 ", found.verdict)
        and (found.table["finding"] == "calibrated").all()
    )


def test_a_guide_that_is_too_narrow_is_rejected_on_every_quantity(ppca):
    ppca.encoder.scale *= 0.7
    found = sbc(ppca)
    assert (found.p_values() < BAD).all()
    assert (found.table["spread"][:3] > 1.1).all() and "too narrow" in found.table["finding"]["z[0]"]
    assert "4 of 4 quantities are not calibrated at level 0.001" in found.verdict


def test_a_guide_that_is_too_wide_or_off_is_rejected_and_named(ppca):
    wide = copy.deepcopy(ppca)
    wide.encoder.scale *= 1.4
    table = sbc(wide).table
    assert (table["p"] < BAD).all() and table["finding"]["z[0]"] == "too wide"
    exact = ppca.encoder
    ppca.encoder = Guide(lambda x: dist.Normal(exact(x).mean + 0.3 * exact.scale, exact.scale).to_event(1))
    table = sbc(ppca).table
    assert (table["p"][:3] < BAD).all() and table["finding"]["z[1]"].startswith("too large")


def test_the_prior_as_guide_passes_on_z_alone_and_fails_on_the_likelihood(ppca):
    """A full collapse of the guide (Modrak et al. 2023): three p-values above 1e-3: fails by chance at 3e-3."""
    ppca.encoder = Guide(prior_of)
    found = sbc(ppca)
    p = found.p_values()
    assert (p[:3] > GOOD).all() and p[3] < BAD
    assert "part of x is not used" in found.verdict


def test_the_prior_is_the_posterior_where_the_decoder_ignores_z(ppca):
    """All log p(x|z) of a row are equal then: their ranks are those of the noise that breaks ties."""
    ppca.encoder = Guide(prior_of)
    with torch.no_grad():
        ppca.decoder.linear.weight.zero_()
    assert (sbc(ppca).p_values() > GOOD).all()


def test_codes_of_equal_likelihood_tie_in_float32_too():
    """The first two codes have one likelihood, of equal numbers in one call of the decoder."""
    vae, *_ = bits(temperature=1.0, dtype=torch.float32)
    assert (sbc(vae, seed=2).p_values() > GOOD).all()


def bits(temperature, dtype=torch.float64):
    """Binary rows of 4 columns, one code of 4 as a one-hot vector, and its exact posterior by the sum over codes."""
    logits = torch.tensor([[2.0, -1.0, 0.5, 0.0], [2.0, -1.0, 0.5, 0.0], [-1.0, 1.0, 0.0, 1.5], [0.0, 0.0, -2.0, 1.0]])
    logits, prior = logits.to(dtype), torch.tensor([0.1, 0.4, 0.3, 0.2]).to(dtype).log()

    def decoder(z):
        return dist.Bernoulli(logits=z @ logits).to_event(1)

    def encoder(x):
        joint = prior + dist.Bernoulli(logits=logits).to_event(1).log_prob(x[..., None, :])
        return dist.OneHotCategorical(logits=joint / temperature)

    rows = (RANDOM.rand(50, 4) < 0.5).astype("float64" if dtype == torch.float64 else "float32")
    vae = pv.VAE(encoder, decoder, lambda: dist.OneHotCategorical(logits=prior), pv.Schema.of(rows))
    vae.register_buffer("like", logits)
    return vae, rows


def test_ranks_of_discrete_codes_are_uniform_and_equal_rows_have_ranks_of_their_own():
    vae, _ = bits(temperature=1.0)
    found = sbc(vae, num_simulations=2000)
    assert (found.p_values() > GOOD).all()
    assert len(np.unique(found.ranks, axis=0)) > 1900  # of at most 16 distinct rows
    sharp, _ = bits(temperature=0.3)
    assert sbc(sharp, num_simulations=2000).p_values().min() < BAD


WEIGHTS, NOISE = torch.tensor([2.0, -1.0, 0.5]).double(), 0.7


def linear(encoder, prior, frame, **schema):
    vae = pv.VAE(
        encoder, lambda z: dist.Normal(z * WEIGHTS, NOISE).to_event(1), prior, pv.Schema.fit(frame, "none", **schema)
    )
    vae.register_buffer("like", WEIGHTS)
    return vae


def posterior(x, mask, loc):
    """Of z ~ N(loc, 1) given the observed cells of x ~ N(WEIGHTS z, NOISE^2)."""
    precision = 1 + (mask * WEIGHTS**2).sum(-1, keepdim=True) / NOISE**2
    mean = (loc + (mask * x * WEIGHTS).sum(-1, keepdim=True) / NOISE**2) / precision
    return dist.Normal(mean, precision**-0.5).to_event(1)


@pytest.mark.parametrize("exact", [True, False])
def test_simulated_rows_have_the_holes_of_the_rows_given(exact):
    frame = pd.DataFrame(RANDOM.randn(60, 3), columns=list("abc"))
    frame["a"] = frame["a"].mask(RANDOM.rand(60) < 0.5)

    def encoder(x, mask):
        return posterior(x, mask.double() if exact else 1.0, 0.0)

    vae = linear(encoder, lambda: dist.Normal(torch.zeros(1).double(), 1.0).to_event(1), frame, nullable=["a"])
    p = sbc(vae, given=frame).p_values()
    assert (p > GOOD).all() if exact else (p < BAD).all()
    whole = sbc(vae)  # without holes both encoders are the same
    assert (whole.p_values() > GOOD).all()


@pytest.mark.parametrize("exact", [True, False])
def test_simulated_rows_have_the_covariates_of_the_rows_given(exact):
    frame = pd.DataFrame(RANDOM.randn(60, 3), columns=list("abc")).assign(age=RANDOM.randn(60))

    def encoder(x, c):
        return posterior(x, 1.0, 4 * c if exact else 0.0)

    vae = linear(encoder, lambda c: dist.Normal(4 * c, 1.0).to_event(1), frame, covariates=["age"])
    p = sbc(vae, given=frame).p_values()
    assert (p > GOOD).all() if exact else p.min() < BAD
    with pytest.raises(pv.OptionError, match="given: got nothing, expected rows with the columns"):
        sbc(vae)


@pytest.mark.parametrize(
    "options",
    [
        {"prior": "hierarchical", "group": "site"},
        {"label": "site"},
        {"prior": "enumerated_mixture"},
        {"prior": "ard"},
        {"posterior": "iaf"},
    ],
)
def test_models_with_further_sites(options):
    frame = pd.DataFrame(RANDOM.randn(40, 3), columns=list("abc"))
    if "site" in options.values():
        frame = frame.assign(site=RANDOM.choice(["u", "v"], 40))
    vae = pv.build(frame, latent=2, hidden=(4,), **options)
    found = sbc(vae, 100, 19, given=frame)
    assert found.ranks.shape == (100, 3) and found.ranks.min() >= 0 and found.ranks.max() <= 19
    assert np.array_equal(found.ranks, sbc(vae, 100, 19, given=frame).ranks)


def test_a_simulation_is_the_same_however_many_there_are(ppca):
    some, more = sbc(ppca, 100, 19), sbc(ppca, 150, 19)
    assert np.array_equal(some.ranks, more.ranks[:100])
    assert not np.array_equal(some.ranks, sbc(ppca, 100, 19, seed=1).ranks)
    assert np.abs(np.corrcoef(some.ranks[:, 0], sbc(ppca, 100, 19, seed=1).ranks[:, 0])[0, 1]) < 0.5


def test_the_callers_generators_are_left_alone(ppca):
    before = torch.get_rng_state()
    sbc(ppca, 20, 9)
    assert torch.equal(before, torch.get_rng_state())


def test_ranks_by_hand():
    values = torch.tensor([[1.0, 1.0, 5.0], [0.0, 1.0, 6.0], [2.0, 1.0, 7.0], [0.5, 0.0, 9.0]])[:, None]
    assert rank_of_first(values, torch.tensor([[0.0, 0.0, 0.99]])).tolist() == [[2, 1, 0]]
    assert rank_of_first(values, torch.tensor([[0.99, 0.34, 0.0]])).tolist() == [[2, 2, 0]]
    assert rank_of_first(values, torch.tensor([[0.99, 0.99, 0.0]])).tolist() == [[2, 3, 0]]


def test_the_chi_square_test_is_scipys_and_bins_may_be_unequal():
    ranks = RANDOM.randint(0, 23, (400, 2))
    found = Ranks(ranks, ("a", "b"), 22)
    assert np.allclose(found.p_values(23), [stats.chisquare(np.bincount(r, minlength=23)).pvalue for r in ranks.T])
    counts, expected = found.counts(5)
    assert np.allclose(expected, np.array([5, 5, 4, 5, 4]) * 400 / 23) and counts.sum() == 800
    assert counts[0, 0] == (ranks[:, 0] < 5).sum()
    even = np.array([Ranks(RANDOM.randint(0, 23, (100, 1)), ("a",), 22).p_values(5)[0] for _ in range(300)])
    assert stats.kstest(even, "uniform").pvalue > 1e-4
    with pytest.raises(pv.OptionError, match="bins: got 24"):
        found.counts(24)


def test_what_has_no_ranks_is_refused():
    with pytest.raises(pv.OptionError, match="point posterior"):
        sbc(pv.build(X, posterior="delta"))
    with pytest.raises(pv.OptionError, match="improper prior"):
        sbc(pv.build(X, posterior="delta", prior="flat", scale=1.0))
    with pytest.raises(pv.OptionError, match="num_simulations: got 3"):
        sbc(PPCA(1).fit(X), 3)
