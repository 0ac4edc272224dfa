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
from ace_fast.nn import choice
from ace_fast.nn.choice import candidates

from . import machine, products_kernels
from . import steps as of_steps
from .products_cases import Case
from .products_kernels import Work

FITTED_MOST = 6  # fits to there take two minutes, once; one at L = 10 takes five
EXACT_RANKS = {1: 8, 2: 30, 3: 96}  # found by fits; see ace_fast.nn.cp
BOUND = {torch.float32: 1e-5, torch.float64: 1e-12}  # of the equivariance error of an exact product
ROUNDS = 40  # of a fast version; the shares of a budget limit slow ones
BUDGET_S = {"layers": 12.0, "grid": 6.0, "cp": 8.0, "forms": 3.0}  # of timing for a case
QUICK_S = 1.0
PROTOCOLS = {"layers": "products", "grid": "products_grid", "cp": "products_cp", "forms": "products_forms"}
ECOMPILED = "eager" + products_kernels.COMPILED
COMPILED_MOST = 3  # 34 paths; layers of higher degree take torch.compile minutes
VERSIONS = {"fast": "clebsch_gordan", "eager": "e3nn"}  # of rows: ours and its reference


def ranks(lmax: int) -> tuple[int, ...]:
    """Of the fitted CP factors: TDN's 7 L^2, and the smallest known to be exact."""
    if lmax > FITTED_MOST:
        return ()
    return tuple(dict.fromkeys((7 * lmax**2, EXACT_RANKS.get(lmax, 7 * lmax**2))))


def run(case: Case, device: str, dtype: torch.dtype, repeats: int = ROUNDS, quick: bool = False,
        compiled: bool = False) -> dict[str, Any]:
    """The row of a case, on demand with plain versions under torch.compile; versions that cannot run have a reason, and
    what is wrong or fails an `error`."""
    row = {"protocol": PROTOCOLS[case.group], "case": str(case).removeprefix(f"{case.group}_"),
           "direction": "forward+backward", "command": f"python -m bench --suite products --case {case}",
           "device": device, "dtype": str(dtype).removeprefix("torch."), "degree": case.lmax,
           "channels": case.channels, "rows": case.rows} | machine.describe(device)
    try:
        work = prepare(case, device, dtype, compiled)
        row |= products_kernels.timed(work.steps, device, repeats, QUICK_S if quick else BUDGET_S[case.group])
        return row | work.reasons | work.finish(row)
    except Exception as error:  # a row with the reason, never a missing row
        return row | {"error": f"{type(error).__name__}: {error}"}


def prepare(case: Case, device: str, dtype: torch.dtype, compiled: bool) -> Work:
    """The versions of a case, ready to run."""
    return {"layers": layers, "grid": products_kernels.grid, "cp": products_kernels.factors,
            "forms": products_kernels.forms}[case.group](case, device, dtype, compiled)


def layers(case: Case, device: str, dtype: torch.dtype, compiled: bool) -> Work:
    """`fast` is ace_fast's Clebsch-Gordan product, `eager` e3nn's, the others have their names."""
    irreps = products_kernels.irreps_of(case)
    found, why = candidates(irreps, irreps, irreps, ranks(case.lmax))
    if case.lmax > FITTED_MOST:
        why["tdn"] = f"CP factors are not fitted here above L = {FITTED_MOST}: minutes each"
    names = {theirs: mine for mine, theirs in VERSIONS.items()}
    powers = {names.get(c.name, c.name): (c.paths, c.maps) for c in found}
    made = {names.get(c.name, c.name): c.make().to(device, dtype) for c in found}
    made["eager"] = products_kernels.plain_e3nn(partial(_e3nn, irreps), device).to(device, dtype)
    powers["eager"] = powers[ECOMPILED] = powers["fast"]
    steps = {name: choice.step(layer, case.rows, device, dtype) for name, layer in made.items()}
    reasons = {f"{names.get(name, name)}_reason": reason for name, reason in why.items()}
    if compiled and case.lmax <= COMPILED_MOST:
        made[ECOMPILED] = of_steps.unscripted(partial(_e3nn, irreps)).to(device, dtype)
        with torch.no_grad():
            torch._foreach_copy_(list(made[ECOMPILED].parameters()), list(made["eager"].parameters()))
        steps[ECOMPILED] = choice.step(of_steps.compiled(made[ECOMPILED]), case.rows, device, dtype)
    else:
        reasons[f"{ECOMPILED}_reason"] = ("not asked for (--compile)" if not compiled else
                                          f"torch.compile takes minutes above L = {COMPILED_MOST}")

    def finish(row: dict[str, Any]) -> dict[str, Any]:
        errors = {name: choice.equivariance_error(made[name], device, dtype) for name in made if f"{name}_ms" in row}
        more = {"speedup": min(row[f"{name}_ms"] for name in ("eager", ECOMPILED) if name in errors) / row["fast_ms"]}
        for name, error in errors.items():
            paths, maps = powers[name]
            more |= {f"{name}_paths": paths, f"{name}_maps": maps, f"{name}_equivariance_error": error}
        return more | ({"error": wrong[0]} if (wrong := list(_wrong(errors, dtype))) else {})

    return Work(steps, reasons, finish)


def _e3nn(irreps: o3.Irreps) -> nn.Module:
    return o3.TensorProduct(irreps, irreps, irreps, products_kernels.paths_of(irreps))


def _wrong(errors: dict[str, float], dtype: torch.dtype) -> Iterator[str]:
    """Exact products that are not equivariant."""
    for name, error in errors.items():
        if not name.startswith("tdn") or name == "tdn_exact":
            if not error <= BOUND[dtype]:
                yield f"{name}: equivariance error {error:.1e}, more than {BOUND[dtype]:.0e}"


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
    if version.endswith(products_kernels.COMPILED):
        return f"{title(version.removesuffix(products_kernels.COMPILED), protocol)}, compiled"
    words = {
        "products": {"fast": "Clebsch-Gordan", "eager": "Clebsch-Gordan, e3nn"},
        "products_grid": {"fast": "fused", "eager": "matrix products", "einsum": "einsum", "triton": "fused, Triton"},
        "products_cp": {"fast": "CP, rank 7 L²", "eager": "e3nn, uuu", "clebsch_gordan": "Clebsch-Gordan"},
        "products_forms": {"fast": "auto"} | {form: form for form in FORMS},
    }[protocol] | {"gaunt_grid": "Gaunt, grid", "gaunt_fourier": "Gaunt, Fourier", "gaunt_bracket": "Gaunt and bracket",
                   "tdn_exact": "CP, exact"}
    return words.get(version) or f"CP, rank {version.removeprefix('tdn_')}"
