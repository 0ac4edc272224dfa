"""Other libraries behind our layers' calls, for comparison: cuequivariance_torch and openequivariance.

`backend="cuequivariance"` or `backend="openequivariance"` on a layer converts layout and order of the weights at every
call, so that only the backend's name differs. A benchmark that wants the library alone takes its `adapter`, converts
once with `transpose` and `to_theirs`, and times its `product` or its `convolution`.
"""

import importlib.util
import math
import warnings

import torch
from torch import Tensor

from ..graph import Graph
from ..kernels.tensor_product import GateTable, ProductTable, reference
from ..kernels.tensor_product.table import MODES, Path, unpack, weight_shape

NAMES = ("cuequivariance", "openequivariance")
# weights, in1, in2 and out of a mode in cuequivariance's words; channels last
_SUBSCRIPTS = {"uvw": ("uvw", "iu", "jv", "kw"), "uvu": ("uv", "iu", "jv", "ku"), "uvv": ("uv", "iu", "jv", "kv"),
               "uuw": ("uw", "iu", "ju", "kw"), "uuu": ("u", "iu", "ju", "ku"), "uvuv": ("uv", "iu", "jv", "kuv")}


def why_not(name: str, device: torch.device | None = None) -> str:
    """Why library `name` cannot run on `device` (None: anywhere); empty where it can."""
    package = {"cuequivariance": "cuequivariance_torch", "openequivariance": "openequivariance"}[name]
    on = device and device.type
    if name == "openequivariance" and on not in (None, "cuda"):
        return f"it takes CUDA tensors, not {on}"
    needed = [package, "cuequivariance_ops_torch"] if name == "cuequivariance" and on == "cuda" else [package]
    missing = [module for module in needed if importlib.util.find_spec(module) is None]
    return f"{missing[0]} is not installed" if missing else ""


def transpose(x: Tensor, slices: list[tuple[int, int]], to: str) -> Tensor:
    """x [Z, dim] of irreps (multiplicity, 2l+1) in the other layout: `to` is "ir_mul" or "mul_ir"."""
    if all(mul == 1 or d == 1 for mul, d in slices):
        return x
    shapes = [(mul, d) if to == "ir_mul" else (d, mul) for mul, d in slices]
    parts = x.split([a * b for a, b in shapes], -1)
    return torch.cat([p.unflatten(-1, shape).mT.flatten(-2) for p, shape in zip(parts, shapes, strict=True)], -1)


class _CuEquivariance:
    """A product as one segmented polynomial for each connection mode; their layout is ir_mul, their weights ours."""

    layout = "ir_mul"

    def __init__(self, table: ProductTable, shared: bool, dtype: torch.dtype, device: torch.device, convolution: bool):
        self.groups = []
        paths = unpack(table.paths)
        for key in dict.fromkeys((p.mode, p.weight >= 0) for p in paths):
            group = [p for p in paths if (p.mode, p.weight >= 0) == key]
            polynomial = _polynomial(table, MODES[key[0]], group)
            self.groups.append((_segmented(polynomial, dtype, device), key[1] and _columns(group)))

    def to_theirs(self, weight: Tensor) -> Tensor:
        return weight

    to_ours = to_theirs

    @property
    def methods(self) -> list[str]:
        """Which of their implementations runs, for each connection mode."""
        return [run.method for run, _ in self.groups]

    def product(self, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        """x [Z, dim1], y [Z, dim2], weight [n] or [Z, n] -> [Z, dim_out], in their layout."""
        return self._sum(x, y, weight, None, {}, {})

    def convolution(self, x: Tensor, y: Tensor, weight: Tensor, source: Tensor, target: Tensor, n: int) -> Tensor:
        """x [N, dim1] at the nodes source [E], y [E, dim2], weight [n] or [E, n] -> [n, dim_out] at target [E]."""
        return self._sum(x, y, weight, source, {0: x.new_empty(n, 1)}, {0: target})

    def _sum(self, x, y, weight, source, shapes, targets) -> Tensor:
        weight = weight if weight.dim() == 2 else weight[None]
        out = None
        for run, columns in self.groups:
            blocks = [weight[:, a:b] for a, b in columns or ()]
            inputs = [blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1)] if blocks else []
            (part,) = run([*inputs, x, y], {} if source is None else {len(inputs): source}, shapes, targets)
            out = part if out is None else out + part
        return out


