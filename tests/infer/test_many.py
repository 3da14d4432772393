"""Fits side by side against the same fits one after another, under the same noise."""

import logging
from typing import Any

import numpy as np
import pytest
import torch

import ppl_vae as pv
from ppl_vae.infer import many

X = np.random.RandomState(0).randn(52, 4)
BITS = (X > 0).astype("float64")
HOLES = np.where(np.add.outer(np.arange(52), np.arange(4) * 5) % 11 == 0, np.nan, X)
FIT: dict[str, Any] = {"epochs": 2, "batch_size": 16, "progress": False}
MANY = {**FIT, "compiled": True}
SEEDS, RATES = [3, 1, 2], [1e-2, 3e-2, 1e-3]


def models(x: np.ndarray = X, **options: Any) -> list[pv.VAE]:
    return [pv.build(x, **{"latent": 3, "hidden": (8,), "seed": seed, **options}).double() for seed in range(3)]


@pytest.mark.parametrize(
    ("x", "build", "options"),
    [
        (X, {}, {"optimizer": "sgd"}),
        (X, {}, {"optimizer": "adamw", "weight_decay": 0.1, "max_grad_norm": 0.5, "valid": 0.0}),
        (X, {"prior": "mixture"}, {"objective": "dreg", "particles": 3, "schedule": "constant"}),
        (X, {"weights": "normal"}, {"kl_warmup": 2}),
        (HOLES, {"nullable": True, "posterior": "iaf"}, {"optimizer": "adagrad"}),
        (BITS * 0.8 + 0.1, {"likelihood": "bernoulli"}, {"binarize": "stochastic"}),
    ],
)
def test_each_is_its_own_fit(traced: list[int], x: np.ndarray, build: Any, options: Any) -> None:
    """In float64 to 1e-9, three whole batches and a short one, twice; seeds and step sizes of their own."""
    own, side = models(x, **build), models(x, **build)
    singles = [
        pv.fit(vae, x, seed=seed, lr=lr, compiled=False, **FIT, **options) for vae, seed, lr in zip(own, SEEDS, RATES)
    ]
    histories = pv.fit_many(side, x, seeds=SEEDS, lr=RATES, **MANY, **options)
    assert len(traced) == 1
    for vae, other, history, beside in zip(own, side, singles, histories):
        for name in ("bound", "reconstruction", "kl", "objective", "grad_norm", "valid_bound", "kl_weight", "lr"):
            assert np.allclose(history[name], beside[name], rtol=1e-9, equal_nan=True), name
        assert vae.steps == other.steps and vae.guide_steps == other.guide_steps
        for (name, p), q in zip(vae.named_parameters(), other.parameters()):
            assert torch.allclose(p, q, rtol=1e-8, atol=1e-9), name
    assert not np.allclose(histories[0]["bound"], histories[1]["bound"], rtol=1e-3)


def test_compiled() -> None:
    """By TorchInductor, in float32 to 1e-4."""
    own, side = ([vae.float() for vae in models()] for _ in range(2))
    singles = [pv.fit(vae, X, seed=seed, **FIT, optimizer="sgd", lr=1e-2) for vae, seed in zip(own, range(3))]
    for history, beside in zip(singles, pv.fit_many(side, X, **MANY, optimizer="sgd", lr=1e-2)):
        assert np.allclose(history["bound"], beside["bound"], rtol=1e-4)
        assert beside.compile_seconds > 0


