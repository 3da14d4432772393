import csv
import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

import ppl_vae as pv
from ppl_vae.infer.noise import Keyed, step_keys
from ppl_vae.infer.objectives import objective
from ppl_vae.infer.optim import OPTIMIZERS, SCHEDULES, cosine
from ppl_vae.infer.rows import stochastic
from ppl_vae.infer.run import VALIDATION
from ppl_vae.infer.scope import isolated

RANDOM = np.random.RandomState(0)
X = (RANDOM.randn(300, 2) @ RANDOM.randn(2, 5) + 0.5 * RANDOM.randn(300, 5) + 1).astype("float32")
OPTIONS = {"epochs": 4, "lr": 1e-2, "batch_size": 64, "progress": False}


def small(x=X, **options):
    return pv.build(x, latent=2, hidden=(8,), **options)


def weights(vae):
    return [p.detach().clone() for p in vae.parameters()]


def same(first, second):
    return all(map(torch.equal, first, second))


def test_alternating_fits_equal_fits_alone_bit_for_bit():
    one, other, alone, alone_too = small(), small(seed=1), small(), small(seed=1)
    for seed in (0, 1):
        pv.fit(one, X, seed=seed, **OPTIONS)
        pv.fit(other, X, seed=seed + 5, objective="iwae", particles=3, **OPTIONS)
    for seed in (0, 1):
        pv.fit(alone, X, seed=seed, **OPTIONS)
    for seed in (5, 6):
        pv.fit(alone_too, X, seed=seed, objective="iwae", particles=3, **OPTIONS)
    assert same(weights(one), weights(alone))
    assert same(weights(other), weights(alone_too))


@pytest.mark.parametrize("compiled", [False, "traced"])
def test_a_fit_within_each_epoch_of_another_changes_no_bit_of_either(compiled):
    options = {**OPTIONS, "compiled": compiled}
    one, other, alone, alone_too, sizes = small(), small(seed=1), small(), small(seed=1), []

    def between(vae, history):
        pv.fit(other, X, **{**options, "epochs": 1}, objective="iwae", particles=2)
        pv.score(other, X[:5])
        sizes.append(len(pyro.get_param_store()))

    with pyro.get_param_store().scope():
        pv.fit(one, X, callbacks=[between], **options)
        assert len(pyro.get_param_store()) == 0 and len({*sizes}) == 1
    pv.fit(alone, X, callbacks=[lambda vae, history: None], **options)
    for _ in range(options["epochs"]):
        pv.fit(alone_too, X, **{**options, "epochs": 1}, objective="iwae", particles=2)
    assert same(weights(one), weights(alone)) and same(weights(other), weights(alone_too))


def test_the_caller_is_left_as_it_was():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), dict(pyro.settings.get())
    with pyro.get_param_store().scope():
        pyro.param("decoder", torch.arange(3.0))
        vae = small()
        pv.fit(vae, X, **OPTIONS)
        pv.score(vae, X[:5]), pv.generate(vae, 3), pv.encode(vae, X[:5])
        assert list(pyro.get_param_store()) == ["decoder"]
        assert torch.equal(pyro.param("decoder"), torch.arange(3.0))
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), dict(pyro.settings.get())
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_history_has_everything_per_epoch_and_saves_in_full(tmp_path):
    vae = small()
    history = pv.fit(vae, X, **OPTIONS)
    columns = "epoch bound reconstruction kl objective grad_norm valid_bound lr kl_weight seconds rows_per_s".split()
    assert sorted(history.to_frame().columns) == sorted(columns)
    assert len(history) == 4 and np.isfinite(history.to_frame().to_numpy()).all()
    assert np.allclose(history["bound"], history["reconstruction"] - history["kl"], atol=1e-5)
    assert np.allclose(history["bound"], history["objective"], atol=1e-4)
    assert (np.diff(history["bound"]) > 0).all() and (history["kl"] > 0).all() and (history["rows_per_s"] > 0).all()
    history.save(tmp_path / "sub" / "history.csv")
    with open(tmp_path / "sub" / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["bound"]) for row in rows] == history["bound"].tolist()
    with pytest.raises(pv.OptionError, match="'loss', expected one of 'epoch'"):
        history["loss"]


def test_the_validation_bound_is_the_held_out_rows_own():
    """It is that of `score` on the rows held out, under a seed of its own; the training rows are the others."""
    vae, met = small(), []
    history = pv.fit(vae, X, valid=0.25, epochs=1, callbacks=[lambda v, h: met.append(len(h))], progress=False)
    assert met == [1]
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0)).numpy()
    held_out = pv.score(vae, X[order[:75]], "elbo", num_draws=1, seed=VALIDATION)
    assert history["valid_bound"][0] == pytest.approx(held_out.values.mean(), abs=1e-5)
    assert np.isnan(pv.fit(vae, X, valid=0.0, epochs=1, progress=False)["valid_bound"]).all()


