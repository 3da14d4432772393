"""Networks in bfloat16: their products are, while weights, densities and the optimiser stay in float32."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ppl_vae.errors import OptionError

PRODUCTS = {functional.linear, functional.conv1d, functional.conv2d, functional.conv3d, functional.conv_transpose2d}
"""What nets spend their time on."""


class Rounded(TorchFunctionMode):
    """Takes the products of nets in bfloat16, each summed up and returned in float32; to be entered round both programs."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in PRODUCTS or args[0].dtype != torch.float32:
            return func(*args, **kwargs)
        short = [v.bfloat16() if isinstance(v, Tensor) else v for v in args]
        return func(*short, **{k: v.bfloat16() if isinstance(v, Tensor) else v for k, v in kwargs.items()}).float()


PRECISIONS: dict[str, Callable[[], AbstractContextManager]] = {"float32": nullcontext, "bf16": Rounded}


def refuse_rounding(change: Tensor) -> float:
    """The change of the bound by rounded nets, refused where it is more than the noise of the bound.

    Args:
        change: (2, S, n) log weights of rows under the same draws, as they are and rounded.

    Returns: the mean change, in nats a row.

    Raises: OptionError.
    """
    whole, rounded = change.mean(2)
    difference, noise = float((rounded - whole).mean()), float(whole.std())
    if not abs(difference) <= noise:
        raise OptionError(
            f"precision: got 'bf16', which changes the bound by {difference:.3g} nats a row, where its Monte Carlo noise is "
            f"{noise:.3g}; expected 'float32' for this model"
        )
    return difference
