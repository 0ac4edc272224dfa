"""Other libraries' tensor products behind one call, to compare with: cuequivariance_torch and openequivariance.

A `Peer` computes what e3nn's module with the same irreps, instructions and weights computes, in its library's own
layout and order of weights; `native` and `e3nn` convert, so that a benchmark can leave the conversion out of its time
and a layer can put it around the call. Nothing here is needed by ace_fast itself: `why_not` says what is missing.
"""

import importlib.util
import math
import warnings
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from e3nn import o3
from torch import Tensor

_PACKAGES = {"cuequivariance": "cuequivariance_torch", "openequivariance": "openequivariance"}
NAMES = tuple(_PACKAGES)
# operands of a segmented polynomial by connection mode: weight, in1, in2, out; i, j, k are the components
_SUBSCRIPTS = {"uvw": "uvw,iu,jv,kw", "uvu": "uv,iu,jv,ku", "uvv": "uv,iu,jv,kv", "uuw": "uw,iu,ju,kw",
               "uuu": "u,iu,ju,ku", "uvuv": "uv,iu,jv,kuv"}


class Peer(NamedTuple):
    """One product, or one convolution, of another library.

    Attributes:
        call: product (x1 [Z, dim1], x2 [Z, dim2], weight [n] or [Z, n]) -> [Z, dim_out]; convolution (x1 [N, dim1],
            x2 [E, dim2], weight [n] or [E, n], source [E], target [E], num_nodes) -> [num_nodes, dim_out].
        orders: for "x1", "x2", "weight" and "out" where each native column stands in e3nn's order; None: the same.
        method: which of the library's implementations runs.
    """

    call: Callable[..., Tensor]
    orders: dict[str, Tensor | None]
    method: str

    def native(self, name: str, x: Tensor) -> Tensor:
        """x [..., n], in e3nn's layout, in the library's."""
        order = self.orders[name]
        return x if order is None else x.index_select(-1, order)

    def e3nn(self, name: str, x: Tensor) -> Tensor:
        """The inverse of `native`."""
        order = self.orders[name]
        return x if order is None else x.index_select(-1, order.argsort())


def why_not(name: str, device: str | torch.device) -> str:
    """Why a peer cannot run on `device`; empty when it can.

    Raises:
        ValueError: there is no such peer.
    """
    if name not in _PACKAGES:
        raise ValueError(f"peers: name must be one of {NAMES}, got {name!r}")
    device = torch.device(device)
    if name == "openequivariance" and device.type != "cuda":
        return f"openequivariance takes CUDA tensors, not {device.type}"
    if importlib.util.find_spec(_PACKAGES[name]) is None:
        return f"{_PACKAGES[name]} is not installed (pip install {_PACKAGES[name].replace('_', '-')})"
    return ""


def build(name: str, irreps: tuple, instructions: Iterable, shared_weights: bool, device: str | torch.device = "cpu",
          dtype: torch.dtype = torch.float32, *, convolution: bool = False) -> Peer:
    """The product of e3nn's module with these attributes on another library.

    Args:
        name: "cuequivariance" (its kernels where cuequivariance-ops-torch is installed, on the CPU its plain PyTorch)
            or "openequivariance" (CUDA).
        irreps: of in1, in2 and out.
        instructions: a module's `instructions`, path weights normalised; one connection mode, all with weights.
        shared_weights: weight [n] for all rows, instead of [Z, n].
        convolution: gather x1 at the sources and sum the rows at the targets, as the library does it.

    Raises:
        ValueError: the peer cannot run here, or does not have these instructions; the message says why.
    """
    reason = why_not(name, device)
    if reason:
        raise ValueError(f"peers: {reason}")
    irreps = tuple(o3.Irreps(i) for i in irreps)
    instructions = [ins for ins in instructions if 0 not in ins.path_shape]
    modes = {ins.connection_mode for ins in instructions}
    if len(modes) != 1 or not all(ins.has_weight for ins in instructions):
        raise ValueError(f"peers: instructions must share one connection mode and have weights, got {sorted(modes)}")
    make = _cuequivariance if name == "cuequivariance" else _openequivariance
    return make(irreps, instructions, shared_weights, torch.device(device), dtype, convolution)


def _ir_mul(irreps: o3.Irreps, device: torch.device) -> Tensor:
    """Where each column of the layout (component, channel) stands in e3nn's (channel, component), [dim]."""
    blocks = [torch.arange(s.start, s.stop).view(mul, ir.dim).T.reshape(-1)
              for s, (mul, ir) in zip(irreps.slices(), irreps, strict=True)]
    return torch.cat(blocks).to(device) if blocks else torch.empty(0, dtype=torch.int64, device=device)