def test_the_bound_of_history_is_the_score_of_a_model_that_stands_still():
    """lr = 0: training bound and score estimate one number; within 4 standard errors, 6e-5."""
    vae = small()
    history = pv.fit(vae, X, epochs=20, lr=0.0, valid=0.0, progress=False)
    exact = pv.score(vae, X, "elbo", num_draws=500)
    error = history["bound"].std() / math.sqrt(20) + exact.mcse.mean() / math.sqrt(300)
    assert abs(history["bound"].mean() - exact.values.mean()) < 4 * error


def test_warm_up_weighs_the_kl_and_history_stays_unweighted():
    vae = small()
    history = pv.fit(vae, X, kl_warmup=4, **OPTIONS)
    assert history["kl_weight"].tolist() == [0.25, 0.5, 0.75, 1.0]
    weighted = history["reconstruction"] - history["kl_weight"] * history["kl"]
    assert np.allclose(history["objective"], weighted, atol=1e-4)
    assert np.allclose(history["bound"], history["reconstruction"] - history["kl"], atol=1e-5)
    analytic = pv.fit(small(), X, objective="analytic_kl", kl_warmup=4, lr=0.0, epochs=4, progress=False)
    gap = analytic["objective"] - (analytic["reconstruction"] - analytic["kl_weight"] * analytic["kl"])
    assert np.abs(gap).max() < 0.3 < analytic["kl"].min() * 0.75  # the weight reaches Pyro's closed form too


def test_patience_waits_for_the_whole_kl_term():
    history = pv.fit(small(), X, epochs=40, lr=3e-2, kl_warmup=30, patience=2, progress=False)
    assert len(history) >= 32 and (history.best_epoch is None or history.best_epoch >= 30)


def test_early_stopping_returns_to_the_best_epoch():
    vae, seen = pv.build(X[:40], latent=2, hidden=(64,)), {}

    def keep(vae, history):
        seen[len(history)] = weights(vae)

    history = pv.fit(
        vae, X[:40], epochs=500, lr=3e-2, valid=0.3, patience=5, schedule="constant", progress=False, callbacks=[keep]
    )
    best = int(np.argmax(history["valid_bound"])) + 1
    assert history.stopped == "patience" and len(history) == best + 5 < 500
    assert history.best_epoch == best
    assert same(weights(vae), seen[best]) and not same(weights(vae), seen[len(history)])


def test_fit_goes_on_from_where_the_model_stands():
    vae = small()
    first = pv.fit(vae, X, **OPTIONS)
    second = pv.fit(vae, X, **OPTIONS)
    assert second["bound"][0] > first["bound"][0]


def test_a_second_fit_has_fresh_noise_and_the_same_split():
    vae = small()
    options = {"lr": 0.0, "batch_size": 300, "epochs": 1, "progress": False}
    first, second = (pv.fit(vae, X, **options) for _ in range(2))
    whole = pv.fit(small(), X, lr=0.0, batch_size=300, epochs=2, progress=False)
    assert first["bound"][0] == whole["bound"][0] != second["bound"][0]
    assert first["valid_bound"][0] == second["valid_bound"][0]
    assert int(vae.steps) == 2


def test_gradients_of_the_caller_do_not_leak_in():
    clean, dirty = small(), small()
    for p in dirty.parameters():
        p.grad = torch.full_like(p, 100.0)
    for vae in (clean, dirty):
        pv.fit(vae, X, epochs=1, optimizer="sgd", progress=False)
    assert same(weights(clean), weights(dirty))


def test_gradients_are_clipped_and_recorded_before():
    start = weights(small())
    for norm, least in ((1e-3, True), (None, False)):
        vae = small()
        history = pv.fit(
            vae, X, epochs=1, optimizer="sgd", lr=1.0, max_grad_norm=norm, batch_size=300, valid=0, progress=False
        )
        moved = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(start, weights(vae))))
        assert (moved <= 1.001e-3) is least
        assert history["grad_norm"][0] > 0.1


def test_the_gradient_is_that_of_the_mean_over_rows():
    """One step of plain gradient descent, by hand with autograd on minus the mean bound under the same noise."""
    vae, twin = small(), small()
    pv.fit(
        vae, X, epochs=1, optimizer="sgd", lr=0.1, batch_size=300, valid=0, schedule="constant", seed=3, progress=False
    )
    x = twin.batch(X).x
    with isolated(twin), Keyed(step_keys(torch.arange(300), 3, 0)):
        objective("elbo").make(1).loss_and_grads(twin.model, twin.guide, x)
    for p, q in zip(vae.parameters(), twin.parameters()):
        assert torch.allclose(p, q - 0.1 * q.grad / 300, atol=1e-5)


