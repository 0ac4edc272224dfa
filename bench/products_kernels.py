"""The kernels of products beside what they replace: a product on a grid beside plain PyTorch, CP factors beside e3nn's
paths, and the four forms of a grid's product beside each other. Forward and backward, rows of products.run."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from e3nn import o3
from torch import Tensor

from ace_fast import functional
from ace_fast.kernels.sphere_product import counts as of_points
from ace_fast.kernels.sphere_product import reference
from ace_fast.kernels.sphere_product.tables import FORMS, Points, PointTable
from ace_fast.nn import TDNTensorProduct, TensorProduct

from . import gate, memory, operators, timing
from .products_cases import Case

BOTH = operators.DIRECTIONS[1]
SPARSE_MOST = 8  # the terms of higher degrees are more than ten thousand
JUDGED = 1000  # rows that are compared with float64, which takes as long as all else where there are many
GRID_WAYS = ("eager", "einsum")  # the plain versions of `grid`


def irreps_of(case: Case) -> o3.Irreps:
    """C channels of 0e+1e+...+Le."""
    return o3.Irreps([(case.channels, (n, 1)) for n in range(case.lmax + 1)])


def paths_of(irreps: o3.Irreps) -> list[tuple[int, int, int, str, bool]]:
    """All Clebsch-Gordan paths, channel by channel, with a weight each."""
    return [(i, j, k, "uuu", True) for i, (_, a) in enumerate(irreps) for j, (_, b) in enumerate(irreps)
            for k, (_, c) in enumerate(irreps) if c in a * b]


def grid(case: Case, device: str, dtype: torch.dtype, repeats: int, budget_s: float) -> dict[str, Any]:
    """`fast` is sphere_product on e3nn's rows [Z, C d]; `eager` takes [Z, C, d] to the points of the smallest exact
    grid and back by matrix products, `einsum` [Z, d, C] likewise: each on what it reads best."""
    table = functional.sphere_table((case.lmax,) * 2, case.lmax)
    to, back = (m.to(device, dtype) for m in dense_matrices(case.lmax))
    d = (case.lmax + 1) ** 2
    x, y = _drawn([(case.rows, d, case.channels)] * 2, device, dtype)
    own = {"x": reference.joined(x, False), "y": reference.joined(y, False)}

    def fast(x: Tensor, y: Tensor) -> Tensor:
        return functional.sphere_product(x, y, table=table)

    def plain(x: Tensor, y: Tensor) -> Tensor:
        x, y = (reference.components(rows, d, False).mT for rows in (x, y))
        return reference.joined(by_products(x, y, to.to(x.dtype), back.to(x.dtype)).mT, False)

    steps = {"fast": _step(fast, own),
             "eager": _step(lambda x, y: by_products(x, y, to, back), {"x": x.mT.contiguous(), "y": y.mT.contiguous()}),
             "einsum": _step(lambda x, y: by_einsum(x, y, to, back), {"x": x, "y": y})}
    row = _timed(steps, device, repeats, budget_s)
    row |= {"points": len(to), "speedup": min(row[f"{way}_ms"] for way in GRID_WAYS) / row["fast_ms"]}
    return row | _judged(fast, plain, own, dtype)


def dense_matrices(lmax: int) -> tuple[Tensor, Tensor]:
    """To the points of the smallest exact grid for a product of two fields of degree L kept to L, and back: [S, d]
    each, float64 on the CPU."""
    table = functional.sphere_table((lmax, lmax), lmax, form="dense")
    flat, points, _ = table.on(torch.device("cpu"))
    back, to, _ = (reference.matrix(flat, Points(*points), slot)[0] for slot in table.slots)
    return to, back


def by_products(x: Tensor, y: Tensor, to: Tensor, back: Tensor) -> Tensor:
    """x, y [Z, C, d] -> [Z, C, d], as matrix products."""
    return ((x @ to.T) * (y @ to.T)) @ back


def by_einsum(x: Tensor, y: Tensor, to: Tensor, back: Tensor) -> Tensor:
    """x, y [Z, d, C] -> [Z, d, C], as einsum."""
    values = torch.einsum("si,zic->zsc", to, x) * torch.einsum("si,zic->zsc", to, y)
    return torch.einsum("si,zsc->zic", back, values)


def factors(case: Case, device: str, dtype: torch.dtype, repeats: int, budget_s: float) -> dict[str, Any]:
    """`fast` is TDNTensorProduct of rank 7 L^2, `eager` e3nn's TensorProduct of mode "uuu", with weights of every row;
    beside them the exact factors and the exact product of this package."""
    irreps, free = irreps_of(case), {"internal_weights": False}
    own = free | {"shared_weights": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of L = 1 and 2, where the exact product is faster: this shows it
        layers = {"fast": TDNTensorProduct(*[irreps] * 3, **free),
                  "clebsch_gordan": TensorProduct(*[irreps] * 3, paths_of(irreps), **own),
                  "eager": o3.TensorProduct(*[irreps] * 3, paths_of(irreps), **own)}
        if case.lmax > 1:
            layers["tdn_exact"] = TDNTensorProduct(*[irreps] * 3, "exact", **free)
        slow = TDNTensorProduct(*[irreps] * 3, backend="reference", **free)
    steps, given = {}, {}
    for name, layer in layers.items():
        layers[name] = layer.to(device, dtype)
        x, y, w = _drawn([(case.rows, irreps.dim)] * 2 + [(case.rows, layer.weight_numel)], device, dtype)
        given[name] = {"x": x, "y": y, "weight": w}
        steps[name] = _step(lambda x, y, weight, layer=layers[name]: layer(x, y, weight), given[name])
    row = _timed(steps, device, repeats, budget_s)
    row |= {"rank": layers["fast"].fit.rank, "speedup": row["eager_ms"] / row["fast_ms"]}
    row |= _judged(layers["fast"], slow.to(device), given["fast"], dtype)
    if case.lmax == 1:
        row["tdn_exact_reason"] = "for degrees of at most 1 the exact product is faster"
    return row


def forms(case: Case, device: str, dtype: torch.dtype, repeats: int, budget_s: float) -> dict[str, Any]:
    """`fast` is what form="auto" takes, the others have their names; with the operations of each, of a column."""
    d = (case.lmax + 1) ** 2
    x, y = _drawn([(case.rows, case.channels * d)] * 2, device, dtype)
    tables = {"fast": functional.sphere_table((case.lmax,) * 2, case.lmax)}
    reasons = {}
    for form in FORMS:
        if device != "cpu" and form != "dense":
            reasons[f"{form}_reason"] = "a GPU takes the dense form"
        elif form == "sparse" and case.lmax > SPARSE_MOST:
            reasons[f"{form}_reason"] = f"the terms are too many above L = {SPARSE_MOST}"
        else:
            tables[form] = functional.sphere_table((case.lmax,) * 2, case.lmax, form=form)
    made = {name: _product(table) for name, table in tables.items()}
    own = {"x": x, "y": y}
    row = _timed({name: _step(product, own) for name, product in made.items()}, device, repeats, budget_s) | reasons
    row |= {f"{name}_flops": flops(table, x, y) for name, table in tables.items()}
    slow = _product(functional.sphere_table((case.lmax,) * 2, case.lmax, form="dense"), "reference")
    for name, product in made.items():
        row |= {key: f"{name}: {value}" if key == "error" else value
                for key, value in _judged(product, slow, own, dtype).items()}
    return row


def _product(table: PointTable, backend: str = "auto") -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: functional.sphere_product(x, y, table=table, backend=backend)


def flops(table: PointTable, x: Tensor, y: Tensor) -> float:
    """Operations of a row and channel, forward and both gradients."""
    inputs = {"x1": x, "x2": y, "grid": list(table.points), "slots": table.on(torch.device("cpu"))[2],
              "needs": [True, True]}
    columns = x.numel() / table.slots[1].dim
    return sum(count(inputs) for count in of_points.FLOPS.values()) / columns


def _drawn(shapes: Sequence[tuple[int, ...]], device: str, dtype: torch.dtype) -> list[Tensor]:
    """Normal tensors that require gradients."""
    g = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=g).to(device, dtype).requires_grad_() for shape in shapes]


def _step(function: Callable[..., Tensor], inputs: dict[str, Tensor]) -> Callable[[], object]:
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    return operators.call(function, leaves, tuple(leaves), BOTH)


def _timed(steps: dict[str, Callable[[], object]], device: str, repeats: int, budget_s: float) -> dict[str, Any]:
    """Time and memory of every version; `fast` is timed twice in a round, each time behind another version, which has
    the caches and the memory that it left."""
    first, *rest = [name for name in steps if name != "fast"]
    order = {"fast": steps["fast"], first: steps[first], "again": steps["fast"]} | {name: steps[name] for name in rest}
    times = timing.shared(order, device, repeats, wall=False, budget_s=budget_s)
    row = {"noise": timing.noise(times["fast"], times["again"]), "rounds": times["fast"].rounds}
    for name, step in steps.items():
        row |= {f"{name}_ms": times[name].median, f"{name}_mb": memory.peak_mb(step, device)[0],
                f"{name}_rounds": times[name].rounds}
    return row


def _judged(function: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: dict[str, Tensor],
            dtype: torch.dtype) -> dict[str, Any]:
    """Values and gradients of a call with all rows, the first JUDGED of them against `plain` in float64: the largest
    relative error, and what is wrong."""
    with torch.no_grad():
        g = torch.randn_like(function(**inputs))

    def numbers(f: Callable[..., Tensor], precision: torch.dtype, rows: int | None) -> gate.Numbers:
        leaves = {name: x.detach()[:rows].to(precision).requires_grad_() for name, x in inputs.items()}
        y = f(**leaves)
        slopes = torch.autograd.grad(y, list(leaves.values()), g[:rows].to(precision))
        found = {"output": y.detach()} | {f"gradient of {name}": x for name, x in zip(leaves, slopes, strict=True)}
        return {name: x[:JUDGED] for name, x in found.items()}

    gold, single = (numbers(plain, precision, JUDGED) for precision in (torch.float64, torch.float32))
    error, worst = gate.verdict(numbers(function, dtype, None), gold, gate.limits(gold, single, dtype))
    return {"fast_max_relative_error": worst} | ({"error": error} if error else {})
