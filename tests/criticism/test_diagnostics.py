"""`diagnose`: every check by name, its figures against closed forms, and its verdict on what was planted."""

import math
import re

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae.criticism.aggregate import mean_of
from ppl_vae.criticism.checks import CHECKS, counted, effective, spaced
from ppl_vae.criticism.diagnostics import diagnose
from ppl_vae.model.linear import PPCA

RANDOM = np.random.RandomState(0)
X = RANDOM.randn(80, 2) @ RANDOM.randn(2, 4) + 0.5 * RANDOM.randn(80, 4)
QUICK = [name for name in CHECKS if name not in ("gaps", "gradients")]


@pytest.fixture(scope="module")
def ppca():
    return PPCA(2).fit(X)


@pytest.fixture(scope="module")
def diagnosis(ppca):
    return diagnose(ppca, X)


class Guide(torch.nn.Module):
    """q(z|x) from a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def exact(ppca):
    q = ppca.posterior(X)
    loc, scale = q.mean.numpy(), q.stddev.numpy()
    kl = 0.5 * (loc**2 + scale**2 - np.log(scale**2) - 1).mean(0)
    return kl, ppca.log_prob(X).mean()


def test_figures_of_an_exact_guide_are_its_closed_forms(ppca, diagnosis):
    """Within 5 standard errors each: 3e-6 by chance for five of them."""
    kl, log_p = exact(ppca)
    value, mcse = diagnosis.table["value"], diagnosis.table["mcse"]

    def sure(check, figure, true):
        return abs(value[check, figure] - true) <= 5 * mcse[check, figure] + 1e-9

    assert sure("rate_distortion", "ELBO", log_p) and sure("rate_distortion", "rate", kl.sum())
    assert sure("rate_distortion", "distortion", -log_p - kl.sum()) and sure("kl", "KL", kl.sum())
    assert 0 < mcse["rate_distortion", "rate"] < 0.01
    assert np.allclose(diagnosis["kl"].detail["kl"], kl) and value["kl", "largest of a dimension"] == pytest.approx(
        kl.max()
    )
    assert sure("gaps", "approximation gap", 0.0) and sure("gaps", "amortization gap", 0.0)
    assert (value["gaps", "rows"], value["active_units", "active units"]) == (50, 2)
    assert value["evidence", "share of bad k-hat"] == 0 and value[
        "evidence", "effective share of draws"
    ] == pytest.approx(1)
    assert diagnosis["rate_distortion"].detail["rate"].shape == (80,)
    assert diagnosis.rows == (80, 80) and list(diagnosis.findings) == list(CHECKS)


def test_verdicts_on_an_exact_guide(diagnosis):
    said = diagnosis.verdicts
    assert said["active_units"] == "all 2 dimensions are active" and said["collapse"].startswith("none")
    assert "0 of 2 dimensions carry less" in said["kl"] and "k-hat is up to 0.00" in said["evidence"]
    assert "calibrated as far as" in said["calibration"] and "all 4 columns" in said["pit"]
    assert ": 0 of 8 statistics of columns" in said["predictive"]
    assert re.search("least .* by (sticking_the_landing|dreg, K = 5), most .* by score_function", said["gradients"])


def test_print_shows_every_verdict_and_every_figure(diagnosis):
    text = repr(diagnosis)
    assert text.startswith("Diagnosis of 80 rows, 1000 draws a row\n")
    for name, found in diagnosis.findings.items():
        assert re.search(rf"^  {name} +{re.escape(found.verdict)}$", text, re.M)
        for figure in found.figures:
            assert re.search(rf"^{name} +{re.escape(figure)} +\S", text, re.M)
    assert list(diagnosis.table.columns) == ["value", "mcse"]


def test_a_subset_by_name_and_a_subset_of_rows(ppca):
    some = diagnose(ppca, X, checks=["kl"], rows=40, num_draws=50, seed=1)
    kept = spaced(80, 40)
    assert some.rows == (40, 80) and repr(some).startswith("Diagnosis of 40 rows of 80, 50 draws")
    assert np.allclose(some["kl"].detail["kl"], diagnose(ppca, X[kept], checks=["kl"])["kl"].detail["kl"])
    assert len(kept) == len(set(kept.tolist())) == 40 and (kept[0], kept[-1]) == (0, 79)
    with pytest.raises(pv.OptionError, match="checks: got 'elbow', expected one of 'active_units'"):
        diagnose(ppca, X, checks=["elbow"])
    with pytest.raises(pv.OptionError, match="checks: got none"):
        diagnose(ppca, X, checks=[])
    with pytest.raises(pv.OptionError, match="check: got 'pit'"):
        some["pit"]


def test_some_rows_of_a_file_are_those_of_its_frame(tmp_path):
    """Texts stay texts where only some of the rows are looked at."""
    frame = pd.DataFrame({"a": X[:, 0], "kind": np.where(X[:, 1] > 0, "u", "v")})
    frame.to_csv(tmp_path / "t.csv", index=False)
    vae = pv.build(frame, latent=1, hidden=(4,), likelihood="infer")
    data = pv.Dataset(frame, None, pv.Schema.fit(X), "t")
    found = [diagnose(vae, rows, checks="kl", rows=40, num_draws=50) for rows in (frame, tmp_path / "t.csv", data)]
    assert found[0].table.equals(found[1].table) and found[0].table.equals(found[2].table)


def test_a_guide_that_is_too_narrow_is_found_out(ppca):
    narrow = PPCA(2).fit(X)
    narrow.encoder.scale *= 0.5
    said = diagnose(narrow, X, checks=["evidence", "calibration"])
    assert re.search(r"not to be trusted in \d+ of 80 rows", said["evidence"].verdict)
    assert "are not calibrated" in said["calibration"].verdict
    # q* is the posterior: 1/2 (s^2 - 1 - log s^2) in each of two dimensions
    found = diagnose(narrow, X[:10], checks=["gaps"])["gaps"]
    amortization, error = found.figures["amortization gap"]
    assert abs(amortization - (0.25 - 1 - math.log(0.25))) < 5 * error + 0.01
    assert "a larger encoder" in found.verdict


def test_a_family_that_is_not_searched_is_not_blamed_on_the_encoder():
    """A full-rank guide on a posterior that flows fit better: no advice between its family and its encoder."""
    vae = pv.build(X, latent=2, hidden=(4,), posterior="full_rank")
    found = diagnose(vae, X[:10], checks=["gaps"])["gaps"]
    assert list(found.figures) == ["beyond a flow of each row", "up to it", "rows"]
    assert "the best flow of each row is" in found.verdict and "would help most" not in found.verdict


@pytest.mark.parametrize("blind", [True, False])
def test_a_full_collapse_is_told_from_one_of_the_guide_alone(blind):
    both = PPCA(2).fit(X)
    both.encoder = Guide(lambda x: dist.Normal(x.new_zeros(*x.shape[:-1], 2), 1.0).to_event(1))
    if blind:
        with torch.no_grad():
            both.decoder.linear.weight.zero_()
    found = diagnose(both, X, checks=["active_units", "collapse", "information", "calibration"])
    assert found["active_units"].verdict.startswith("0 of 2 dimensions are active; the means of z[0], z[1]")
    assert ("the decoder does not use z" if blind else "the guide fails") in found["collapse"].verdict
    assert found["information"].verdict.startswith("z tells 0 to 0 nats") or "-" in found["information"].verdict
    assert ("calibrated as far" if blind else "log p(x|z) most") in found["calibration"].verdict


def test_a_partial_collapse_and_an_aggregate_far_from_the_prior():
    part = PPCA(2).fit(X)
    exact = part.encoder
    part.encoder = Guide(lambda x: dist.Normal(exact(x).mean * torch.tensor([1.0, 0.0]), exact.scale).to_event(1))
    said = diagnose(part, X, checks=["active_units", "collapse"]).verdicts
    assert said["active_units"] == "1 of 2 dimensions are active; the means of z[1] do not move with x"
    assert said["collapse"] == "partial: 1 of 2 dimensions are idle"
    part.encoder = Guide(lambda x: dist.Normal(exact(x).mean + 3, exact.scale).to_event(1))
    assert "q(z) is at least" in diagnose(part, X, checks=["information"])["information"].verdict


def test_a_model_that_does_not_make_such_data(ppca):
    wrong = X.copy()
    wrong[:, 2] += 3
    said = diagnose(ppca, wrong, checks=["predictive", "pit"]).verdicts
    assert "farthest mean of column 'x2'" in said["predictive"] and "1 of 4 columns are not" in said["pit"]
    assert "'x2' most" in said["pit"]


@pytest.mark.parametrize(
    ("options", "left_out"),
    [
        ({"posterior": "iaf"}, ()),
        ({"prior": "mixture"}, ()),
        ({"prior": "bernoulli", "posterior": "bernoulli"}, ("gaps",)),
        ({"prior": "hierarchical", "group": "site"}, ()),
        ({"label": "site"}, ("gaps",)),
        ({"nullable": True}, ()),
        ({"posterior": "delta"}, ("active_units", "collapse", "kl", "information", "evidence", "calibration", "gaps")),
    ],
)
def test_models_of_many_kinds(options, left_out):
    frame = pd.DataFrame(X[:30], columns=list("abcd"))
    if "site" in options.values():
        frame = frame.assign(site=RANDOM.choice(["u", "v"], 30))
    if options.get("nullable"):
        frame = frame.mask(RANDOM.rand(*frame.shape) < 0.2)
    vae = pv.build(frame, latent=2, hidden=(4,), **options)
    found = diagnose(vae, frame, checks=None if left_out else QUICK, num_draws=1000)
    if "kl" in left_out:
        left_out += ("rate_distortion",)
    for name in QUICK:
        assert found[name].verdict.startswith("not checked: ") == (name in left_out)
        assert all(np.isfinite(value) for value, _ in found[name].figures.values()) or name == "evidence"
    if left_out:
        with pytest.raises(pv.PplVaeError):
            diagnose(vae, frame, checks=[left_out[0]])


def test_an_untrained_guide_is_asked_nothing_and_that_is_said_once():
    vae = pv.build(X, latent=2, hidden=(4,))
    pv.fit(vae, X, objective="mcem", epochs=1, progress=False)
    found = diagnose(vae, X)
    refused = [name for name, verdict in found.verdicts.items() if "the last fit has not trained" in verdict]
    assert refused == [name for name in CHECKS if name not in ("predictive", "pit")]
    assert repr(found).count("the last fit has not trained") == 1
    assert repr(found).count("not checked, for the reason of active_units") == len(refused) - 1
    assert found["pit"].figures and found["predictive"].figures
    with pytest.raises(pv.ProgramError, match="the last fit has not trained"):
        diagnose(vae, X, checks="gradients")


def test_an_estimator_that_fails_leaves_the_others_in():
    """The scale of groups has no draws without a gradient, which the score function needs."""
    frame = pd.DataFrame(X, columns=list("abcd")).assign(site=list("uv") * 40)
    vae = pv.build(frame, latent=2, hidden=(4,), prior="hierarchical", group="site")
    assert list(diagnose(vae, frame, checks="gradients")["gradients"].detail) == ["elbo", "analytic_kl"]


def test_verdicts_state_their_level(diagnosis, ppca):
    assert all("at level 0.001" in diagnosis[name].verdict for name in ("calibration", "pit"))
    assert "not distributed as the model predicts at level 0.001" in diagnose(ppca, X + 3, checks="pit")["pit"].verdict


def test_weights_that_are_not_finite_are_named_once(ppca):
    vae = pv.build(X, latent=2, hidden=(4,))
    with torch.no_grad():
        vae.decoder.net[0].weight[0, 0] = math.inf
    text = repr(diagnose(vae, X))
    assert text.count("parameter 'decoder.net.0.weight': got NaN or infinite values") == 1


def test_the_callers_state_is_left_alone(ppca):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again = (diagnose(ppca, X, checks=QUICK, num_draws=1000, seed=2) for _ in range(2))
    assert torch.equal(before[0], torch.get_rng_state()) and np.array_equal(before[1], np.random.get_state()[1])
    assert first.table.equals(again.table) and first.verdicts == again.verdicts


def test_few_draws_are_too_few_for_k_hat(ppca):
    with pytest.raises(pv.OptionError, match="num_draws: got 100, expected at least 1000"):
        diagnose(ppca, X, checks=["evidence"], num_draws=100)


def test_errors_of_means_counts_and_effective_shares():
    """Over 300 repeats of 200 draws of 5 rows that share their noise by half: errors are known to a twentieth."""

    def terms():
        return torch.as_tensor(0.7 * RANDOM.randn(200, 1) + 0.7 * RANDOM.randn(200, 5))

    found = [mean_of(terms()) for _ in range(300)]
    assert np.std([f[0] for f in found]) == pytest.approx(np.mean([f[1] for f in found]), rel=0.2)
    shares = [effective(0.7 * torch.as_tensor(RANDOM.randn(2000, 5))) for _ in range(300)]
    assert np.std([f[0] for f in shares]) == pytest.approx(np.mean([f[1] for f in shares]), rel=0.3)
    # log-normal weights: exp(-sigma^2) of the draws count
    assert np.mean([f[0] for f in shares]) == pytest.approx(math.exp(-0.49), rel=0.02)
    assert counted(np.array([True, False, True]), np.array([1.0, 0.0, 0.5])) == (2.0, 0.5)