def test_arguments_in_another_order():
    x = np.random.RandomState(0).randn(5, 2)
    with pytest.raises(pv.OptionError, match="vae: got a ndarray, expected a model with its guide"):
        pv.fit(x, pv.build(x, latent=1))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_trains(optimizer):
    history = pv.fit(small(), X, optimizer=optimizer, epochs=5, lr=1e-2, weight_decay=1e-4, progress=False)
    assert history["bound"][-1] > history["bound"][0]


def test_schedules():
    assert [cosine(p) for p in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    history = pv.fit(small(), X, **OPTIONS)
    assert np.all(np.diff(history["lr"]) < 0) and history["lr"][-1] < 1e-3
    assert set(pv.fit(small(), X, schedule="constant", **OPTIONS)["lr"]) == {1e-2}
    assert set(SCHEDULES) == {"cosine", "constant"}


class Exploding(nn.Module):
    """A normal whose scale overflows for rows whose code is large."""

    outputs = 1

    def forward(self, loc):
        return dist.Normal(torch.where(loc > 1e3, torch.nan, loc), 1.0).to_event(1)


def test_a_non_finite_loss_stops_names_the_site_rows_and_step_and_keeps_the_state():
    bad = X.copy()
    bad[[17, 203]] *= 1e6
    vae = pv.build(bad, latent=2, hidden=(8,), standardize="none", likelihood=lambda d: Exploding())
    vae.decoder.net = nn.Linear(2, 5)
    vae.encoder.net = nn.Linear(5, 4)
    with torch.no_grad():
        vae.encoder.net.weight[:2].fill_(1.0)
        vae.decoder.net.weight.fill_(1.0)
    start = weights(vae)
    with pytest.raises(pv.NonFiniteError) as caught:
        pv.fit(vae, bad, epochs=1, batch_size=300, valid=0.0, progress=False)
    error = caught.value
    assert error.site == "x" and error.step == 0 and set(error.rows) <= {17, 203} and error.rows
    assert "site 'x'" in str(error) and "step 0" in str(error)
    assert same(start, weights(vae))


def test_a_non_finite_gradient_is_refused_too():
    class Root(nn.Module):
        outputs = 1

        def forward(self, loc):  # sqrt has an infinite slope at 0, times 0
            return dist.Normal(loc + torch.sqrt((loc * 0).abs()), 1.0).to_event(1)

    vae = small(likelihood=lambda d: Root())
    start = weights(vae)
    with pytest.raises(pv.NonFiniteError, match=r"gradient of .*encoder"):
        pv.fit(vae, X, epochs=1, progress=False)
    assert same(start, weights(vae)) and all(torch.isfinite(p).all() for p in vae.parameters())


def test_binarisation():
    grey = RANDOM.rand(200, 6).astype("float32")
    drawn = pv.fit(small(grey, likelihood="bernoulli"), grey, binarize="stochastic", **OPTIONS)
    again = pv.fit(small(grey, likelihood="bernoulli"), grey, binarize="stochastic", **OPTIONS)
    cut = pv.fit(small(grey, likelihood="bernoulli"), grey, binarize="threshold", **OPTIONS)
    by_hand = pv.fit(small(grey, likelihood="bernoulli"), (grey > 0.5).astype("float32"), **OPTIONS)
    assert np.array_equal(drawn["bound"], again["bound"])
    assert np.array_equal(cut["bound"], by_hand["bound"])
    assert not np.array_equal(cut["bound"], drawn["bound"])
    with pytest.raises(
        pv.DataError, match=r"column 'x2': got 1\.\d+ in row 0, expected values in \[0, 1\] to binarize"
    ):
        pv.fit(small(grey, likelihood="bernoulli"), grey + np.eye(6)[2], binarize="stochastic", **OPTIONS)


def test_stochastic_binarisation_has_the_grey_value_as_mean():
    """Frequencies of 40,000 draws within 5 standard errors: fails by chance at 1e-6."""
    noise, grey = torch.Generator().manual_seed(0), torch.tensor([0.0, 0.1, 0.5, 1.0])
    mean = stochastic(grey.expand(40000, 4), noise).mean(0)
    assert torch.all((mean - grey).abs() <= 5 * (grey * (1 - grey) / 40000).sqrt())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs: got 0"),
        ({"batch_size": 1.5}, "batch_size: got 1.5"),
        ({"particles": 0}, "particles: got 0"),
        ({"valid": 1.0}, "valid: got 1.0"),
        ({"lr": -1}, "lr: got -1, expected a number of at least 0"),
        ({"lr": "a"}, "lr: got 'a'"),
        ({"weight_decay": float("nan")}, "weight_decay: got nan"),
        ({"max_grad_norm": 0}, "max_grad_norm: got 0, expected a number above 0"),
        ({"kl_warmup": -5}, "kl_warmup: got -5"),
        ({"patience": 0}, "patience: got 0"),
        ({"seed": "a"}, "seed: got 'a'"),
        ({"device": "nowhere"}, "device: got 'nowhere'"),
        ({"callbacks": [3]}, "callbacks: got 3"),
        ({"objective": Trace_ELBO()}, "objective: got an ELBO"),
        ({"objective": lambda: 3}, "factory of 3"),
        ({"patience": 3, "valid": 0.0}, "patience"),
        ({"optimizer": "lion"}, "optimizer: got 'lion'"),
        ({"schedule": "step"}, "schedule: got 'step'"),
        ({"binarize": "yes"}, "binarize: got 'yes'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(pv.OptionError, match=message):
        pv.fit(small(), X, progress=False, **options)


def test_an_objective_that_fails_on_these_programs_is_named():
    class Failing(Trace_ELBO):
        def loss_and_grads(self, *args, **kwargs):
            raise RuntimeError("of its own")

    with pytest.raises(pv.ProgramError, match="step 0: the objective failed on this model and guide: of its own"):
        pv.fit(small(), X, objective=Failing, progress=False)


def test_numpys_numbers_are_numbers():
    vae = pv.build(X, latent=np.int64(2), hidden=np.array([8]), scale=np.float32(0.5))
    history = pv.fit(vae, X, epochs=np.int64(1), lr=np.float32(1e-2), seed=np.int64(3), progress=False)
    assert len(history) == 1 and vae.recipe["hidden"] == (8,)
    assert pv.score(vae, X, num_draws=np.int64(2)).values.shape == (300,)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.where(np.arange(5) == 3, np.nan, X), "column 'x3': got nan in row 0"),
        (np.where(np.arange(5) == 1, np.inf, X), "column 'x1': got inf in row 0"),
        (X[:0], r"got shape \(0, 5\), expected at least one row"),
        (X[:1], r"got 1 row\(s\), expected at least 2"),
        (X.astype(str), "column 'x0'"),
        (X[:, :4], "4 columns, expected 5"),
        ("nowhere.csv", "nowhere.csv"),
    ],
)
def test_bad_data(data, message):
    with pytest.raises(pv.DataError, match=message):
        pv.fit(small(), data, progress=False)
    if not isinstance(data, np.ndarray) or data.shape[1] == 5:
        with pytest.raises(pv.DataError, match=message):
            pv.build(data)


