"""Figures by a graph of one block against those of the programs, under the same noise; nothing here is left to chance."""

import gc
import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae.criticism.scores import SCORES
from ppl_vae.infer import blocks, draws, graphs

RANDOM = np.random.RandomState(0)
X = RANDOM.randn(300, 4)
HOLES = np.add.outer(np.arange(300), np.arange(4) * 5) % 11 == 0
MIXED = pd.DataFrame(
    {
        "real": X[:, 0],
        "positive": np.exp(X[:, 1]),
        "count": np.floor(np.exp(X[:, 2] / 2)),
        "kind": np.array(["low", "mid", "high"])[np.digitize(X[:, 3], [0, 1])],
    }
).mask(HOLES)
BESIDE = MIXED.assign(age=30 + X[:, 0], site=np.array(["north", "south"])[(X[:, 1] > 0).astype(int)])
PROGRAMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "normal": (X, {}),
    "holes": (np.where(HOLES, np.nan, X), {"nullable": True}),
    "mixed": (MIXED, {"likelihood": "infer", "nullable": True}),
    "beside": (BESIDE, {"likelihood": "infer", "nullable": True, "covariates": ["age"], "group": "site"}),
    "mixture prior": (X, {"prior": "mixture"}),
    "iaf posterior": (X, {"posterior": "iaf"}),
    "student_t": (X, {"likelihood": "student_t"}),
    "no noise": (X, {"posterior": "delta"}),
}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few rows, in pieces of some blocks, so that 300 rows are many of both."""
    monkeypatch.setattr(draws, "CELLS", 500)
    monkeypatch.setattr(blocks, "TRACING_PAYS", 1)


def model(name: str) -> tuple[pv.VAE, Any]:
    x, options = PROGRAMS[name]
    return pv.build(x, latent=3, hidden=(8,), **options), x


def equal(one: pv.Scores, other: pv.Scores, tolerance: float = 0.0) -> None:
    for field in ("values", "mcse", "per_feature"):
        a, b = getattr(one, field), getattr(other, field)
        assert (a is None) == (b is None)
        assert a is None or np.allclose(a, b, rtol=tolerance, atol=tolerance), field


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(small_blocks: None, name: str) -> None:
    """What was written down is what the programs do, to the last bit but for a matrix product of other sizes."""
    vae, x = model(name)
    for num_draws in (5, 150):
        equal(*(pv.score(vae, x, num_draws=num_draws, compiled=choice) for choice in (False, "traced")), 1e-5)


@pytest.mark.parametrize("scoring", SCORES)
def test_every_score(small_blocks: None, scoring: str) -> None:
    vae, x = model("normal")
    for per_feature in {False, not SCORES[scoring].weighs}:
        choices = (pv.score(vae, x, scoring, 8, per_feature=per_feature, compiled=c) for c in (False, "traced"))
        equal(*choices, 1e-5)


@pytest.mark.parametrize("name", ["normal", "holes"])
def test_what_is_compiled(small_blocks: None, name: str) -> None:
    """By TorchInductor: in float32 to 1e-5, in float64, whose noise is of that accuracy, to 1e-10."""
    vae, x = model(name)
    equal(*(pv.score(vae, x, num_draws=7, per_feature=True, compiled=choice) for choice in (False, True)), 1e-5)
    vae.double()
    equal(*(pv.score(vae, x, num_draws=7, per_feature=True, compiled=choice) for choice in (False, True)), 1e-10)


def test_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are read some at a time, whatever holds them, and errors name rows of the whole."""
    for name in ("normal", "mixed"):
        vae, x = model(name)
        kinds = [x, torch.tensor(x), x.astype("float32")] if name == "normal" else [x]
        for data in kinds:
            with monkeypatch.context() as small:
                small.setattr(draws, "CELLS", 44)
                assert len(draws.Pieces(vae, data).parts) == 28 and draws.Pieces(vae, data).rows == 300
                found = pv.score(vae, data, num_draws=3, per_feature=True)
            equal(found, pv.score(vae, data, num_draws=3, per_feature=True), 1e-5)
    vae, x = model("normal")
    bad = x.copy()
    bad[201, 2] = np.inf
    monkeypatch.setattr(draws, "CELLS", 44)
    with pytest.raises(pv.DataError, match="column 'x2': got inf in row 201"):
        pv.score(vae, bad)
    bits = (x > 0).astype("float32")
    vae = pv.build(bits, latent=3, hidden=(8,), likelihood="bernoulli")
    bits[201, 2] = 0.5
    for choice in (False, "traced"):
        with pytest.raises(pv.DataError, match=r"column 'x2': got 0.5 in row 201"):
            pv.score(vae, bits, compiled=choice)


