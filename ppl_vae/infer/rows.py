"""The rows of a fit: split once, handed out by permutation, pixels drawn on the way."""

from collections.abc import Callable
from math import ceil
from typing import Any

import torch
from torch import Tensor

from ppl_vae.data.schema import Batch
from ppl_vae.infer.draws import check, jacobians, log_jacobian, refuse_first
from ppl_vae.infer.noise import step_keys


def as_they_are(x: Tensor, noise: torch.Generator) -> Tensor:
    """No binarisation."""
    return x


def threshold(x: Tensor, noise: torch.Generator) -> Tensor:
    """1 where x > 1/2."""
    return (x > 0.5).to(x.dtype)


def stochastic(x: Tensor, noise: torch.Generator) -> Tensor:
    """Bernoulli pixels with the grey value as probability."""
    return (torch.rand(x.shape, generator=noise, device=x.device, dtype=x.dtype) < x).to(x.dtype)


Pixels = Callable[[Tensor, torch.Generator], Tensor]
PIXELS: dict[str, Pixels] = {"none": as_they_are, "threshold": threshold, "stochastic": stochastic}


class Rows:
    """Encoded rows on the model's device: split once, handed out by permutation, never copied whole."""

    def __init__(self, vae: Any, data: Batch, valid: float, pixels: Pixels, seed: int, start: int) -> None:
        self.data, self.pixels, x = data, pixels, data.x
        self._jacobian = log_jacobian(jacobians(vae, data), data)
        self.noise = torch.Generator(device=x.device).manual_seed(seed & 0x7FFFFFFFFFFFFFFF)
        if pixels is not as_they_are:
            refuse_first(vae, x, ~((x >= 0) & (x <= 1)), "values in [0, 1] to binarize")
        check(vae, data._replace(x=pixels(x, self.noise)), strict=False, read_guide=False)
        order = self._permutation(len(x))
        held_out = min(ceil(valid * len(x)), len(x) - 1)
        self.train = order[held_out:]
        self.valid = self.take(order[:held_out])
        if start:  # the split of the first fit, orders and pixels of its own
            self.noise.manual_seed(int(step_keys(torch.tensor([0]), seed, start)) & 0x7FFFFFFFFFFFFFFF)

    def batches(self, size: int) -> list[Tensor]:
        """Row numbers (b,) of each batch of an epoch, each training row once."""
        return list(self.train[self._permutation(len(self.train))].split(size))

    def jacobian(self, numbers: Tensor) -> float:
        """log |d encoded / d own| of the observed cells, mean over rows (b,)."""
        return float(self._jacobian[numbers].mean()) if isinstance(self._jacobian, Tensor) else self._jacobian

    def take(self, numbers: Tensor, part: slice = slice(None)) -> Batch:
        """Rows (b, d), pixels drawn anew; a part of them, of the same pixels."""
        if self.pixels is as_they_are:
            return self.data.rows(numbers[part])
        rows = self.data.rows(numbers)
        return rows._replace(x=self.pixels(rows.x, self.noise)).rows(part)

    def _permutation(self, n: int) -> Tensor:
        return torch.randperm(n, generator=self.noise, device=self.data.x.device)
