"""Rows drawn with their latents: from the prior's z through the likelihood, what rows share from its posterior."""

import numpy as np
import pandas as pd
import pytest
import torch

import ppl_vae as pv
from ppl_vae.criticism.simulation import pattern, replicates, simulate
from ppl_vae.infer.scope import reading
from ppl_vae.model.linear import PPCA

RANDOM = np.random.RandomState(0)
X = RANDOM.randn(60, 2) @ RANDOM.randn(2, 4) + 0.5 * RANDOM.randn(60, 4)


def within(vae, run):
    with reading(vae, 0):
        return run()


def test_rows_come_from_the_z_beside_them():
    """Moments of 4000 rows: residuals N(0, s^2) independent of z, each within 5 standard errors."""
    ppca = PPCA(2).fit(X)
    made = within(ppca, lambda: simulate(ppca, 4000, 3))
    z, residual = made.sites["z"][0], made.batch.x - made.sites["z"][0] @ ppca.loadings.T
    assert z.shape == (4000, 2) and made.shared == {}
    assert torch.all(z.mean(0).abs() < 5 / 4000**0.5) and torch.all((z.var(0) - 1).abs() < 5 * (2 / 4000) ** 0.5)
    noise = ppca.noise_variance
    assert torch.all((residual.var(0) / noise - 1).abs() < 5 * (2 / 4000) ** 0.5)
    assert torch.all((z.T @ residual / 4000).abs() < 5 * (noise / 4000) ** 0.5)
    few = within(ppca, lambda: simulate(ppca, 7, 3))
    assert torch.equal(few.batch.x, made.batch.x[:7]) and torch.equal(few.sites["z"], made.sites["z"][:, :7])


@pytest.fixture(scope="module")
def grouped():
    """Effects of two groups far apart, known: the guide of what rows share is at +-5, the prior's is N(0, 1) or so."""
    frame = pd.DataFrame({"x": RANDOM.randn(40), "group": np.repeat(["u", "v"], 20)})
    vae = pv.build(frame, latent=1, hidden=(), scale=0.1, standardize="none", prior="hierarchical", group="group")
    with torch.no_grad():
        vae.decoder.net[0].weight.fill_(1.0)
        vae.decoder.net[0].bias.zero_()
        vae.encoder.shared.loc["location"].fill_(0.0)
        vae.encoder.shared.loc["spread"].fill_(0.0)
        vae.encoder.shared.loc["offsets"].copy_(torch.tensor([[-5.0], [5.0]]))
        for raw in vae.encoder.shared.raw.values():
            raw.fill_(-10.0)
    return vae, frame


def test_what_rows_share_comes_from_the_guide_or_from_its_prior(grouped):
    vae, frame = grouped
    like = pattern(vae, 400, frame)
    fitted = within(vae, lambda: simulate(vae, 400, 0, like))
    effects = torch.tensor([-5.0, 5.0])[like.group]
    assert fitted.shared["offsets"].flatten().tolist() == pytest.approx([-5, 5], abs=0.01)
    assert abs(float((fitted.sites["z"][0, :, 0] - effects).mean())) < 5 / 20
    assert torch.allclose(fitted.batch.x, fitted.sites["z"][0], atol=0.6) and torch.equal(
        fitted.batch.group, like.group
    )
    prior = within(vae, lambda: simulate(vae, 400, 0, like, fitted=False))
    assert prior.shared["offsets"].abs().max() < 4.5


def test_replicates_are_of_the_same_rows_or_of_others(grouped):
    """Of the same rows z is q(z|x); of others its group's effect, which the guide knows and x does not say."""
    vae, frame = grouped
    batch = vae.batch(frame)
    with torch.no_grad():
        expected = vae.encoder.net(batch.x)[:, 0]
    again, new = (within(vae, lambda: torch.cat(list(replicates(vae, batch, 300, 0, new)))) for new in (False, True))  # noqa: B023
    assert again.shape == new.shape == (300, 40, 1)
    assert torch.allclose(again.mean(0)[:, 0], expected, atol=0.5)
    assert torch.allclose(new.mean(0)[:, 0], torch.tensor([-5.0, 5.0])[batch.group], atol=0.5)
    some = within(vae, lambda: torch.cat(list(replicates(vae, batch.rows(slice(5, 9)), 300, 0, True))))
    assert torch.allclose(some, new[:, 5:9])


def test_draws_in_parts_are_those_of_one_pass(grouped, monkeypatch):
    vae, frame = grouped
    batch = vae.batch(frame)
    whole = within(vae, lambda: torch.cat(list(replicates(vae, batch, 25, 0, True))))
    monkeypatch.setattr("ppl_vae.criticism.simulation.CELLS", 40 * 7)
    parts = within(vae, lambda: list(replicates(vae, batch, 25, 0, True)))
    assert [len(part) for part in parts] == [7, 7, 7, 4] and torch.allclose(torch.cat(parts), whole)
    assert len(whole[:, 0].unique()) == 25
