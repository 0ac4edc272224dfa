"""The bilinear algorithm that the kernels run: constant rows along time, and which rows meet which weights."""

import functools
import math
from typing import NamedTuple


class Term(NamedTuple):
    """`sums[to] += rows[source] (re Re W[mode] + im Im W[mode])`: one real product of channels."""

    source: int
    to: int
    mode: int
    re: int
    im: int


class Algebra(NamedTuple):
    """rows = analysis x over time, sums from the rows by `terms`, y = synthesis sums over time."""

    analysis: tuple[tuple[float, ...], ...]  # [A, T]
    synthesis: tuple[tuple[float, ...], ...]  # [T, B]
    terms: tuple[Term, ...]  # each row has a term, each sum too


def wave(k: int, times: int) -> tuple[float, float]:
    """cos and sin of 2 pi k / T, exactly 0 and +-1 at quarter turns."""
    quarter, rest = divmod(4 * k, times)
    if rest == 0:
        return ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[quarter % 4]
    angle = 2 * math.pi * (k % times) / times
    return math.cos(angle), math.sin(angle)


def is_real(mode: int, times: int) -> bool:
    """Mode 0 and, for even T, mode T/2: their coefficients are real, the imaginary part of the weight has no effect."""
    return 2 * mode in (0, times)


def flops(times: int, modes: int, channels_in: int, channels_out: int, three: bool) -> int:
    """Floating-point operations of one node: sums over time, products of channels."""
    real = sum(is_real(m, times) for m in range(modes))
    rows = real + (3 if three else 2) * (modes - real)
    products = real + (3 if three else 4) * (modes - real)
    return 2 * times * rows * (channels_in + channels_out) + 2 * products * channels_in * channels_out


def three_products(times: int, modes: int, channels_in: int, channels_out: int) -> bool:
    """Whether complex products by three real ones (and one more row along time) take fewer operations than by four."""
    sizes = times, modes, channels_in, channels_out
    return flops(*sizes, True) < flops(*sizes, False)


@functools.cache
def algebra(times: int, modes: int, three: bool) -> Algebra:
    """The rows and terms for T time steps and M modes.

    With p + i q = sum_t x_t exp(-i w t) and W = U + i V, a mode of the result is (p U - q V) cos(w t) -
    (p V + q U) sin(w t): four products, or Gauss's three, (p + q) U, p (V - U) and q (U + V).
    """
    analysis, columns, terms = [], [], []
    for mode in range(modes):
        waves = [wave(mode * t, times) for t in range(times)]
        cos, sin = [c for c, _ in waves], [s for _, s in waves]
        factor = (1.0 if is_real(mode, times) else 2.0) / times
        a, b = len(analysis), len(columns)
        if is_real(mode, times):
            analysis.append(cos)
            columns.append([factor * c for c in cos])
            terms.append(Term(a, b, mode, 1, 0))
        elif three:
            # real part k1 - k3, imaginary part k1 + k2 of the three products k
            analysis += [[c - s for c, s in waves], cos, [-s for s in sin]]
            columns += [[factor * (c - s) for c, s in waves], [-factor * s for s in sin], [-factor * c for c in cos]]
            terms += [Term(a, b, mode, 1, 0), Term(a + 1, b + 1, mode, -1, 1), Term(a + 2, b + 2, mode, 1, 1)]
        else:
            analysis += [cos, [-s for s in sin]]
            columns += [[factor * c for c in cos], [-factor * s for s in sin]]
            terms += [Term(a, b, mode, 1, 0), Term(a + 1, b, mode, 0, -1),
                      Term(a, b + 1, mode, 0, 1), Term(a + 1, b + 1, mode, 1, 0)]
    return Algebra(tuple(map(tuple, analysis)), tuple(zip(*columns, strict=True)), tuple(terms))