def test_one_after_another(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a step is no graph, and where the models are not alike; refused where one graph is insisted on."""
    monkeypatch.setattr(many, "PAYS", 1)
    for side, options in ((models(), {"objective": "mcem"}), ([*models()[:2], models(hidden=(9,))[2]], {})):
        with caplog.at_level(logging.WARNING, "ppl_vae"):
            histories = pv.fit_many(side, X, **{**FIT, **options, "epochs": 1})
        assert "one after another" in caplog.text and len(histories) == 3
        caplog.clear()
    with pytest.raises(pv.OptionError, match="compiled: got True, but there is no graph of these fits"):
        pv.fit_many(models(), X, objective="mcem", **MANY)
    own = models(hidden=(9,))[2]
    single = pv.fit(own, X, seed=2, **{**FIT, "epochs": 1})
    assert np.array_equal(single["bound"], histories[2]["bound"])


def test_few_steps_do_not_pay(caplog: pytest.LogCaptureFixture, traced: list[int]) -> None:
    with caplog.at_level(logging.INFO, "ppl_vae"):
        histories = pv.fit_many(models(), X, **FIT)
    assert "18 steps of all do not pay" in caplog.text and not traced and len(histories) == 3


def test_a_loss_that_is_not_finite(traced: list[int]) -> None:
    """Names the fit at fault; all others hold the state before that step."""
    own, side = models(), models()
    errors = []
    for vae, lr in zip(own, (1e-2, 1e300, 1e-2)):
        try:
            pv.fit(vae, X, lr=lr, optimizer="sgd", compiled=False, **FIT)
        except pv.NonFiniteError as error:
            errors.append(error)
    with pytest.raises(pv.NonFiniteError, match="fit number 1: step 1") as raised:
        pv.fit_many(side, X, seeds=[0, 0, 0], lr=[1e-2, 1e300, 1e-2], optimizer="sgd", **MANY)
    assert len(errors) == 1 and raised.value.rows == errors[0].rows and raised.value.step == 1
    first = models()[0]
    pv.fit(first, X, lr=1e-2, optimizer="sgd", compiled=False, **{**FIT, "epochs": 1, "batch_size": 52, "valid": 0.0})
    assert all(torch.allclose(p, q, rtol=1e-9) for p, q in zip(own[1].parameters(), side[1].parameters()))
    assert all(torch.isfinite(p).all() for vae in side for p in vae.parameters())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seeds": [0, 1]}, "seeds: got 2 for 3 models"),
        ({"lr": [1e-2]}, "lr: got 1 for 3 models"),
        ({"patience": 3}, "patience: not an option of fits side by side; expected `fit` for each"),
        ({"compiled": "traced"}, "compiled: got 'traced'"),
        ({"seeds": 3}, "seeds: got 3, expected one for each of 3 models"),
        ({"callbacks": [print]}, "callbacks: not an option"),
        ({"epoch": 3}, "epoch: got an unknown option, expected one of batch_size"),
        ({"epochs": 0}, "epochs: got 0"),
        ({"lr": [1e-2, -1.0, 1e-2]}, "lr: got -1.0"),
    ],
)
def test_bad_input(change: dict[str, Any], text: str) -> None:
    with pytest.raises(pv.OptionError, match=text):
        pv.fit_many(models(), X, **{**FIT, **change})


def test_bad_models() -> None:
    one = models()[0]
    for vaes, text in (
        (one, "vaes: got a VAE, expected a list"),
        ([], "vaes: got none"),
        ([one, one], "one model twice"),
    ):
        with pytest.raises(pv.OptionError, match=text):
            pv.fit_many(vaes, X, **FIT)
    with pytest.raises(pv.OptionError, match="other columns or scales in number 1"):
        pv.fit_many([one, pv.build(X * 2, latent=3).double()], X, **FIT)


def test_a_graph_that_is_wrong_for_one(traced: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """What differs between models and is no tensor is found."""
    side = models(standardize="none", scale=1.0)
    monkeypatch.setattr(many, "fit", lambda *args, **options: "one after another")
    monkeypatch.setattr(many, "PAYS", 1)
    assert pv.fit_many(side[:2], X, **FIT) != ["one after another"] * 2
    side = models(standardize="none", scale=1.0)
    side[1].decoder.forward = lambda *args, own=side[1].decoder.forward, **given: _wider(own(*args, **given))
    assert pv.fit_many(side, X, **FIT) == ["one after another"] * 3


def _wider(normal: Any) -> Any:
    import pyro.distributions as dist

    return dist.Normal(normal.base_dist.loc, normal.base_dist.scale * 2).to_event(1)
