import math

import pytest
import torch

from ppl_vae.data.schema import Schema
from ppl_vae.model.inputs import Inputs

TYPES = ("real", "positive", "count", "unit", "boolean", "categorical", "ordinal", "angle", "pixel", "categorical")
LEVELS = {4: (False, True), 5: tuple("abc"), 6: tuple("lmh"), 9: tuple("pq")}


def columns(types=TYPES, nullable=(), levels=LEVELS):
    """A schema of these types, with logarithms to standardise by."""
    names = tuple(f"x{j}" for j in range(len(types)))
    return Schema(
        names,
        "pandas",
        (len(types),),
        types=types,
        levels=tuple(levels.get(j) for j in range(len(types))),
        log_loc=tuple(0.5 if k == "count" else 0.0 for k in types),
        log_scale=tuple({"count": 2.0, "positive": 4.0}.get(k, 1.0) for k in types),
        nullable=nullable,
    )


X = torch.tensor([-0.7, 3.0, 6.0, 0.25, 1.0, 2.0, 1.0, 2.5, -1.0, 0.0])
PLAIN = [-0.7, 0.25, 1.0, -1.0]
REST = [
    math.log(3) / 4,
    (math.log(7) - 0.5) / 2,
    *(0.0, 0.0, 1.0, 1.0, 0.0),
    0.0,
    math.cos(2.5),
    math.sin(2.5),
]


def test_features_are_those_of_the_table():
    inputs = Inputs(columns())
    assert inputs.width == len(PLAIN) + len(REST)
    assert torch.allclose(inputs(X), torch.tensor(PLAIN + REST))
    assert torch.equal(inputs(X.expand(3, 2, 10)), inputs(X).expand(3, 2, inputs.width))


def test_holes_are_zeros_and_nullable_columns_add_their_bits():
    """One column hidden at a time: its features are 0, the others as they were."""
    nullable = ("x1", "x5", "x7")
    inputs, whole = Inputs(columns(nullable=nullable)), Inputs(columns())(X)
    assert inputs.width == len(whole) + 3
    assert torch.equal(inputs(X), torch.cat([whole, torch.ones(3)]))
    features_of = [[0], [4], [5], [1], [2], [6, 7, 8], [11], [12, 13], [3], [9, 10]]
    for j in range(10):
        mask = torch.arange(10) != j
        kept = whole.clone()
        kept[features_of[j]] = 0.0
        bits = torch.tensor([float(name != f"x{j}") for name in nullable])
        assert torch.equal(inputs(X, mask), torch.cat([kept, bits]))


@pytest.mark.parametrize("types", [TYPES, ("real", "unit"), ("positive", "count")])
@pytest.mark.parametrize("nullable", [True, False])
def test_what_stands_in_a_hole_never_matters(types, nullable):
    """Features and gradients are bit-equal and finite for NaN, 0 and 1e30."""
    inputs = Inputs(columns(types, tuple(f"x{j}" for j in range(len(types))) if nullable else ()))
    mask = torch.rand(20, len(types)) > 0.5
    results = []
    for hidden in (torch.nan, 0.0, 1e30, -torch.inf, -5.0):
        x = torch.where(mask, torch.ones(len(types)), hidden).requires_grad_()
        features = inputs(x, mask)
        (gradient,) = torch.autograd.grad(features.sum(), x)
        assert features.isfinite().all() and gradient.isfinite().all() and (gradient[~mask] == 0).all()
        results.append((features, gradient))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))


def test_rows_of_numbers_are_their_own_features():
    for types in (None, ("real", "unit", "boolean", "pixel")):
        inputs = Inputs(Schema(tuple("abcd"), "numpy", (4,), types=types))
        x = torch.randn(3, 4)
        assert inputs.width == 4 and inputs(x) is x
        mask = torch.rand(3, 4) > 0.5
        assert torch.equal(inputs(x, mask), torch.where(mask, x, 0.0))
    assert Inputs(columns(("real", "real"), ("x1",)))(torch.tensor([2.0, 3.0])).tolist() == [2.0, 3.0, 1.0]


def test_features_keep_dtype_leading_dimensions_and_mask_shapes():
    inputs = Inputs(columns(nullable=("x0",))).double()
    x = X.double().expand(4, 3, 10)
    assert inputs(x).dtype == torch.float64
    assert inputs(x, torch.ones(3, 10, dtype=torch.bool)).shape == (4, 3, inputs.width)
    assert not list(inputs.parameters())
    with torch.device("meta"):  # as a saved model is loaded
        empty = Inputs(columns(nullable=("x0",)))
    empty.load_state_dict(inputs.state_dict(), assign=True)
    assert torch.equal(empty(x), inputs(x))
