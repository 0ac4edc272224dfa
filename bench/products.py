"""Every product of irreps beside every other, degree by degree: time, memory, what it can express, how exact it is.

The irreps are C channels of 0e+1e+...+Le in both inputs and the result, rotations without parity, so that all
Clebsch-Gordan paths are there. This is the comparison of "The Price of Freedom" (Xie et al. 2025), with fused kernels
and with gradients. Beside the layers: the two kernels against what they replace, and the forms of a grid's product
(products_kernels).
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from e3nn import o3
from torch import nn

from ace_fast.kernels.sphere_product.tables import FORMS
from ace_fast.nn.choice import Candidate, candidates, measure

from . import machine, products_kernels
from .products_cases import Case

FITTED_MOST = 6  # fits to there take two minutes, once; one at L = 10 takes five
EXACT_RANKS = {2: 30, 3: 96}  # found by fits; see ace_fast.nn.cp
BOUND = {torch.float32: 1e-5, torch.float64: 1e-12}  # of the equivariance error of an exact product
ROUNDS = 40  # of a fast version; the shares of a budget limit slow ones
BUDGET_S = {"layers": 12.0, "grid": 6.0, "cp": 8.0, "forms": 3.0}  # of timing for a case
QUICK_S = 1.0
PROTOCOLS = {"layers": "products", "grid": "products_grid", "cp": "products_cp", "forms": "products_forms"}
VERSIONS = {"fast": "clebsch_gordan", "eager": "e3nn"}  # of rows: ours and its reference


def ranks(lmax: int) -> tuple[int, ...]:
    """Of the fitted CP factors: TDN's 7 L^2, and the smallest known to be exact."""
    if not 2 <= lmax <= FITTED_MOST:
        return ()
    return tuple(dict.fromkeys((7 * lmax**2, EXACT_RANKS.get(lmax, 7 * lmax**2))))


def run(case: Case, device: str, dtype: torch.dtype, repeats: int = ROUNDS, quick: bool = False) -> dict[str, Any]:
    """The row of a case; versions that cannot run have a reason, and what is wrong an `error`."""
    group = {"layers": _layers, "grid": products_kernels.grid, "cp": products_kernels.factors,
             "forms": products_kernels.forms}[case.group]
    row = {"protocol": PROTOCOLS[case.group], "case": str(case).removeprefix(f"{case.group}_"),
           "direction": "forward+backward", "command": f"python -m bench --suite products --case {case}",
           "device": device, "dtype": str(dtype).removeprefix("torch."), "degree": case.lmax,
           "channels": case.channels, "rows": case.rows}
    return row | group(case, device, dtype, repeats, QUICK_S if quick else BUDGET_S[case.group]
                       ) | machine.describe(device)


def _layers(case: Case, device: str, dtype: torch.dtype, repeats: int, budget_s: float) -> dict[str, Any]:
    """`fast` is ace_fast's Clebsch-Gordan product, `eager` e3nn's, the others have their names."""
    irreps = products_kernels.irreps_of(case)
    found, reasons = candidates(irreps, irreps, irreps, ranks(case.lmax))
    if case.lmax > FITTED_MOST:
        reasons["tdn"] = f"CP factors are not fitted here above L = {FITTED_MOST}: minutes each"
    found.append(Candidate("e3nn", partial(_e3nn, irreps), found[0].paths, found[0].maps))
    found.append(found[0]._replace(name="again"))
    measured = {row["name"]: row for row in measure(found, case.rows, device, dtype, repeats, budget_s)}
    ours, again = measured["clebsch_gordan"], measured.pop("again")
    row = {"noise": abs(ours["ms"] - again["ms"]) / min(ours["ms"], again["ms"]), "rounds": ours["rounds"]}
    names = {theirs: mine for mine, theirs in VERSIONS.items()}
    for c in found[:-1]:
        mine, one = names.get(c.name, c.name), measured[c.name]
        row |= {f"{mine}_{key}": one[key] for key in ("ms", "mb", "paths", "maps", "rounds", "equivariance_error")}
    row |= {f"{names.get(name, name)}_reason": why for name, why in reasons.items()}
    if "eager_ms" in row:
        row["speedup"] = row["eager_ms"] / row["fast_ms"]
    if wrong := list(_wrong(measured, dtype)):
        row["error"] = wrong[0]
    return row


def _e3nn(irreps: o3.Irreps) -> nn.Module:
    return o3.TensorProduct(irreps, irreps, irreps, products_kernels.paths_of(irreps))


def _wrong(measured: dict[str, dict[str, Any]], dtype: torch.dtype) -> Iterator[str]:
    """Exact products that are not equivariant."""
    for name, one in measured.items():
        if not name.startswith("tdn") or name == "tdn_exact":
            if not one["equivariance_error"] <= BOUND[dtype]:
                yield f"{name}: equivariance error {one['equivariance_error']:.1e}, more than {BOUND[dtype]:.0e}"


def shown(row: dict[str, Any], number: Callable[[float | None], str]) -> Iterator[list[str]]:
    """A line for every version of a row, fastest first: case, product, ms, MB, over ours, and for layers paths, maps
    and equivariance error."""
    for version in sorted(timed(row), key=lambda version: row[f"{version}_ms"]):
        line = [name(row), title(version, row["protocol"]), number(row[f"{version}_ms"]), number(row[f"{version}_mb"])]
        rest = [str(row.get(f"{version}_{key}", "")) for key in ("paths", "maps")]
        error = row.get(f"{version}_equivariance_error")
        yield [*line, f"{row[f'{version}_ms'] / row['fast_ms']:.2f}", *rest, "" if error is None else f"{error:.1e}"]


def name(row: dict[str, Any]) -> str:
    """What --case takes for a row."""
    return row["command"].split()[-1]


def timed(row: dict[str, Any]) -> list[str]:
    """The versions of a row that have a time."""
    return [key.removesuffix("_ms") for key in row if key.endswith("_ms")]


def title(version: str, protocol: str = "products") -> str:
    """A version in words."""
    words = {
        "products": {"fast": "Clebsch-Gordan", "eager": "Clebsch-Gordan, e3nn"},
        "products_grid": {"fast": "fused", "eager": "matrix products", "einsum": "einsum"},
        "products_cp": {"fast": "CP, rank 7 L²", "eager": "e3nn, uuu", "clebsch_gordan": "Clebsch-Gordan"},
        "products_forms": {"fast": "auto"} | {form: form for form in FORMS},
    }[protocol] | {"gaunt_grid": "Gaunt, grid", "gaunt_fourier": "Gaunt, Fourier", "gaunt_bracket": "Gaunt and bracket",
                   "tdn_exact": "CP, exact"}
    return words.get(version) or f"CP, rank {version.removeprefix('tdn_')}"
