"""Networks: from (..., inputs) to (..., outputs), whatever the leading dimensions.

The defaults are Kingma & Welling's (2013), appendix C: one hidden tanh layer on both sides.
"""

from collections.abc import Callable, Sequence
from math import prod

from torch import Tensor, nn

from ppl_vae.errors import OptionError, choose

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
}


def mlp(inputs: int, outputs: int, hidden: Sequence[int] = (128,), activation: str = "tanh") -> nn.Sequential:
    """A multilayer perceptron: linear layers with an activation between them; `hidden=()` is one linear layer.

    Args:
        inputs, outputs: sizes of the last dimension.
        hidden: widths of the hidden layers.
        activation: a name in `ACTIVATIONS`.

    >>> mlp(784, 40, (500,))
    Sequential(
      (0): Linear(in_features=784, out_features=500, bias=True)
      (1): Tanh()
      (2): Linear(in_features=500, out_features=40, bias=True)
    )
    """
    act = choose("activation", activation, ACTIVATIONS)
    sizes = (inputs, *hidden, outputs)
    layers = [layer for a, b in zip(sizes, sizes[1:]) for layer in (nn.Linear(a, b), act())]
    return nn.Sequential(*layers[:-1])


class AnyBatch(nn.Module):
    """Applies a net that wants (rows, features) to (..., features): convolutions take one batch dimension only."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, value: Tensor) -> Tensor:
        return self.net(value.reshape(-1, value.shape[-1])).reshape(*value.shape[:-1], -1)


def _halvings(shape: Sequence[int], times: int) -> list[tuple[int, int]]:
    """Image sizes from full to smallest, each half of the one before, rounded up: 28, 14, 7."""
    sizes = [(shape[-2], shape[-1])]
    for _ in range(times):
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes


def _image(shape: Sequence[int], channels: Sequence[int]) -> tuple[int, int, int]:
    """(colours, height, width) of a row's shape (height, width) or (colours, height, width)."""
    if len(shape) not in (2, 3):
        raise OptionError(
            f"nets='cnn': got rows of shape {tuple(shape)}, expected images: data of shape (n, height, width) or "
            "(n, colours, height, width), or a data set that knows its shape"
        )
    if not channels:
        raise OptionError("channels: got (), expected at least one number of channels")
    return (1, *shape) if len(shape) == 2 else tuple(shape)  # type: ignore[return-value]


def conv_encoder(
    shape: Sequence[int],
    outputs: int,
    hidden: Sequence[int] = (128,),
    activation: str = "tanh",
    channels: Sequence[int] = (32, 64),
) -> nn.Module:
    """Convolutions of stride 2, then an `mlp`: (..., height * width) to (..., outputs).

    Args:
        shape: (height, width) or (colours, height, width) of a row.
        channels: of the convolutions, from the image inwards.
    """
    image, act = _image(shape, channels), choose("activation", activation, ACTIVATIONS)
    planes = (image[0], *channels)
    height, width = _halvings(image, len(channels))[-1]
    layers: list[nn.Module] = [nn.Unflatten(-1, image)]
    for a, b in zip(planes, planes[1:]):
        layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), act()]
    return AnyBatch(
        nn.Sequential(*layers, nn.Flatten(), mlp(channels[-1] * height * width, outputs, hidden, activation))
    )


def conv_decoder(
    inputs: int,
    shape: Sequence[int],
    outputs: int,
    hidden: Sequence[int] = (128,),
    activation: str = "tanh",
    channels: Sequence[int] = (32, 64),
) -> nn.Module:
    """The mirror of `conv_encoder`: (..., inputs) to (..., outputs), `outputs` a multiple of a row's size.

    The parameters of one distribution lie one after another, (loc of all pixels, scale of all pixels), as `mlp` lays them.
    """
    image, act = _image(shape, channels), choose("activation", activation, ACTIVATIONS)
    sizes = _halvings(image, len(channels))[::-1]
    planes = (*channels[::-1], outputs // prod(image) * image[0])
    small = (channels[-1], *sizes[0])
    layers: list[nn.Module] = [mlp(inputs, prod(small), hidden, activation), act(), nn.Unflatten(-1, small)]
    for a, b, (h, w), (to_h, to_w) in zip(planes, planes[1:], sizes, sizes[1:]):
        padding = (to_h - 2 * h + 1, to_w - 2 * w + 1)
        layers += [nn.ConvTranspose2d(a, b, 3, stride=2, padding=1, output_padding=padding), act()]
    return AnyBatch(nn.Sequential(*layers[:-1], nn.Flatten()))
