"""The normal quantile function in arithmetic that vectorises: Wichura (1988), algorithm AS 241 (PPND16, PPND7)."""

from typing import Any

import torch
from torch import Tensor

CENTRE = (
    (
        3.3871328727963666080,
        133.14166789178437745,
        1971.5909503065514427,
        13731.693765509461125,
        45921.953931549871457,
        67265.770927008700853,
        33430.575583588128105,
        2509.0809287301226727,
    ),
    (
        1.0,
        42.313330701600911252,
        687.18700749205790830,
        5394.1960214247511077,
        21213.794301586595867,
        39307.895800092710610,
        28729.085735721942674,
        5226.4952788528545610,
    ),
)
MIDDLE = (
    (
        1.42343711074968357734,
        4.63033784615654529590,
        5.76949722146069140550,
        3.64784832476320460504,
        1.27045825245236838258,
        0.241780725177450611770,
        0.0227238449892691845833,
        7.74545014278341407640e-4,
    ),
    (
        1.0,
        2.05319162663775882187,
        1.67638483018380384940,
        0.689767334985100004550,
        0.148103976427480074590,
        0.0151986665636164571966,
        5.47593808499534494600e-4,
        1.05075007164441684324e-9,
    ),
)
TAIL = (
    (
        6.65790464350110377720,
        5.46378491116411436990,
        1.78482653991729133580,
        0.296560571828504891230,
        0.0265321895265761230930,
        1.24266094738807843860e-3,
        2.71155556874348757815e-5,
        2.01033439929228813265e-7,
    ),
    (
        1.0,
        0.599832206555887937690,
        0.136929880922735805310,
        0.0148753612908506148525,
        7.86869131145613259100e-4,
        1.84631831751005468180e-5,
        1.42151175831644588870e-7,
        2.04426310338993978564e-15,
    ),
)


SHORT = (
    ((3.3871327179, 50.434271938, 159.29113202, 59.109374720), (1.0, 17.895169469, 78.757757664, 67.187563600)),
    ((1.4234372777, 2.7568153900, 1.3067284816, 0.17023821103), (1.0, 0.73700164250, 0.12021132975)),
    ((6.6579051150, 3.0812263860, 0.42868294337, 0.017337203997), (1.0, 0.24197894225, 0.012258202635)),
)


def normal_quantile(p: Tensor) -> Tensor:
    """Quantiles of N(0, 1), float64, to a relative error of 1e-15.

    Args:
        p: (...) in (0, 1), float64.

    Example:
        >>> p = torch.tensor([1e-300, 0.025, 0.5, 0.975], dtype=torch.float64)
        >>> torch.allclose(normal_quantile(p), torch.special.ndtri(p), rtol=1e-14)
        True
    """
    return _quantile(p - 0.5, torch.minimum(p, 1 - p), (CENTRE, MIDDLE, TAIL))


def short_normal_quantile(p: Tensor) -> Tensor:
    """The same to float32's accuracy, a relative error of 5e-7, and by its arithmetic (PPND7).

    Example:
        >>> p = torch.tensor([1e-30, 0.025, 0.5, 0.975], dtype=torch.float64)
        >>> torch.allclose(short_normal_quantile(p), torch.special.ndtri(p), rtol=1e-6)
        True
    """
    return _quantile((p - 0.5).float(), torch.minimum(p, 1 - p).float(), SHORT).double()


def _quantile(q: Tensor, tail: Tensor, ratios: Any) -> Tensor:
    centre, middle, far = ratios
    r = (-torch.log(tail)).sqrt()
    tails = torch.where(r <= 5, _ratio(middle, r - 1.6), _ratio(far, r - 5))
    return torch.where(q.abs() <= 0.425, q * _ratio(centre, 0.180625 - q * q), torch.copysign(tails, q))


def _ratio(polynomials: tuple[tuple[float, ...], tuple[float, ...]], x: Tensor) -> Tensor:
    above, below = (_horner(coefficients, x) for coefficients in polynomials)
    return above / below


def _horner(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    total = torch.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        total = total * x + c
    return total
