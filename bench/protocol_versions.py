"""The versions of one product that a protocol times side by side, and what is done with each: values and derivatives.

eager              e3nn's module, for a convolution between a gather and index_add
compiled           the same under torch.compile (generated code unscripted); double backward, which torch.compile lacks,
                   with the first gradient taken inside the compiled function
fast               ace_fast.nn.TensorProduct, ace_fast.functional.tensor_product_conv on a prepared Graph
cuequivariance, openequivariance   ace_fast.nn.peers, in their own layouts and orders of weights
torch_scatter      eager with torch_scatter's sum in place of index_add (convolutions)
"""

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import torch
from e3nn import o3
from torch import Tensor, nn

import ace_fast
from ace_fast.kernels.tensor_product import ProductTable
from ace_fast.nn import peers

from . import steps
from .gate import Numbers
from .protocol_cases import BOTH, DOUBLE, FORWARD, NEIGHBOURS, Problem

PRODUCT = ("eager", "compiled", "fast", *peers.NAMES)
CONVOLUTION = (*PRODUCT, "torch_scatter")
NAMES = ("x1", "x2", "weight")


class Inputs(NamedTuple):
    """The tensors of one case."""

    x1: Tensor  # [Z, dim1], convolution [N, dim1]
    x2: Tensor  # [Z, dim2]
    weight: Tensor  # [n] or [Z, n]
    cotangent: Tensor  # [Z, dim_out], convolution [N, dim_out]
    source: Tensor | None = None  # [Z] node that x1 is taken from
    target: Tensor | None = None  # [Z] node that the row is summed to, sorted

    def leaves(self) -> list[Tensor]:
        return [self.x1, self.x2, self.weight]

    def cast(self, dtype: torch.dtype) -> "Inputs":
        move = lambda x: x if x is None or not x.is_floating_point() else x.detach().to(dtype)  # noqa: E731
        moved = [move(x) for x in self]
        for x in moved[:3]:
            x.requires_grad_()
        return Inputs(*moved)


class Version(NamedTuple):
    """One version: the call on tensors of its own layout, and the way there and back."""

    call: Callable[[Tensor, Tensor, Tensor], Tensor]
    native: Callable[[str, Tensor], Tensor] = lambda name, x: x  # noqa: E731
    e3nn: Callable[[str, Tensor], Tensor] = lambda name, x: x  # noqa: E731
    method: str = ""
    squares: Callable[..., Tensor] | None = None  # `_squares` of x1, x2, weight and cotangent in one compiled function

    def inputs(self, given: Inputs) -> Inputs:
        """`given` in the version's own layout, fresh leaves."""
        x1, x2, weight = (self.native(n, x.detach()).contiguous().requires_grad_()
                          for n, x in zip(NAMES, given.leaves(), strict=True))
        return given._replace(x1=x1, x2=x2, weight=weight, cotangent=self.native("out", given.cotangent).contiguous())


