"""Rows as they are shown: images as pixels, cells as short text."""

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ppl_vae.use.report.charts import LONGEST, MINUS, cut, short, signed

VERMILLION = (213, 94, 0)
MOST_PIXELS = 64
"""Of each side of an image; larger ones are thinned out."""


def image_shape(schema: Any) -> tuple[int, int, int] | None:
    """(height, width, colours) of rows that are images with one colour or three, else None."""
    shape = () if schema is None else tuple(schema.shape)
    if len(shape) == 2:
        return shape[0], shape[1], 1
    return (shape[1], shape[2], shape[0]) if len(shape) == 3 and shape[0] in (1, 3) else None


def limits(values: np.ndarray) -> tuple[float, float]:
    """Black and white: 0 and 1 for values between them, else all but the outermost 1 % on each side."""
    if values.min() >= 0 and values.max() <= 1:
        return 0.0, 1.0
    low, high = np.quantile(values, (0.01, 0.99))
    return float(low), float(max(high, low + 1e-12))


def pixels(values: np.ndarray, shape: tuple[int, int, int], ends: tuple[float, float]) -> np.ndarray:
    """Rows (n, d) as bytes (n, height, width, colours), each side thinned out to `MOST_PIXELS`."""
    height, width, colours = shape
    planes = np.moveaxis(values.reshape(len(values), colours, height, width), 1, -1)
    down, right = (math.ceil(side / MOST_PIXELS) for side in (height, width))
    grey = (planes[:, ::down, ::right] - ends[0]) / (ends[1] - ends[0])
    return np.rint(np.nan_to_num(grey).clip(0, 1) * 255).astype(np.uint8)


def png(image: np.ndarray) -> str:
    """Bytes (height, width, 1, 3 or 4) as the address of a picture that is in the page itself."""
    from matplotlib.image import imsave

    content = io.BytesIO()
    shown = np.repeat(image, 3, -1) if image.shape[-1] == 1 else image
    imsave(content, np.ascontiguousarray(shown), format="png")
    return "data:image/png;base64," + encoded(content.getvalue())


def strip(images: np.ndarray, across: int) -> np.ndarray:
    """Images (n, height, width, colours) beside and below each other, with a transparent pixel between them."""
    n, height, width, _ = images.shape
    whole = np.zeros((math.ceil(n / across) * (height + 1) - 1, across * (width + 1) - 1, 4), np.uint8)
    for place, image in enumerate(images):
        top, left = place // across * (height + 1), place % across * (width + 1)
        whole[top : top + height, left : left + width, :3] = image
        whole[top : top + height, left : left + width, 3] = 255
    return whole


def coloured(image: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """An image (height, width, colours) with vermillion over it, as strong as `strength` (height, width) in [0, 1] says."""
    alpha = strength[..., None]
    return np.rint((1 - alpha) * image + alpha * np.array(VERMILLION)).astype(np.uint8)


def encoded(content: bytes) -> str:
    """Bytes as text."""
    return base64.b64encode(content).decode()


def cell(value: Any, longest: int = 60) -> str:
    """A cell of a table as text: four digits of a number, nothing for a missing cell."""
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)) or value != value:
        return ""
    if isinstance(value, str):
        return signed(value) if is_number(value) else cut(value, longest)
    if isinstance(value, bool | np.bool_):
        return str(value)
    if isinstance(value, int | np.integer):
        return str(value).replace("-", MINUS)
    return short(float(value)) if isinstance(value, float | np.floating) else cut(str(value), longest)


def is_number(text: str) -> bool:
    """Whether a text is a number and nothing else."""
    try:
        return bool(text) and len(text) <= LONGEST and math.isfinite(float(text))
    except ValueError:
        return False


def cells(values: Sequence[Any]) -> list[str]:
    """Each as text."""
    return [cell(value) for value in values]