def test_a_model_with_an_encoding_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is given the data as they are, all of them."""
    monkeypatch.setattr(draws, "CELLS", 44)
    given = []

    class Halves(pv.VAE):
        def batch(self, data: Any, minimum_rows: int = 1) -> Any:
            given.append(data)
            return super().batch(np.asarray(data["rows"])[::2], minimum_rows)

    vae, x = model("normal")
    own = Halves(vae.encoder, vae.decoder, vae.prior, vae.schema)
    data = {"rows": x.tolist()}
    equal(pv.score(own, data, num_draws=3), pv.score(vae, x[::2], num_draws=3), 1e-5)
    assert given == [data]


def test_auto_is_for_many_rows(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    made: list[bool] = []

    class Counted(blocks.BlockGraph):
        def __init__(self, *args: Any) -> None:
            made.append(args[-1])
            if args[-1]:
                raise RuntimeError("no working C++ compiler")
            super().__init__(*args)

    monkeypatch.setattr(blocks, "BlockGraph", Counted)
    vae, x = model("normal")
    pv.score(vae, x)
    assert made == []
    monkeypatch.setattr(blocks, "TRACING_PAYS", 2)
    pv.score(vae, x)
    assert made == [False]
    monkeypatch.setattr(blocks, "PAYS", 2)
    with caplog.at_level(logging.INFO, "ppl_vae"):
        pv.score(vae, x)
    assert made == [False, True]  # the first one was kept
    assert "no graph: RuntimeError: no working C++ compiler" in caplog.text


class Looks(torch.nn.Module):
    """A decoder that looks at a value."""

    def forward(self, z: torch.Tensor) -> Any:
        shift = 1.0 if z.mean() > 100 else 0.0
        return dist.Normal(z.sum(-1, keepdim=True).expand(*z.shape[:-1], 4) + shift, 1.0).to_event(1)


REFUSED: dict[str, Any] = {
    "sites that all rows share": lambda: pv.build(X, latent=3, hidden=(8,), weights="normal"),
    "each member of an ensemble": lambda: pv.Ensemble([model("normal")[0]] * 2),
    "noise through SciPy": lambda: pv.build(
        np.abs(X) / np.abs(X).sum(1, keepdims=True), latent=3, prior="dirichlet", posterior="dirichlet", hidden=(8,)
    ),
    "control flow": lambda: pv.VAE(model("normal")[0].encoder, Looks(), model("normal")[0].prior),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_graph(small_blocks: None, name: str) -> None:
    """Insisting is an error with the reason; else the score is as without."""
    vae = REFUSED[name]()
    x = np.abs(X) / np.abs(X).sum(1, keepdims=True) if "SciPy" in name else X
    with pytest.raises(pv.OptionError, match="compiled: got 'traced', but no graph could be made"):
        pv.score(vae, x, num_draws=3, compiled="traced")
    equal(*(pv.score(vae, x, num_draws=3, compiled=choice) for choice in ("auto", False)))
    with pytest.raises(pv.OptionError, match="compiled: got 'yes', expected True, False, 'traced' or 'auto'"):
        pv.score(vae, x, num_draws=3, compiled="yes")


def test_a_wrong_graph_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(graph: Any, inputs: Any) -> Any:
        return lambda *flat: tuple(1.001 * figure for figure in graph(*flat))

    monkeypatch.setattr(graphs, "lean", wrong)
    vae, x = model("normal")
    with pytest.raises(pv.OptionError, match="the graph of a block gives other figures than the programs"):
        pv.score(vae, x, compiled="traced")


def test_graphs_are_kept_while_the_model_is_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made anew after a step, a cast or another number in a decoder; gone with the model."""
    made: list[int] = []
    as_it_is = graphs.lean

    def counted(graph: Any, inputs: Any) -> Any:
        made.append(1)
        return as_it_is(graph, inputs)

    monkeypatch.setattr(graphs, "lean", counted)

    class Scaled(torch.nn.Module):
        scale = 1.0

        def forward(self, z: torch.Tensor) -> Any:
            return dist.Normal(z.sum(-1, keepdim=True).expand(*z.shape[:-1], 4), self.scale).to_event(1)

    vae = pv.VAE(model("normal")[0].encoder, Scaled(), model("normal")[0].prior, pv.Schema.of(X))

    def changed(vae: pv.VAE) -> bool:
        before = len(made)
        equal(*(pv.score(vae, X.astype("float32"), num_draws=3, compiled=choice) for choice in ("traced", False)), 1e-5)
        return len(made) > before

    assert changed(vae) and not changed(vae)
    with torch.no_grad():
        next(vae.parameters()).add_(0.1)
    assert changed(vae) and not changed(vae)
    vae.decoder.scale = 1.0 + 1e-5
    assert changed(vae) and not changed(vae)
    vae.double()
    assert changed(vae) and not changed(vae)
    vae.schema = replace(vae.schema, scale=(2.0,) * 4)
    assert changed(vae) and not changed(vae)
    kept = len(blocks._kept)
    del vae
    gc.collect()
    assert len(blocks._kept) == kept - 1


def test_what_only_later_rows_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that loops over the groups that it sees is no list of operations: the last rows show it."""
    monkeypatch.setattr(blocks, "TRACING_PAYS", 1)

    class ByGroup(torch.nn.Module):
        def forward(self, z: torch.Tensor, group: torch.Tensor) -> Any:
            shift = torch.zeros(len(group)).to(z)
            for code in sorted(set(group.tolist())):
                shift[group == code] = float(code)
            return dist.Normal(z.sum(-1, keepdim=True).expand(*z.shape[:-1], 4) + shift[:, None], 1.0).to_event(1)

    frame = pd.DataFrame(np.tile(X, (20, 1)), columns=list("abcd")).assign(site=np.repeat(["north", "south"], 3000))
    base = pv.build(frame, latent=3, hidden=(8,), group="site", prior="hierarchical")
    vae = pv.VAE(base.encoder, ByGroup(), model("normal")[0].prior, base.schema)
    equal(*(pv.score(vae, frame, num_draws=64, compiled=choice) for choice in ("auto", False)), 1e-5)


def test_one_graph_of_a_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose errors are not numbers: kept all the same."""
    made: list[int] = []
    as_it_is = graphs.lean
    monkeypatch.setattr(graphs, "lean", lambda *args: (made.append(1), as_it_is(*args))[1])
    vae, x = model("no noise")
    for _ in range(2):
        pv.score(vae, x, compiled="traced")
    assert made == [1]
