"""A room of one's own for every call: the caller's generators, Pyro settings and parameter store stay as they were."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import pyro
import torch

from ppl_vae.errors import whole

_own: WeakKeyDictionary = WeakKeyDictionary()  # what a model's programs put into Pyro's store by pyro.param themselves


OWN = 0x9E3779B9
"""Sets the stream of torch's generators apart from that of a fit's order and pixels."""


@contextmanager
def isolated(vae: Any, seed: int = 0) -> Iterator[None]:
    """Run Pyro programs of `vae` with its own parameter store, validation off, and a seeded copy of torch's generators."""
    devices = {p.device.index or 0 for p in vae.parameters() if p.is_cuda}
    with torch.random.fork_rng(devices=list(devices)), unchecked():
        torch.manual_seed((whole("seed", seed, None) ^ OWN) & 0x7FFFFFFFFFFFFFFF)
        with pyro.get_param_store().scope(_own.get(vae)):
            yield
            remember(vae)


def unchecked() -> Any:
    """Neither Pyro nor torch checks arguments inside; each does so after if it did before.

    `pyro.validation_enabled` would turn torch's checks on afterwards wherever Pyro's are, as they may not have been.
    """
    what = ("distributions_pyro", "distributions_torch", "infer", "poutine")
    return pyro.settings.context(**{f"validate_{name}": False for name in what})


@contextmanager
def reading(vae: Any, seed: int = 0) -> Iterator[None]:
    """Run programs of `vae` to read something off: `isolated`, in evaluation mode, without gradients."""
    with isolated(vae, seed), torch.no_grad(), in_mode(vae, training=False):
        yield


@contextmanager
def in_mode(vae: Any, training: bool) -> Iterator[None]:
    """Modules in training or evaluation mode inside, each in its own mode again after."""
    modes = [(module, module.training) for module in vae.modules()]
    try:
        for module, _ in modes:
            module.training = training
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def remember(vae: Any) -> None:
    """Keep the parameters that the programs of `vae` themselves put into Pyro's store, for the next call.

    Those of its modules stay in the modules, where a cast or a load finds them.
    """
    state: Any = pyro.get_param_store().get_state()
    _own[vae] = {part: {k: v for k, v in entries.items() if "$$$" not in k} for part, entries in state.items()}


def own_parameters(vae: Any) -> list[str]:
    """The names of what the programs of `vae` themselves put into Pyro's store, by pyro.param."""
    return sorted(_own.get(vae, {}).get("params", {}))
