"""What every test relies on: one torch thread, a known seed, the real data's folder, and no change of global state."""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch

torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """`PPL_VAE_TEST_SEED=k` shifts the seeds of tests by k strides: see `benchmarks/seeds.py`."""
    shift = 1_000_003 * int(os.environ.get("PPL_VAE_TEST_SEED", "0"))
    if not shift:
        return

    class RandomState(np.random.RandomState):
        def __init__(self, seed: Any = None) -> None:
            super().__init__((seed + shift) % 2**32 if isinstance(seed, int) else seed)

    default_rng, manual_seed = np.random.default_rng, torch.manual_seed
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)
    patch.setattr(np.random, "RandomState", RandomState)
    patch.setattr(
        np.random, "default_rng", lambda seed=None: default_rng(seed + shift if isinstance(seed, int) else seed)
    )
    patch.setattr(torch, "manual_seed", lambda seed: manual_seed(int(seed) + shift))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data, from `PPL_VAE_DATA`; a test that asks for it skips where there is none."""
    if not os.environ.get("PPL_VAE_DATA"):
        pytest.skip("PPL_VAE_DATA is not set: this test needs the real data sets")
    root = Path(os.environ["PPL_VAE_DATA"])
    if not root.is_dir():
        pytest.skip(f"PPL_VAE_DATA is {root}, which is no folder: this test needs the real data sets")
    return root


def global_state() -> dict[str, Any]:
    """What a call of ours must leave as it was (the random states apart: see `leaves_global_state`)."""
    return {
        "torch default dtype": torch.get_default_dtype(),
        "torch grad mode": torch.is_grad_enabled(),
        "names in Pyro's parameter store": sorted(pyro.get_param_store()),
        "Pyro settings": pyro.settings.get(),
    }


@pytest.fixture(autouse=True)
def leaves_global_state() -> Iterator[None]:
    """Seeds torch with 0, restores the random states afterwards, and fails a test that changed other global state.

    The random states are restored but not checked, since a test may seed them itself. That a call of ours leaves them
    alone is for a test of that call to say. The parameter store is empty at the start and has to be so at the end.
    """
    rng = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.manual_seed(0)
    with pyro.get_param_store().scope():
        before = global_state()
        yield
        after = global_state()
    torch.set_rng_state(rng[0])
    np.random.set_state(rng[1])
    random.setstate(rng[2])
    if after != before:  # put all back first, so that only the guilty test fails
        torch.set_default_dtype(before["torch default dtype"])
        torch.set_grad_enabled(before["torch grad mode"])
        pyro.settings.set(**before["Pyro settings"])
        changed = [f"{part}: {before[part]} -> {after[part]}" for part in before if before[part] != after[part]]
        pytest.fail("the test changed global state: " + "; ".join(changed))