def still(vae, table, **options):
    """The figures of an epoch in which nothing moves."""
    return pv.fit(vae, table, epochs=1, lr=0.0, valid=0.0, batch_size=16, progress=False, **options)


def test_the_history_has_the_jacobian_of_observed_cells():
    """History and score are means over 40 rows of one draw and of 2000: within 5 standard errors, 6e-7 by chance."""
    x = np.exp(np.random.RandomState(0).randn(40, 3) + 5)
    x[::2, 1:] = np.nan
    vae = pv.build(x, likelihood="log_normal", nullable=True, latent=2)
    exact = pv.score(vae, x, "elbo", num_draws=2000)
    found = np.array([still(vae, x, seed=seed)["bound"][0] for seed in range(20)])
    assert abs(found.mean() - exact.values.mean()) < 5 * found.std(ddof=1) / 20**0.5
    assert abs(vae.schema.log_jacobians[1]) > 1  # which half of the rows do not have


@pytest.mark.parametrize("weight", [0.0, 1.0, 100.0])
def test_the_weight_of_labels_is_in_the_objective_and_not_in_the_bound(weight):
    table = pd.DataFrame(np.random.RandomState(0).randn(40, 3), columns=list("abc"))
    table["kind"] = ["u", "v", None, None] * 10
    vae = pv.build(table, label="kind", latent=2, label_weight=weight)
    history = still(vae, table)
    plain = still(pv.build(table, label="kind", latent=2, label_weight=0), table)
    assert history["bound"][0] == pytest.approx(plain["bound"][0], abs=1e-4)
    batch = vae.batch(table)
    log_q = vae.classes.classify(batch.x, None, None).log_softmax(-1)[::4, 0].sum() + (
        vae.classes.classify(batch.x, None, None).log_softmax(-1)[1::4, 1].sum()
    )
    assert history["objective"][0] - history["bound"][0] == pytest.approx(weight * float(log_q.detach()) / 40, rel=1e-4)


def test_a_relaxation_cannot_hold_known_classes():
    table = pd.DataFrame({"a": [0.1, 0.2, 0.9, 1.0], "kind": ["u", None, "v", None]})
    with pytest.raises(pv.OptionError, match="'relaxation' with classes, which are known"):
        pv.fit(pv.build(table, label="kind"), table, objective="relaxation", progress=False)
    with pytest.raises(pv.OptionError, match="label_weight: got -1"):
        pv.build(table, label="kind", label_weight=-1)
