"""What is put in JSON and beside it comes back equal; what neither can hold is named."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import ppl_vae as pv
from ppl_vae.use.values import Beside, plain

FRAME = pd.DataFrame(
    {
        "number": [1.5, np.nan],
        "whole": [1, 2],
        "truth": [True, False],
        "text": ["a", None],
        "any": pd.Series(["a", 1], dtype=object),
        "level": pd.Categorical(["low", "high"], ["low", "high"], ordered=True),
        "nullable": pd.Series([1, None], dtype="Int64"),
        3: [0.0, 1.0],
    }
)


def back(value: Any) -> Any:
    """A value, after JSON."""
    beside = Beside()
    text = json.dumps(beside.put("option", value))
    return Beside(beside.tensors, beside.parts).get(json.loads(text))


@pytest.mark.parametrize(
    "value",
    [None, True, 3, 0.1, "a", (), (1, ("b", None)), {"a": (1, {"b": 2.5})}, {}],
)
def test_names_and_numbers_come_back(value: Any) -> None:
    assert back(value) == value


@pytest.mark.parametrize("dtype", ["float64", "float32", "int8", "int64", "uint8", "bool"])
def test_arrays_and_tensors_come_back(dtype: str) -> None:
    array = np.asfortranarray(np.arange(6).reshape(2, 3).astype(dtype))
    again, tensor = back({"x": array})["x"], back(torch.from_numpy(array))
    assert again.dtype == array.dtype and np.array_equal(again, array)
    assert isinstance(tensor, torch.Tensor) and torch.equal(tensor, torch.from_numpy(array))


def test_batches_come_back() -> None:
    batch = pv.Batch(torch.ones(2, 3), torch.ones(2, 3) > 0)
    again = back(batch)
    assert type(again) is pv.Batch and again.c is None and torch.equal(again.mask, batch.mask)


def test_frames_come_back_without_their_index() -> None:
    again = back(FRAME.set_index(np.array([7, 9])))
    pd.testing.assert_frame_equal(again, FRAME)


def test_models_are_parts() -> None:
    ppca, beside = pv.PPCA(1).fit(np.random.RandomState(0).randn(9, 2)), Beside()
    assert beside.get(beside.put("background", ppca)) is ppca and beside.parts == {"background": ppca}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1, float("nan")]}, "option.a.1: got nan, expected names and finite numbers"),
        (float("inf"), "option: got inf"),
        (np.array(["a"], dtype=object), r"option: got array\(\['a'\]"),
        (len, "option: got <built-in function len>"),
        ({1: 2}, "option: got {1: 2}"),
        ({"$tensor": 2}, "option: got {'\\$tensor': 2}"),
        (pd.DataFrame({"day": pd.to_datetime(["2020-01-01"])}), "option.day.0: got Timestamp"),
    ],
)
def test_what_cannot_be_held_is_named(value: Any, message: str) -> None:
    with pytest.raises(pv.OptionError, match=message):
        Beside().put("option", value)


def test_numpys_numbers_are_numbers() -> None:
    assert json.dumps(plain("a", {"b": (np.float32(0.5), np.int8(2), np.bool_(True))})) == '{"b": [0.5, 2, true]}'
