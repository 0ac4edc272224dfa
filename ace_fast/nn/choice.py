"""Which product of irreps: all that there are for given irreps, what each can express, and what it costs here."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from e3nn import o3
from torch import Tensor, nn

from ..kernels.define import integer
from ..kernels.sphere_product import grids
from . import cp
from .fields import KINDS, Fields, paths
from .gaunt import GauntTensorProduct
from .tdn import TDNTensorProduct
from .tensor_product import TensorProduct

EXPRESSIVITY = ("any", "paths", "full")
_PROBES = 8  # rows that the equivariance error is measured on


class Candidate(NamedTuple):
    """A product and what it can express, of one channel.

    Attributes:
        name: "clebsch_gordan", "gaunt_grid", "gaunt_fourier", "gaunt_bracket", "tdn_exact" or "tdn_R".
        make: builds the layer.
        paths: how many of the Clebsch-Gordan paths exist in it (interactability).
        maps: how many independent bilinear maps its weights reach (expressivity): the dimension of the set of maps
            that they describe, by the rank of its tangent space.
    """

    name: str
    make: Callable[[], nn.Module]
    paths: int
    maps: int


class Choice(NamedTuple):
    """What `choose_product` found.

    Attributes:
        name: of the candidate. layer: the product, on the device and in the dtype.
        measured: a dict for every candidate, fastest first: name, ms, mb, paths, maps, equivariance_error.
        reasons: why others are none, by name.
    """

    name: str
    layer: nn.Module
    measured: list[dict[str, Any]]
    reasons: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{'product':16}{'ms':>10}{'MB':>10}{'paths':>8}{'maps':>8}{'equivariance':>15}"]
        lines += [f"{r['name']:16}{r['ms']:10.3g}{r['mb']:10.3g}{r['paths']:8}{r['maps']:8}"
                  f"{r['equivariance_error']:15.1e}" for r in self.measured]
        return "\n".join([*lines, *(f"{name}: {why}" for name, why in self.reasons.items()), f"chosen: {self.name}"])


def candidates(irreps_in1, irreps_in2, irreps_out, ranks: Sequence[int] = (), *, layout="mul_ir", backend="auto",
               cache=None) -> tuple[list[Candidate], dict[str, str]]:
    """All products of these irreps, channel by channel, and why others are none.

    Args:
        irreps_in1, irreps_in2, irreps_out: of one multiplicity each, that of out is in1's; each irrep once.
        ranks: of fitted CP factors, beside the exact ones.
        layout, backend: of the layers. cache: the folder of fits.

    Raises:
        ValueError: irreps of several multiplicities or twice, channels of out that are not those of in1, irreps that
            no path couples or without channels.
    """
    who, given = "choose_product", (irreps_in1, irreps_in2, irreps_out)
    fields = tuple(Fields(who, f"irreps_{slot}", irreps, layout)
                   for slot, irreps in zip(("in1", "in2", "out"), given, strict=True))
    one, two, out = fields
    if out.irs and out.channels != one.channels:
        remedy = "exchange the inputs" if out.channels == two.channels else "put an ace_fast.nn.Linear behind"
        raise ValueError(f"{who}: irreps_out must have the {one.channels} channels of irreps_in1, got {out.irreps}; "
                         f"{remedy}")
    options = {"layout": layout, "backend": backend}
    every = sum(len(paths(fields, kind)) for kind in KINDS)
    if not every or not one.channels or not two.channels:
        raise ValueError(f"{who}: irreps_out must be reachable from channels of irreps_in1 x irreps_in2, got "
                         f"{one.irreps} x {two.irreps} -> {out.irreps}; there is no product of these")
    found = [Candidate("clebsch_gordan", lambda: _clebsch_gordan(fields, options), every, every)]
    ways = {"gaunt_grid": ("grid", False), "gaunt_fourier": ("fourier", False), "gaunt_bracket": ("grid", True)}
    reasons = {}
    for name, (method, odd) in ways.items():
        if odd and not paths(fields, "bracket"):
            reasons[name] = "the irreps have no path with l1 + l2 + l3 odd"
            continue

        def make(method=method, odd=odd):
            own = options if method == "grid" else {"layout": layout}
            return GauntTensorProduct(*given, method, odd, **own)

        kinds = KINDS[:1 + odd]
        _try(found, reasons, name, make, sum(len(paths(fields, kind)) for kind in kinds),
             sum(separable_maps(paths(fields, kind)) for kind in kinds))
    for rank in ("exact", *ranks):
        def tdn(rank=rank):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "TDNTensorProduct: rank")  # here it is measured
                return TDNTensorProduct(*given, rank, cache=cache, **options)

        if rank == "exact" and max(f.lmax for f in fields) <= 1:
            reasons["tdn_exact"] = "for degrees of at most 1 the exact product is faster"
        else:
            _try(found, reasons, f"tdn_{rank}", tdn, every, 1)
    return found, reasons


def _try(found: list[Candidate], reasons: dict[str, str], name: str, make: Callable[[], nn.Module], count: int,
         maps: int) -> None:
    """Adds a candidate, or the reason why its layer cannot be built."""
    try:
        layer = make()
    except ValueError as error:
        reasons[name] = str(error)
        return
    del layer
    found.append(Candidate(name, make, count, maps))


def _clebsch_gordan(fields: tuple[Fields, Fields, Fields], options: dict[str, Any]) -> TensorProduct:
    mode = "uuu" if fields[0].channels == fields[1].channels else "uvu"
    instructions = [(i, j, k, mode, True) for i, j, k in cp.allowed(fields)]
    return TensorProduct(*(f.irreps for f in fields), instructions, **options)


def separable_maps(found: Sequence[tuple[int, int, int]]) -> int:
    """The dimension of the maps with strengths w_i w_j w_k of their paths (i, j, k): the rank of the derivatives of the
    logarithms, a row for each path with a 1 for each of its weights."""
    table = torch.zeros(len(found), 3, 1 + max((n for path in found for n in path), default=0), dtype=torch.float64,
                        device="cpu")
    for row, path in zip(table, found, strict=True):
        row[range(3), path] = 1
    return int(torch.linalg.matrix_rank(table.flatten(1))) if found else 0


def equivariance_error(layer: nn.Module, device: str | torch.device | None = None, dtype: torch.dtype | None = None
                       ) -> float:
    """||f(gx, gy) - g f(x, y)|| / ||f(x, y)|| of a product of two inputs for a fixed rotation g and normal rows.

    Args:
        layer: with irreps_in1, irreps_in2 and irreps_out, called with two inputs.
        device, dtype: of the inputs; None for those of the layer's first parameter, or torch's defaults.

    Example:
        >>> tp = ace_fast.nn.GauntTensorProduct("2x0e+2x1o", "2x0e+2x1o", "2x0e+2x1o")
        >>> ace_fast.nn.equivariance_error(tp) < 1e-5
        True
    """
    like = next(layer.parameters(), torch.empty(0))
    device, dtype = like.device if device is None else device, like.dtype if dtype is None else dtype
    generator = torch.Generator("cpu").manual_seed(0)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64, device="cpu"))
    rotation *= torch.linalg.det(rotation)
    irreps = layer.irreps_in1, layer.irreps_in2, layer.irreps_out
    blocks = grids.rotation(rotation, max((ir.l for i in irreps for _, ir in i), default=0))
    one, two, out = (turn.to(device, dtype) for turn in (_turn(i, blocks, getattr(layer, "layout", "mul_ir"))
                                                         for i in irreps))
    x, y = (torch.randn(_PROBES, i.dim, generator=generator, device="cpu").to(device, dtype) for i in irreps[:2])
    with torch.no_grad():
        plain = layer(x, y)
        return float((layer(x @ one, y @ two) - plain @ out).norm() / plain.norm())


def _turn(irreps: o3.Irreps, blocks: Tensor, layout: str) -> Tensor:
    """What turns rows from the right, [dim, dim]."""
    found = []
    for mul, ir in irreps:
        at, one = slice(ir.l**2, (ir.l + 1) ** 2), torch.eye(mul, dtype=torch.float64, device="cpu")
        block = blocks[at, at].T.contiguous()
        found.append(torch.kron(one, block) if layout == "mul_ir" else torch.kron(block, one))
    return torch.block_diag(*found)


def step(layer: nn.Module, rows: int, device: str | torch.device, dtype: torch.dtype) -> Callable[[], object]:
    """Forward and backward of a product of two inputs, with gradients of both and of the weights."""
    generator = torch.Generator("cpu").manual_seed(1)
    irreps = layer.irreps_in1, layer.irreps_in2, layer.irreps_out
    x, y, g = (torch.randn(rows, i.dim, generator=generator, device="cpu").to(device, dtype) for i in irreps)
    wanted = [x.requires_grad_(), y.requires_grad_(), *layer.parameters()]
    return lambda: torch.autograd.grad(layer(x, y), wanted, g)


def measure(found: Sequence[Candidate], rows: int, device: str | torch.device, dtype: torch.dtype, repeats: int = 7,
            budget_s: float = 10.0) -> list[dict[str, Any]]:
    """Time and memory of forward and backward of every candidate, in turn, and its equivariance error; slow ones are
    timed in fewer rounds."""
    from ..bench import memory, timing  # not needed to use the layers

    layers = {c.name: c.make().to(device, dtype) for c in found}
    steps = {name: step(layer, rows, device, dtype) for name, layer in layers.items()}
    times = timing.shared(steps, device, repeats, wall=False, budget_s=budget_s)
    measured = []
    for c in found:
        made = {"name": c.name, "ms": times[c.name].median, "mb": memory.peak_mb(steps[c.name], device)[0]}
        measured.append(made | {"paths": c.paths, "maps": c.maps, "rounds": times[c.name].rounds,
                                "equivariance_error": equivariance_error(layers[c.name], device, dtype)})
    return sorted(measured, key=lambda row: row["ms"])


@torch.inference_mode(False)
@torch.enable_grad()
def choose_product(irreps_in1, irreps_in2, irreps_out, expressivity: str | int = "paths", *,
                   equivariance: float = 1e-4, ranks: Sequence[int] = (), rows: int = 1024,
                   device: str | torch.device = "cpu", dtype: torch.dtype | None = None, layout="mul_ir",
                   backend="auto", cache=None) -> Choice:
    """The fastest product of these irreps that expresses what is asked for, by a measurement of a second or few.

    The Clebsch-Gordan product is exact, has every path and a free weight for each, and is always a candidate; what is
    chosen in its place has been measured to be faster here, at this number of rows.

    Args:
        irreps_in1, irreps_in2, irreps_out: of one multiplicity C each, or in2 of 1; each irrep once.
        expressivity: "any"; "paths": every Clebsch-Gordan path exists, with a strength of some kind; "full": with a
            free weight for each of them; or how many independent bilinear maps a channel must reach.
        equivariance: the largest error ||f(gx) - g f(x)|| / ||f(x)|| that is taken.
        ranks: of CP factors to consider beside the exact ones; each is fitted once (`cp.fit`), and has an error.
        rows: of x and y in the measurement, about those of the model.
        device, dtype: where and in what it will run; None for torch's default dtype.
        layout, backend: of the layers. cache: the folder of fits.

    Returns:
        A `Choice`; printed, it is the table of all candidates.

    Raises:
        ValueError: irreps of several multiplicities or twice, channels of out that are not those of in1, an unknown
            expressivity, more maps than there are paths, irreps that no path couples or without channels, rows or
            ranks below 1, an equivariance that is no number from 0, a device that is not there or neither a CPU nor a
            GPU, a dtype other than float32 and float64.

    Example:
        >>> choice = ace_fast.nn.choose_product("8x0e+8x1o+8x2e", "1x0e+1x1o+1x2e", "8x0e+8x1o+8x2e", rows=64)
        >>> choice.layer(torch.randn(5, 72), torch.randn(5, 9)).shape
        torch.Size([5, 72])
    """
    dtype = torch.get_default_dtype() if dtype is None else dtype
    rows, ranks = _check(expressivity, equivariance, ranks, rows, device, dtype)
    found, reasons = candidates(irreps_in1, irreps_in2, irreps_out, ranks, layout=layout, backend=backend, cache=cache)
    every = found[0].paths
    if expressivity not in EXPRESSIVITY and expressivity > every:
        raise ValueError(f"choose_product: expressivity must be at most the {every} paths of these irreps, got "
                         f"{expressivity}")
    least = {"any": (1, 0), "paths": (every, 0), "full": (every, every)}.get(expressivity, (0, expressivity))
    measured = measure(found, rows, device, dtype)
    fit = [row for row in measured if row["paths"] >= least[0] and row["maps"] >= least[1]
           and (row["equivariance_error"] <= equivariance or row["name"] == "clebsch_gordan")]
    make = {c.name: c.make for c in found}[fit[0]["name"]]
    return Choice(fit[0]["name"], make().to(device, dtype), measured, reasons)


def _check(expressivity: str | int, equivariance: float, ranks: Sequence[int], rows: int,
           device: str | torch.device, dtype: torch.dtype) -> tuple[int, tuple[int, ...]]:
    """Raises what `choose_product` does for its options; rows and ranks as ints."""
    who = "choose_product"
    if isinstance(expressivity, str) and expressivity not in EXPRESSIVITY:
        raise ValueError(f"{who}: expressivity must be one of {EXPRESSIVITY} or a number of maps, got {expressivity!r}")
    if not isinstance(expressivity, str):
        integer(who, "expressivity", expressivity, 1)
    if not isinstance(equivariance, int | float) or not equivariance >= 0:
        raise ValueError(f"{who}: equivariance must be a number from 0 on, got {equivariance!r}")
    if not isinstance(ranks, Sequence) or isinstance(ranks, str):
        raise ValueError(f"{who}: ranks must be a sequence of integers, got {ranks!r}")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{who}: dtype must be torch.float32 or torch.float64, got {dtype}; a choice for one holds "
                         "for what is computed in it")
    _check_device(who, device)
    return integer(who, "rows", rows, 1), tuple(integer(who, "ranks", rank, 1) for rank in ranks)


def _check_device(who: str, device: str | torch.device) -> None:
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise ValueError(f"{who}: device must be one that is there, got {str(device)!r}; it is 'cpu', 'cuda' or "
                         "'cuda:0', ...")
    count = torch.cuda.device_count() if found.type == "cuda" and torch.cuda.is_available() else 0
    if found.type == "cuda" and (found.index or 0) >= count:
        sees = f"{count} GPUs" if count else "no GPU"
        raise ValueError(f"{who}: device must be one that is there, got {str(device)!r}; torch sees {sees}")
