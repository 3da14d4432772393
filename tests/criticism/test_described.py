"""Values told by their content: what changes what a function does changes how it is described."""

import functools
import sys
from threading import Lock
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from ppl_vae.criticism.described import described, own
from ppl_vae.errors import OptionError
from ppl_vae.files import to_json


def told(source: str, name: str = "f", **known: Any) -> str:
    """The description of what a user's source makes, as JSON."""
    space = {"__name__": "a_module_of_the_users", **known}
    exec(source, space)
    return to_json(described(space[name]))


SOURCE = """
K = 1
def g(n): return n * K
def f(): return [g(n) for n in range(3)]
"""


@pytest.mark.parametrize("change", [("K = 1", "K = 2"), ("n * K", "n + K"), ("range(3)", "range(4)")])
def test_globals_helpers_and_code(change: tuple[str, str]) -> None:
    assert told(SOURCE) == told(SOURCE) == told(SOURCE + "\nunread = 3")
    assert told(SOURCE) != told(SOURCE.replace(*change))


def test_functions_that_call_each_other_come_to_an_end() -> None:
    source = "K = 1\ndef f(n): return n and g(n - 1)\ndef g(n): return n and f(n - K)"
    assert told(source) == told(source) != told(source.replace("K = 1", "K = 2"))


def test_classes_by_their_members() -> None:
    source = """
class A:
    rate = 1
    def __call__(self): return self.one
    @property
    def one(self): return 1
    @staticmethod
    def two(): return 2
class B(A):
    pass
f = B()
"""
    assert told(source) == told(source)
    for change in (
        ("rate = 1", "rate = 2"),
        ("self.one", "self.two"),
        ("return 1", "return 3"),
        ("return 2", "return 4"),
    ):
        assert told(source) != told(source.replace(*change))


def test_of_a_module_of_the_users_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    helpers = ModuleType("a_module_of_helpers")
    monkeypatch.setattr("ppl_vae.criticism.described.own", lambda name: own(name) or name == helpers.__name__)
    monkeypatch.setitem(sys.modules, helpers.__name__, helpers)

    def with_rate(rate: int, other: int = 0) -> str:
        helpers.rate, helpers.other = rate, other  # type: ignore[attr-defined]
        return told("def f(): return helpers.rate", helpers=helpers)

    assert with_rate(1) == with_rate(1, 5) != with_rate(2)


def test_installed_packages_by_name_and_version() -> None:
    assert not own("numpy") and not own("json.decoder") and not own("ppl_vae.infer.draws") and own(__name__)
    assert described(np) == ["numpy", np.__version__]
    assert described(torch.nn.Linear) == ["torch.nn.modules.linear", "Linear", torch.__version__]
    source = "def f(x): return np.exp(x)"
    assert told(source, np=np) == told(source, np=np)


def test_what_an_installed_wrapper_holds() -> None:
    def wrapped(value: int) -> FunctionType:
        return torch.no_grad()(lambda: value)

    assert described(wrapped(1)) == described(wrapped(1)) != described(wrapped(2))
    assert described(functools.cache(lambda: 1)) != described(functools.cache(lambda: 2))


@pytest.mark.parametrize(
    "make",
    [
        lambda value: np.full(3, value),
        lambda value: torch.full((3,), value),
        lambda value: {value, "a"},
        lambda value: np.random.RandomState(int(value)),
        lambda value: functools.partial(max, value),
        lambda value: [value].append,
        lambda value: np.array([value, None], dtype=object),
    ],
)
def test_objects_by_their_content(make: Any) -> None:
    assert described(make(1.0)) == described(make(1.0)) != described(make(2.0))


def test_what_has_no_copy_is_refused() -> None:
    with pytest.raises(OptionError, match="folder: got the option <unlocked"):
        described([Lock()])
    with pytest.raises(OptionError, match="or what a function among them reads"):
        told("def f(): return lock", lock=Lock())