def _columns(group: list[Path]) -> list[tuple[int, int]]:
    """Ranges of the flat weight that hold the blocks of `group`, neighbours joined."""
    ranges: list[tuple[int, int]] = []
    for p in group:
        stop = p.weight + torch.Size(weight_shape(p)).numel()
        if ranges and ranges[-1][1] == p.weight:
            ranges[-1] = (ranges[-1][0], stop)
        else:
            ranges.append((p.weight, stop))
    return ranges


def _polynomial(table: ProductTable, mode: str, group: list[Path]):
    """cuequivariance's description of the paths of one mode."""
    import cuequivariance as cue

    if mode not in _SUBSCRIPTS:
        raise ValueError(f"tensor_product: backend 'cuequivariance' does not take mode {mode!r}; use backend='auto'")
    words = _SUBSCRIPTS[mode]
    if group[0].weight < 0:
        # without weights "uuw" has one output channel, which no input knows
        words = ("iu", "ju", "k") if mode == "uuw" else words[1:]
    product = cue.SegmentedTensorProduct.from_subscripts(",".join(words) + "+ijk")
    in1, in2, out = ([(mul, ir.dim) for mul, ir in irreps if mul] for irreps in table.irreps)
    first = len(words) - 3
    inner = {p.o3: (p.U, p.V) for p in group}  # of the output's channels, mode uvuv
    starts = []
    for operand, slices in zip((first, first + 1, first + 2), (in1, in2, out), strict=True):
        offset, starts_here = 0, {}
        for mul, d in slices:
            starts_here[offset] = len(starts_here)
            split = {1: (), 2: (mul,), 3: inner.get(offset, (mul, 1))}[len(words[operand])]
            product.add_segment(operand, (d, *split) if split else (mul * d,))
            offset += mul * d
        starts.append(starts_here)
    index, value = table.on(torch.device("cpu"))
    for p in group:
        if mode == "uvuv" and inner[p.o3] != (p.U, p.V):
            raise ValueError("tensor_product: backend 'cuequivariance' does not take two uvuv paths of different "
                             "multiplicities into one slice; use backend='auto'")
        c = torch.zeros(p.d1, p.d2, p.d3, dtype=torch.float64)
        c[tuple(index[p.start:p.stop].T)] = value[p.start:p.stop]
        block = [product.add_segment(0, weight_shape(p))] if first else []
        product.add_path(*block, starts[0][p.o1], starts[1][p.o2], starts[2][p.o3], c=c.numpy())
    return cue.SegmentedPolynomial.eval_last_operand(product)


def _segmented(polynomial, dtype: torch.dtype, device: torch.device):
    """The polynomial on the fastest of their methods that takes it: on the CPU there is one."""
    import cuequivariance_torch as cuet

    if device.type == "cpu":
        return cuet.SegmentedPolynomial(polynomial, method="naive", math_dtype=dtype)
    uniform = _uniform(polynomial)
    try:
        return cuet.SegmentedPolynomial(uniform or polynomial, method="uniform_1d" if uniform else "fused_tp",
                                        math_dtype=dtype).to(device)
    except (NotImplementedError, ValueError, RuntimeError) as why:
        raise ValueError(f"tensor_product: backend 'cuequivariance' does not take this product: {why}") from why


def _uniform(polynomial):
    """Its channels cut into pieces of one extent, each coefficient a path: what their fastest method takes; or None."""
    try:
        flat = polynomial.flatten_coefficient_modes().squeeze_modes()
    except ValueError:
        return None
    modes = {mode for _, product in flat.operations for mode in product.subscripts.modes()}
    extents = {n for operand in flat.operands for segment in operand.segments for n in segment}
    if len(modes) > 1 or any(operand.ndim > 1 for operand in flat.operands):
        return None
    return flat.split_mode(modes.pop(), math.gcd(*extents)) if len(extents) > 1 else flat


