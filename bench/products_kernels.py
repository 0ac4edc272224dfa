"""The kernels of products beside what they replace: a product on a grid beside plain PyTorch, CP factors beside e3nn's
paths, and the four forms of a grid's product beside each other. Forward and backward, rows of products.run."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from e3nn import o3
from torch import Tensor

from ace_fast import functional
from ace_fast.backend import ORDER
from ace_fast.kernels.sphere_product import counts as of_points
from ace_fast.kernels.sphere_product import reference
from ace_fast.kernels.sphere_product.tables import FORMS, Points, PointTable
from ace_fast.nn import TDNTensorProduct, TensorProduct

from . import captured, gate, memory, operators, timing
from . import steps as of_steps
from .products_cases import Case

SPARSE_MOST = 8  # the terms of higher degrees are more than ten thousand
JUDGED = 1000  # rows that are compared with float64, which takes as long as all else where there are many
GRID_WAYS = ("eager", "einsum", "eager_compiled", "einsum_compiled")  # the plain versions of `grid`
COMPILED, CLOSE = "_compiled", 1e-4  # suffix of versions under torch.compile; largest difference from the plain one
CALLS = 10  # rounds of calls beside captured ones


def irreps_of(case: Case) -> o3.Irreps:
    """C channels of 0e+1e+...+Le."""
    return o3.Irreps([(case.channels, (n, 1)) for n in range(case.lmax + 1)])


def paths_of(irreps: o3.Irreps) -> list[tuple[int, int, int, str, bool]]:
    """All Clebsch-Gordan paths, channel by channel, with a weight each."""
    return [(i, j, k, "uuu", True) for i, (_, a) in enumerate(irreps) for j, (_, b) in enumerate(irreps)
            for k, (_, c) in enumerate(irreps) if c in a * b]


class Work(NamedTuple):
    """The versions of a case and what its row says beside their times."""

    steps: dict[str, Callable[[], object]]
    reasons: dict[str, str]  # `<version>_reason` -> why there is none
    finish: Callable[[dict[str, Any]], dict[str, Any]]  # the row with times -> the rest of it


def grid(case: Case, device: str, dtype: torch.dtype, compiled: bool) -> Work:
    """`fast` is sphere_product on e3nn's rows [Z, C d]; `eager` takes [Z, C, d] to the points of the smallest exact
    grid and back by matrix products, `einsum` [Z, d, C] likewise: each on what it reads best. On a GPU other backends
    of ours are beside it."""
    table = functional.sphere_table((case.lmax,) * 2, case.lmax)
    to, back = (m.to(device, dtype) for m in dense_matrices(case.lmax))
    d = (case.lmax + 1) ** 2
    x, y = _drawn([(case.rows, d, case.channels)] * 2, device, dtype)
    own = {"x": reference.joined(x, False), "y": reference.joined(y, False)}

    def fast(x: Tensor, y: Tensor, backend: str = "auto") -> Tensor:
        return functional.sphere_product(x, y, table=table, backend=backend)

    def plain(x: Tensor, y: Tensor) -> Tensor:
        x, y = (reference.components(rows, d, False).mT for rows in (x, y))
        return reference.joined(by_products(x, y, to.to(x.dtype), back.to(x.dtype)).mT, False)

    ways = {"eager": (by_products, x.mT.contiguous(), y.mT.contiguous()), "einsum": (by_einsum, x, y)}
    steps = {"fast": _step(fast, own)}
    for name, (way, *rows) in ways.items():
        given = dict(zip(("x", "y"), rows, strict=True))
        call = lambda x, y, way=way: way(x, y, to, back)  # noqa: E731
        steps[name] = _step(call, given)
        if compiled:
            steps[name + COMPILED] = _step(call, given, of_steps.compiled(call))
    for backend in _others(device):
        steps[backend] = _step(partial(fast, backend=backend), own)

    def finish(row: dict[str, Any]) -> dict[str, Any]:
        best = min(row[f"{name}_ms"] for name in GRID_WAYS if f"{name}_ms" in row)
        return {"points": len(to), "speedup": best / row["fast_ms"]} | _judged(fast, plain, own, dtype)

    return Work(steps, _uncompiled(ways, compiled), finish)


def _others(device: str) -> list[str]:
    """The backends of a GPU that "auto" does not take."""
    known = operators.reasons(device)["sphere_product"]
    return [] if device == "cpu" else [name for name in ORDER[device] if known.get(name) == ""
                                       and name != "reference"][1:]


def _uncompiled(names: Iterable[str], compiled: bool) -> dict[str, str]:
    return {} if compiled else {f"{name}{COMPILED}_reason": "not asked for (--compile)" for name in names}


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


def factors(case: Case, device: str, dtype: torch.dtype, compiled: bool) -> Work:
    """`fast` is TDNTensorProduct of rank 7 L^2, `eager` e3nn's TensorProduct of mode "uuu", with weights of every row;
    beside them the exact factors and the exact product of this package."""
    irreps, free = irreps_of(case), {"internal_weights": False}
    own = free | {"shared_weights": False}

    def e3nn() -> o3.TensorProduct:
        return o3.TensorProduct(*[irreps] * 3, paths_of(irreps), **own)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of where the exact product is faster: this shows it
        layers = {"fast": TDNTensorProduct(*[irreps] * 3, **free),
                  "clebsch_gordan": TensorProduct(*[irreps] * 3, paths_of(irreps), **own),
                  "eager": plain_e3nn(e3nn, device)}
        if case.lmax > 1:
            layers["tdn_exact"] = TDNTensorProduct(*[irreps] * 3, "exact", **free)
        slow = TDNTensorProduct(*[irreps] * 3, backend="reference", **free)
    if compiled:
        layers["eager_compiled"] = of_steps.unscripted(e3nn)
    steps, given = {}, {}
    for name, layer in layers.items():
        layers[name] = layer.to(device, dtype)
        x, y, w = _drawn([(case.rows, irreps.dim)] * 2 + [(case.rows, layer.weight_numel)], device, dtype)
        given[name] = {"x": x, "y": y, "weight": w}
        call = layers["eager"] if name == "eager_compiled" else layers[name]
        by = of_steps.compiled(layers[name]) if name == "eager_compiled" else None
        steps[name] = _step(call, given[name], by)
    reasons = _uncompiled(["eager"], compiled)
    if case.lmax == 1:
        reasons["tdn_exact_reason"] = "for degrees of at most 1 the exact product is faster"

    def finish(row: dict[str, Any]) -> dict[str, Any]:
        best = min(row[f"{name}_ms"] for name in ("eager", "eager_compiled") if f"{name}_ms" in row)
        return {"rank": layers["fast"].fit.rank, "speedup": best / row["fast_ms"]} | _judged(
            layers["fast"], slow.to(device), given["fast"], dtype)

    return Work(steps, reasons, finish)


def plain_e3nn(build: Callable[[], torch.nn.Module], device: str) -> torch.nn.Module:
    """e3nn's layer; on a GPU its generated code stays in Python, where launches are not timed and TorchScript's
    compiler would take minutes for hundreds of paths."""
    return build() if device == "cpu" else of_steps.unscripted(build)


def forms(case: Case, device: str, dtype: torch.dtype, compiled: bool) -> Work:
    """`fast` is what form="auto" takes, the others have their names; with the operations of each, of a column."""
    d = (case.lmax + 1) ** 2
    x, y = _drawn([(case.rows, case.channels * d)] * 2, device, dtype)
    tables = {"fast": functional.sphere_table((case.lmax,) * 2, case.lmax)}
    reasons = {}
    for form in FORMS:
        if device != "cpu" and form not in ("dense", "mirrored"):
            reasons[f"{form}_reason"] = "a GPU takes the dense and the mirrored form"
        elif form == "sparse" and case.lmax > SPARSE_MOST:
            reasons[f"{form}_reason"] = f"the terms are too many above L = {SPARSE_MOST}"
        else:
            tables[form] = functional.sphere_table((case.lmax,) * 2, case.lmax, form=form)
    made = {name: _product(table) for name, table in tables.items()}
    own = {"x": x, "y": y}

    def finish(row: dict[str, Any]) -> dict[str, Any]:
        found = {f"{name}_flops": flops(table, x, y) for name, table in tables.items()}
        slow = _product(functional.sphere_table((case.lmax,) * 2, case.lmax, form="dense"), "reference")
        for name, product in made.items():
            found |= {key: f"{name}: {value}" if key == "error" else value
                      for key, value in _judged(product, slow, own, dtype).items()}
        return found

    return Work({name: _step(product, own) for name, product in made.items()}, reasons, finish)


def _product(table: PointTable, backend: str = "auto") -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: functional.sphere_product(x, y, table=table, backend=backend)


def flops(table: PointTable, x: Tensor, y: Tensor) -> float:
    """Operations of a row and channel, forward and both gradients."""
    inputs = {"x1": x, "x2": y, "grid": list(table.points), "slots": table.on(torch.device("cpu"))[2],
              "needs": [True, True]}
    columns = x.numel() / table.slots[1].dim
    return (of_points.forward(inputs) + of_points.backward(inputs)) / columns


def _drawn(shapes: Sequence[tuple[int, ...]], device: str, dtype: torch.dtype) -> list[Tensor]:
    """Normal tensors that require gradients."""
    g = torch.Generator(device).manual_seed(1)
    return [torch.randn(shape, generator=g, device=device).to(dtype).requires_grad_() for shape in shapes]


def _step(function: Callable[..., Tensor], inputs: dict[str, Tensor], by: Callable[..., Tensor] | None = None
          ) -> Callable[[], object]:
    """Forward and backward of `function`, done `by` its compiled self, which is compiled at the first step."""
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    with torch.no_grad():
        out = function(**leaves)
    (g,) = (x.detach() for x in _drawn([out.shape], str(out.device), out.dtype))
    call = function if by is None else by  # a compiled module has no truth value
    return lambda: torch.autograd.grad(call(**leaves), list(leaves.values()), g)


def timed(steps: dict[str, Callable[[], object]], device: str, repeats: int, budget_s: float) -> dict[str, Any]:
    """Time and memory of every version; `fast` is timed twice in a round, each time behind another version, which has
    the caches and the memory that it left.

    On a GPU times are those of kernels in a captured graph, and `<version>_call` those of the call that launches them;
    where a version cannot be captured, all are calls, and `uncaptured` says why. A version that fails has its
    reason.
    """
    row: dict[str, Any] = {}
    for name, step in list(steps.items()):
        try:
            found = step()
            if name.endswith(COMPILED):
                _same(found, steps[name.removesuffix(COMPILED)]())
            del found
            row[f"{name}_mb"] = memory.peak_mb(step, device)[0]
        except Exception as error:
            if name == "fast":
                raise
            del steps[name]
            row[f"{name}_reason"] = captured.said(error)
    first, *rest = [name for name in steps if name != "fast"]
    order = {"fast": steps["fast"], first: steps[first], "again": steps["fast"]} | {name: steps[name] for name in rest}
    replays, why = captured.replays(order, device)
    times = timing.shared(replays, device, repeats, wall=False, budget_s=budget_s)
    row |= {"noise": timing.noise(times["fast"], times["again"]), "rounds": times["fast"].rounds}
    for name in steps:
        row |= {f"{name}_ms": times[name].median, f"{name}_rounds": times[name].rounds}
    if device != "cpu":
        calls = timing.shared(steps, device, min(repeats, CALLS), wall=True, budget_s=budget_s / 4)
        row |= {f"{name}_call": calls[name].median for name in steps} | ({"uncaptured": why} if why else {})
    return row


def _same(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    """Raises where gradients are others than those of the version that was compiled."""
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=CLOSE * float(y.abs().max()))


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