def _cuequivariance(irreps, instructions, shared_weights, device, dtype, convolution) -> Peer:
    import cuequivariance as cue
    import cuequivariance_torch as cuet

    mode = instructions[0].connection_mode
    if mode not in _SUBSCRIPTS:
        raise ValueError(f"peers: cuequivariance has no connection mode {mode!r}, only {', '.join(_SUBSCRIPTS)}")
    product = cue.SegmentedTensorProduct.from_subscripts(f"{_SUBSCRIPTS[mode]}+ijk")
    for operand, of in enumerate(irreps[:2], 1):
        for mul, ir in of:
            product.add_segment(operand, (ir.dim, mul))
    for i, (mul, ir) in enumerate(irreps[2]):
        split = next((ins.path_shape for ins in instructions if ins.i_out == i), (mul, 1))
        product.add_segment(3, (ir.dim, *split) if mode == "uvuv" else (ir.dim, mul))
    for ins in instructions:
        ls = [of[i].ir.l for of, i in zip(irreps, ins[:3], strict=True)]
        c = ins.path_weight * o3.wigner_3j(*ls, dtype=torch.float64).numpy()
        product.add_path(ins.path_shape, *ins[:3], c=c)
    method = _method(device, mode)
    polynomial = cue.SegmentedPolynomial.eval_last_operand(product)
    if method == "uniform_1d":
        polynomial = _uniform(polynomial)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that plain PyTorch runs is what `method` says
        options = {} if method == "naive" else {"math_dtype": dtype}
        module = cuet.SegmentedPolynomial(polynomial, method=method, **options).to(device)

    def rows(weight: Tensor) -> Tensor:
        return weight[None] if shared_weights else weight

    def multiply(x1: Tensor, x2: Tensor, weight: Tensor) -> Tensor:
        return module([rows(weight), x1, x2])[0]

    def convolve(x1: Tensor, x2: Tensor, weight: Tensor, source: Tensor, target: Tensor, num_nodes: int) -> Tensor:
        shape = torch.empty(num_nodes, 1, device=x1.device, dtype=x1.dtype)
        return module([rows(weight), x1, x2], {1: source}, {0: shape}, {0: target})[0]

    orders = {name: _ir_mul(of, device) for name, of in zip(("x1", "x2", "out"), irreps, strict=True)}
    return Peer(convolve if convolution else multiply, orders | {"weight": None}, method)


def _method(device: torch.device, mode: str) -> str:
    """The library's own choice: channels of one extent where no matrix is formed, otherwise the contraction kernel."""
    if device.type != "cuda" or importlib.util.find_spec("cuequivariance_ops_torch") is None:
        return "naive"
    return "fused_tp" if mode in ("uvw", "uuw") else "uniform_1d"


def _uniform(polynomial):
    """Channels cut into pieces of one extent, coefficients as paths of their own."""
    polynomial = polynomial.flatten_coefficient_modes().squeeze_modes()
    extents = {n for operand in polynomial.operands for segment in operand.segments for n in segment}
    modes = {m for _, stp in polynomial.operations for m in stp.subscripts.modes()}
    if len(modes) == 1 and len(extents) > 1:
        polynomial = polynomial.split_mode(modes.pop(), math.gcd(*extents))
    return polynomial


def _openequivariance(irreps, instructions, shared_weights, device, dtype, convolution) -> Peer:
    import openequivariance as oeq

    number = oeq.torch_to_oeq_dtype(dtype)
    problem = oeq.TPProblem(
        # the path weights are normalised already; under "none" their square root is what multiplies
        *map(str, irreps), [(*ins[:5], ins.path_weight**2) for ins in instructions], shared_weights=shared_weights,
        internal_weights=False, irrep_normalization="none", path_normalization="none", irrep_dtype=number,
        weight_dtype=number,
    )
    try:
        module = (oeq.TensorProductConv if convolution else oeq.TensorProduct)(problem).to(device)
    except (AssertionError, ImportError, RuntimeError) as error:
        raise ValueError(f"peers: openequivariance: {error}") from error
    numbers = torch.arange(sum(math.prod(ins.path_shape) for ins in instructions), dtype=torch.float64)
    if not shared_weights:
        numbers = numbers[None]
    order = module.reorder_weights_from_e3nn(numbers, has_batch_dim=not shared_weights).flatten().long().to(device)

    def convolve(x1: Tensor, x2: Tensor, weight: Tensor, source: Tensor, target: Tensor, num_nodes: int) -> Tensor:
        if num_nodes != x1.shape[0]:
            raise ValueError(f"peers: num_nodes must be {x1.shape[0]}, the rows of x1, for openequivariance, "
                             f"got {num_nodes}")
        return module(x1, x2, weight, target, source)

    orders = {"x1": None, "x2": None, "out": None, "weight": order}
    return Peer(convolve if convolution else module, orders, "atomic" if convolution else "product")
