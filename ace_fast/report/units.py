"""Numbers as people read them: three digits, a unit, and no claim inside the noise."""

from __future__ import annotations

import math

DASH = "–"
TIMES = "×"


def digits(value: float, count: int = 3) -> str:
    """`count` significant digits without an exponent between 0.001 and a million: 0.0123, 4.38, 1,230."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if not 1e-3 <= abs(value) < 1e6:
        return power(value, count)
    rounded = float(f"{abs(value):.{count - 1}e}")  # 9.999 has the places of 10.0
    places = max(0, count - 1 - math.floor(math.log10(rounded)))
    return f"{value:,.{places}f}"


def power(value: float, count: int = 2) -> str:
    """Scientific notation with a real minus and superscripts: 4.3 × 10⁻⁷."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    mantissa, exponent = f"{value:.{count - 1}e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if float(mantissa) == 1 and count == 1 else f"{mantissa} {TIMES} 10{raised}"


def time(ms: float | None) -> str:
    """Milliseconds in ns, µs, ms, s or min."""
    return _scaled(ms, ((6e4, "min"), (1e3, "s"), (1.0, "ms"), (1e-3, "µs"), (1e-6, "ns")))


def memory(mib: float | None) -> str:
    """MiB in KiB, MiB or GiB."""
    return _scaled(mib, ((1024.0, "GiB"), (1.0, "MiB"), (1 / 1024, "KiB")))


def count(value: float | None, unit: str = "") -> str:
    """1.23 k, 4.5 M, 6 G: counts and rates."""
    if value is None or abs(value) < 1e4:
        return DASH if value is None else f"{digits(value)} {unit}".strip()
    return f"{_scaled(value, ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')))} {unit}".strip()


def _scaled(value: float | None, steps: tuple[tuple[float, str], ...]) -> str:
    if value is None:
        return DASH
    # a value that rounds up to the next unit is shown in it: 999.9 ms is 1.00 s
    factor, unit = next(((f, u) for f, u in steps if abs(value) >= f * 0.9995), steps[-1])
    return f"{digits(value / factor)} {unit}"


def ratio(value: float | None) -> str:
    """4.4×, 12×, 0.64×: two digits."""
    if value is None:
        return DASH
    return f"{digits(value, 2)}{TIMES}"


def percent(share: float | None) -> str:
    """A share as percent, with a digit where it is small."""
    if share is None:
        return DASH
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.1f} %"


def within_noise(speedup: float, noise: float | None) -> bool:
    """Whether a ratio says nothing, because the same version timed twice differs as much."""
    return noise is not None and abs(math.log(speedup)) <= math.log1p(noise)


def compared(speedup: float | None, noise: float | None) -> str:
    """The ratio, or that it is within the noise."""
    if speedup is None:
        return DASH
    return "within noise" if within_noise(speedup, noise) else ratio(speedup)
