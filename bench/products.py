"""Every product of irreps beside every other, degree by degree: time, memory, what it can express, how exact it is.

The irreps are C channels of 0e+1e+...+Le in both inputs and the result, rotations without parity, so that all
Clebsch-Gordan paths are there. This is the comparison of "The Price of Freedom" (Xie et al. 2025), with fused kernels
and with gradients.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from e3nn import o3
from torch import nn

from ace_fast.nn.choice import Candidate, candidates, measure

from . import machine

MOST = 10  # degrees
CHANNELS = 16
NUMBERS = 2**18  # of an input at most: fewer rows for higher degrees
EAGER_MOST = 4  # e3nn's generated code for all paths takes minutes to build above
FITTED_MOST = 4  # a fit takes minutes above
EXACT_RANKS = {2: 30, 3: 96}  # found by fits; see ace_fast.nn.cp
BOUND = {torch.float32: 1e-5, torch.float64: 1e-12}  # of the equivariance error of an exact product
BUDGET_S, QUICK_MOST = 20.0, 2
VERSIONS = {"fast": "clebsch_gordan", "eager": "e3nn"}  # of rows: ours and its reference


def case_name(lmax: int, channels: int, rows: int) -> str:
    return f"L{lmax}_C{channels}@{rows}"


def cases(quick: bool = False) -> list[str]:
    """A case for every degree."""
    found = []
    for lmax in range(1, (QUICK_MOST if quick else MOST) + 1):
        rows = NUMBERS // (CHANNELS * (lmax + 1) ** 2)
        found.append(case_name(lmax, CHANNELS, rows // 16 if quick else rows))
    return found


def parse(case: str) -> tuple[int, int, int]:
    """L, channels and rows of a case.

    Raises:
        ValueError: no case of this suite.
    """
    found = re.fullmatch(r"L(\d+)(?:_C(\d+))?(?:@(\d+))?", case)
    lmax = int(found[1]) if found else 0
    if not 1 <= lmax <= MOST or "0" in (found[2], found[3]):
        raise ValueError(f"products: the case must be L1 to L{MOST}, or L2_C{CHANNELS}@1000 with channels and rows, "
                         f"got {case!r}")
    channels = int(found[2] or CHANNELS)
    return lmax, channels, int(found[3] or max(1, NUMBERS // (channels * (lmax + 1) ** 2)))


def ranks(lmax: int) -> tuple[int, ...]:
    """Of the fitted CP factors: TDN's 7 L^2, and the smallest known to be exact."""
    if not 2 <= lmax <= FITTED_MOST:
        return ()
    return tuple(dict.fromkeys((7 * lmax**2, EXACT_RANKS.get(lmax, 7 * lmax**2))))


def _e3nn(irreps: o3.Irreps) -> nn.Module:
    paths = [(i, j, k, "uuu", True) for i, (_, a) in enumerate(irreps) for j, (_, b) in enumerate(irreps)
             for k, (_, c) in enumerate(irreps) if c in a * b]
    return o3.TensorProduct(irreps, irreps, irreps, paths)


def run(case: str, device: str, dtype: torch.dtype, repeats: int, quick: bool = False) -> dict[str, Any]:
    """The row of a case: `fast` is ace_fast's Clebsch-Gordan product, `eager` e3nn's, the others have their names."""
    lmax, channels, rows = parse(case)
    irreps = o3.Irreps([(channels, (n, 1)) for n in range(lmax + 1)])
    found, reasons = candidates(irreps, irreps, irreps, ranks(lmax))
    if lmax > FITTED_MOST:
        reasons["tdn"] = f"CP factors are not fitted here above L = {FITTED_MOST}: minutes each"
    if lmax <= EAGER_MOST:
        found.append(Candidate("e3nn", partial(_e3nn, irreps), found[0].paths, found[0].maps))
    else:
        reasons["e3nn"] = f"e3nn's generated code is not built here above L = {EAGER_MOST}: minutes"
    found.append(found[0]._replace(name="again"))
    measured = {row["name"]: row for row in measure(found, rows, device, dtype, repeats, 2.0 if quick else BUDGET_S)}
    row = {"protocol": "products", "case": case_name(lmax, channels, rows), "direction": "forward+backward",
           "command": f"python -m bench --suite products --case {case_name(lmax, channels, rows)}", "device": device,
           "dtype": str(dtype).removeprefix("torch."), "degree": lmax, "channels": channels, "rows": rows}
    ours, again = measured["clebsch_gordan"], measured.pop("again")
    row |= {"noise": abs(ours["ms"] - again["ms"]) / min(ours["ms"], again["ms"]), "rounds": ours["rounds"]}
    names = {theirs: mine for mine, theirs in VERSIONS.items()}
    for c in found[:-1]:
        mine, one = names.get(c.name, c.name), measured[c.name]
        row |= {f"{mine}_{key}": one[key] for key in ("ms", "mb", "paths", "maps", "equivariance_error")}
    row |= {f"{names.get(name, name)}_reason": why for name, why in reasons.items()}
    if "eager_ms" in row:
        row["speedup"] = row["eager_ms"] / row["fast_ms"]
    if wrong := list(_wrong(measured, dtype)):
        row["error"] = wrong[0]
    return row | machine.describe(device)


def _wrong(measured: dict[str, dict[str, Any]], dtype: torch.dtype) -> Iterator[str]:
    """Exact products that are not equivariant."""
    for name, one in measured.items():
        if not name.startswith("tdn") or name == "tdn_exact":
            if not one["equivariance_error"] <= BOUND[dtype]:
                yield f"{name}: equivariance error {one['equivariance_error']:.1e}, more than {BOUND[dtype]:.0e}"


def shown(row: dict[str, Any], number: Callable[[float | None], str]) -> Iterator[list[str]]:
    """A line for every version of a row: case, product, ms, MB, over Clebsch-Gordan's time, paths, maps, error."""
    versions = sorted((key.removesuffix("_paths") for key in row if key.endswith("_paths")),
                      key=lambda version: row[f"{version}_ms"])
    for version in versions:
        ratio = row[f"{version}_ms"] / row["fast_ms"]
        yield [row["case"], title(version), number(row[f"{version}_ms"]), number(row[f"{version}_mb"]),
               f"{ratio:.2f}", str(row[f"{version}_paths"]), str(row[f"{version}_maps"]),
               f"{row[f'{version}_equivariance_error']:.1e}"]


def title(version: str) -> str:
    """A version in words."""
    words = {"fast": "Clebsch-Gordan", "eager": "Clebsch-Gordan, e3nn", "gaunt_grid": "Gaunt, grid",
             "gaunt_fourier": "Gaunt, Fourier", "gaunt_bracket": "Gaunt and bracket", "tdn_exact": "CP, exact"}
    return words.get(version) or f"CP, rank {version.removeprefix('tdn_')}"