def load(problem: Problem, rows: int, device: str, dtype: torch.dtype) -> Inputs:
    """Normal numbers, the same in every process on a device; a convolution has NEIGHBOURS random sources a node."""
    g = torch.Generator(device).manual_seed(11111)
    dim1, dim2, dim_out = (irreps.dim for irreps in problem.irreps)
    nodes = max(2, rows // NEIGHBOURS) if problem.convolution else rows
    normal = lambda *shape: torch.randn(*shape, generator=g, device=device)  # noqa: E731
    source = target = None
    if problem.convolution:
        target = torch.arange(rows, device=device) * nodes // rows
        step = torch.randint(1, nodes, (rows,), generator=g, device=device)  # never the node itself
        source = (target + step) % nodes
    count = _description(problem).weight_numel
    weight = normal(count) if problem.shared else normal(rows, count)
    x = Inputs(normal(nodes, dim1), normal(rows, dim2), weight, normal(nodes, dim_out), source, target)
    return x.cast(dtype)


def module(problem: Problem, dtype: torch.dtype, kind: type = o3.TensorProduct) -> nn.Module:
    """e3nn's module, or one with its constructor, with constants in `dtype`."""
    return steps.build(lambda: kind(*problem.irreps, list(problem.instructions), shared_weights=problem.shared,
                                    internal_weights=False), dtype)


def _description(problem: Problem) -> o3.TensorProduct:
    """e3nn's module without code: its instructions with their path weights."""
    return o3.TensorProduct(*problem.irreps, list(problem.instructions), shared_weights=problem.shared,
                            internal_weights=False, compile_left_right=False, compile_right=False)


def make(name: str, problem: Problem, x: Inputs) -> Version:
    """A version for these tensors.

    Raises:
        ValueError: it cannot run here or does not have this product; the message says why.
    """
    device, dtype = x.x1.device, x.x1.dtype
    if name in peers.NAMES:
        return _peer(name, problem, x)
    if name == "fast":
        fast = module(problem, dtype, ace_fast.nn.TensorProduct).to(device)
        return Version(_fast_conv(fast, x) if problem.convolution else fast)
    if name == "compiled":
        return _compiled(problem, x)
    add = _index_add
    if name == "torch_scatter":
        if importlib.util.find_spec("torch_scatter") is None:
            raise ValueError("torch_scatter is not installed (pip install torch-scatter)")
        from torch_scatter import scatter_sum

        add = lambda x, index, n: scatter_sum(x, index, 0, dim_size=n)  # noqa: E731
    plain = module(problem, dtype).to(device)
    return Version(_around(plain, x, add) if problem.convolution else plain)


def _compiled(problem: Problem, x: Inputs) -> Version:
    plain = steps.unscripted(lambda: module(problem, x.x1.dtype)).to(x.x1.device)
    call = _around(plain, x, _index_add) if problem.convolution else plain

    def squares(x1: Tensor, x2: Tensor, weight: Tensor, cotangent: Tensor) -> Tensor:
        wanted = (0, 1) if problem.shared else (0, 1, 2)
        grads = torch.func.grad(lambda *leaves: (call(*leaves) * cotangent).sum(), wanted)(x1, x2, weight)
        return sum(g.square().sum() for g in grads)

    return Version(steps.compiled(call), squares=torch.compile(squares, dynamic=False))


def _index_add(x: Tensor, index: Tensor, n: int) -> Tensor:
    return x.new_zeros(n, x.shape[1]).index_add(0, index, x)


def _around(product: nn.Module, x: Inputs, add: Callable) -> Callable:
    source, target, n = x.source, x.target, x.x1.shape[0]
    return lambda x1, x2, weight: add(product(x1[source], x2, weight), target, n)


def _fast_conv(product: nn.Module, x: Inputs) -> Callable:
    conv = ace_fast.functional.tensor_product_conv
    graph = ace_fast.Graph(torch.stack([x.source, x.target]), x.x1.shape[0])
    return lambda x1, x2, weight: conv(x1, x2, weight, graph, product.table)


def _peer(name: str, problem: Problem, x: Inputs) -> Version:
    table = ProductTable(*problem.irreps, [(*ins[:5], ins.path_weight) for ins in _description(problem).instructions])
    peer = peers.adapter(name, table, problem.shared, x.x1.dtype, x.x1.device, problem.convolution)
    slices = {part: [(mul, ir.dim) for mul, ir in irreps]
              for part, irreps in zip(("x1", "x2", "out"), problem.irreps, strict=True)}

    def native(part: str, t: Tensor) -> Tensor:
        if part == "weight":
            return peer.to_theirs(t)
        return t if peer.layout == "mul_ir" else peers.transpose(t, slices[part], peer.layout)

    def back(part: str, t: Tensor) -> Tensor:
        if part == "weight":
            return peer.to_ours(t)
        return t if peer.layout == "mul_ir" else peers.transpose(t, slices[part], "mul_ir")

    call, n = peer.product, x.x1.shape[0]
    if problem.convolution:
        call = lambda x1, x2, weight: peer.convolution(x1, x2, weight, x.source, x.target, n)  # noqa: E731
    return Version(call, native, back, "+".join(peer.methods))


def step(version: Version, problem: Problem, x: Inputs, direction: str) -> Callable[[], object]:
    """What is timed, on tensors of the version's layout."""
    if direction == FORWARD:
        def forward() -> Tensor:
            with torch.no_grad():
                return version.call(*x.leaves())
        return forward
    if direction == BOTH:
        return lambda: torch.autograd.grad(version.call(*x.leaves()), x.leaves(), x.cotangent)
    return lambda: torch.autograd.grad(_squares(version, problem, x), x.leaves())


def _squares(version: Version, problem: Problem, x: Inputs) -> Tensor:
    """Sum of the squares of the gradients of <cotangent, output> with respect to what depends on positions: x1, x2 and
    weights a row, which a radial network makes; shared weights are parameters."""
    if version.squares is not None:
        return version.squares(*x.leaves(), x.cotangent)
    wanted = x.leaves()[:2 if problem.shared else 3]
    grads = torch.autograd.grad(version.call(*x.leaves()), wanted, x.cotangent, create_graph=True)
    return sum(g.square().sum() for g in grads)


def numbers(version: Version, problem: Problem, given: Inputs, direction: str) -> Numbers:
    """Output and gradients to the order that `direction` has, in e3nn's layout."""
    x = version.inputs(given)
    found = {"output": version.e3nn("out", step(version, problem, x, FORWARD)().detach())}
    for order, prefix in ((BOTH, "gradient of "), (DOUBLE, "second gradient of ")):
        if direction == DOUBLE or direction == order:
            grads = step(version, problem, x, order)()
            found |= {prefix + n: version.e3nn(n, g) for n, g in zip(NAMES, grads, strict=True)}
    return found


def reference(problem: Problem, given: Inputs, direction: str, dtype: torch.dtype, limit: int) -> Numbers:
    """`numbers` of e3nn's module in `dtype`, by blocks of rows so that its intermediates stay below `limit` bytes.

    Rows depend on one another through sums alone (at the nodes of a convolution, in shared weights), so the first
    gradients are collected over all blocks, and the second are those of their product with twice the first.
    """
    product, x = module(problem, dtype).to(given.x1.device), given.cast(dtype)
    rows = x.x2.shape[0]
    size = max(1, min(rows, limit // plain_bytes(problem, 1, dtype, direction)))
    blocks = [slice(i, min(rows, i + size)) for i in range(0, rows, size)]
    found = {"output": torch.zeros_like(x.cotangent)}
    for prefix in {FORWARD: (), BOTH: ("gradient of ",), DOUBLE: ("gradient of ", "second gradient of ")}[direction]:
        found |= {prefix + name: torch.zeros_like(leaf) for name, leaf in zip(NAMES, x.leaves(), strict=True)}
    for block in blocks:
        leaves, cotangent, at = _block(problem, x, block)
        output = product(*leaves)
        _add(found["output"], block if x.target is None else x.target[block], output.detach())
        if direction != FORWARD:
            _add_all(found, "gradient of ", at, torch.autograd.grad(output, leaves, cotangent))
    for block in blocks if direction == DOUBLE else ():
        leaves, cotangent, at = _block(problem, x, block)
        wanted = 2 if problem.shared else 3
        grads = torch.autograd.grad(product(*leaves), leaves[:wanted], cotangent, create_graph=True)
        twice = [2 * found[f"gradient of {name}"][index] for name, index in zip(NAMES[:wanted], at, strict=False)]
        loss = sum((g * t).sum() for g, t in zip(grads, twice, strict=True))
        _add_all(found, "second gradient of ", at, torch.autograd.grad(loss, leaves))
    return found


def _block(problem: Problem, x: Inputs, block: slice) -> tuple[list[Tensor], Tensor, tuple]:
    """Leaves of one block of rows, its cotangent, and where its rows are in x1, x2 and weight."""
    at = (block if x.source is None else x.source[block], block, slice(None) if problem.shared else block)
    leaves = [leaf.detach()[index].requires_grad_() for leaf, index in zip(x.leaves(), at, strict=True)]
    return leaves, x.cotangent[block if x.target is None else x.target[block]], at


def _add(total: Tensor, index: slice | Tensor, rows: Tensor) -> None:
    if isinstance(index, Tensor):
        total.index_add_(0, index, rows)
    else:
        total[index] += rows


def _add_all(found: Numbers, prefix: str, at: tuple, grads: tuple[Tensor, ...]) -> None:
    for name, index, grad in zip(NAMES, at, grads, strict=True):
        _add(found[prefix + name], index, grad)


# measured: the largest peak of e3nn's eager step over the bytes of its rows, weights a row and products of channels
PLAIN = {"uvu": {FORWARD: 3, BOTH: 5, DOUBLE: 9}, "uvw": {FORWARD: 6, BOTH: 8, DOUBLE: 20}}


def plain_bytes(problem: Problem, rows: int, dtype: torch.dtype, direction: str) -> int:
    """About what e3nn's eager step needs."""
    a_row = sum(irreps.dim for irreps in problem.irreps)
    for i, j, k, mode, _ in problem.instructions:
        (u, a), (v, b), (w, c) = (of[n] for of, n in zip(problem.irreps, (i, j, k), strict=True))
        if mode == "uvw":
            a_row += u * v * min(a.dim * b.dim, c.dim)
        if not problem.shared:
            a_row += u * v * (w if mode == "uvw" else 1)
    return PLAIN[problem.instructions[0][3]][direction] * a_row * rows * torch.finfo(dtype).bits // 8