class _OpenEquivariance:
    """openequivariance's modules; their layout is mul_ir, their weights have an order of their own."""

    layout, methods = "mul_ir", ["jit"]

    def __init__(self, table: ProductTable, shared: bool, dtype: torch.dtype, device: torch.device, convolution: bool):
        try:
            import openequivariance as oeq
        except (ImportError, AssertionError) as why:  # it asserts that torch was built for a GPU
            raise ValueError(f"tensor_product: backend 'openequivariance' is not available: {why}") from why

        modes = {ins[3] for ins in table.instructions}
        if len(modes) != 1 or not modes <= {"uvu", "uvw"} or not all(ins[4] for ins in table.instructions):
            raise ValueError("tensor_product: backend 'openequivariance' does not take this product: every instruction "
                             f"must have weights and the one mode 'uvu' or 'uvw', got modes {sorted(modes)}; "
                             "use backend='auto'")
        if any(isinstance(ins[5], Tensor) or ins[5] < 0 for ins in table.instructions):
            raise ValueError("tensor_product: backend 'openequivariance' does not take coefficients of one's own; "
                             "use backend='auto'")
        number = oeq.torch_to_oeq_dtype(dtype)
        problem = oeq.TPProblem(
            *(str(irreps) for irreps in table.irreps), [(*ins[:5], ins[5] ** 2) for ins in table.instructions],
            irrep_normalization="none", path_normalization="none", shared_weights=shared, internal_weights=False,
            irrep_dtype=number, weight_dtype=number,
        )
        self.module = (oeq.TensorProductConv if convolution else oeq.TensorProduct)(problem).to(device)
        self.shared = shared

    def to_theirs(self, weight: Tensor) -> Tensor:
        return self.module.reorder_weights_from_e3nn(weight, not self.shared)

    def to_ours(self, weight: Tensor) -> Tensor:
        return self.module.reorder_weights_to_e3nn(weight, not self.shared)

    def product(self, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        """x [Z, dim1], y [Z, dim2], weight [n] or [Z, n] in their order -> [Z, dim_out]."""
        return self.module(x.contiguous(), y.contiguous(), weight.contiguous())

    def convolution(self, x: Tensor, y: Tensor, weight: Tensor, source: Tensor, target: Tensor, n: int) -> Tensor:
        """x [N, dim1] at the nodes source [E], y [E, dim2], weight [n] or [E, n] -> [N, dim_out] at target [E]."""
        if n != x.shape[0]:
            raise ValueError("tensor_product_conv: backend 'openequivariance' takes as many targets as sources, got "
                             f"{n} and {x.shape[0]}; use backend='auto'")
        return self.module(x.contiguous(), y.contiguous(), weight.contiguous(), target, source)


_ADAPTERS = {"cuequivariance": _CuEquivariance, "openequivariance": _OpenEquivariance}


def adapter(name: str, table: ProductTable, shared: bool, dtype: torch.dtype, device: torch.device,
            convolution: bool = False):
    """The library's product for `table`: its `layout`, `to_theirs(weight)`, `to_ours(weight)`, `product(x, y, weight)`
    or, with `convolution`, `convolution(x, y, weight, source, target, num_nodes)` with their own gather and sum.

    Raises:
        ValueError: the library is not installed, cannot run on `device` or does not take this product; it says why.
    """
    device = torch.device(device)
    if why := why_not(name, device):
        raise ValueError(f"tensor_product: backend {name!r} is not available: {why}")
    key = (name, shared, dtype, device, convolution)
    if key not in table._peers:
        if not table.instructions:
            raise ValueError(f"tensor_product: backend {name!r} does not take a product without paths; "
                             "use backend='auto'")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table._peers[key] = _ADAPTERS[name](table, shared, dtype, device, convolution)
    return table._peers[key]


def run(name: str, table: ProductTable, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None = None,
        gate: GateTable | None = None, graph: Graph | None = None) -> Tensor:
    """tensor_product by library `name`: x [Z, dim1], y [Z, dim2], weight [n] or [Z, n] -> [Z, dim_out].

    With a graph tensor_product_conv: x [N, dim1], y [E, dim2], weight [n] or [E, n] -> [N, dim_out]. Bias and gate,
    which the libraries do not have, are plain torch.
    """
    peer = adapter(name, table, weight.dim() == 1, x.dtype, x.device, graph is not None)
    ours = "ir_mul" if table.dims[3] else "mul_ir"
    in1, in2, out = ([(mul, ir.dim) for mul, ir in irreps] for irreps in table.irreps)
    if peer.layout != ours:
        x, y = transpose(x, in1, peer.layout), transpose(y, in2, peer.layout)
    if graph is None:
        z = peer.product(x, y, peer.to_theirs(weight))
    else:
        z = peer.convolution(x, y, peer.to_theirs(weight), *graph.edge_index, graph.num_targets)
    if peer.layout != ours:
        z = transpose(z, out, ours)
    if bias is not None:
        z = z + reference.forward(x, y, weight, bias, *table.on(x.device), table.dims, [], table.bias_slots)
    return z if gate is None else reference.gate(z, *gate, table.dims[3])
