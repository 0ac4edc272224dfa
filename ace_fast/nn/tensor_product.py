"""e3nn's TensorProduct and FullyConnectedTensorProduct with shared "uvw" weights, on the fused operator."""

from math import prod

import torch
from e3nn import get_optimization_defaults, o3
from torch import Tensor, nn

from .. import functional
from ..kernels.tensor_product import GateTable, ProductTable

_W3J = "_compiled_main_left_right._w3j_"


def apply_product(name: str, x: Tensor, y: Tensor, weight: Tensor, table: ProductTable, bias: Tensor | None = None,
                  gate: GateTable | None = None, backend: str = "auto") -> Tensor:
    """The operator for x [..., dim1] and y [..., dim2] whose leading dimensions broadcast."""
    for argument, value, dim in (("x", x, table.dims[0]), ("y", y, table.dims[1])):
        if value.dim() == 0 or value.shape[-1] != dim:
            raise ValueError(f"{name}: {argument} must be [..., {dim}], got {list(value.shape)}; "
                             "its last dimension is that of the irreps")
    lead = x.shape[:-1]
    if y.shape[:-1] != lead:
        try:
            lead = torch.broadcast_shapes(lead, y.shape[:-1])
        except RuntimeError:
            raise ValueError(f"{name}: the leading dimensions of x and y must broadcast, got {list(x.shape)} and "
                             f"{list(y.shape)}") from None
        x, y = x.expand(*lead, x.shape[-1]), y.expand(*lead, y.shape[-1])
    if len(lead) == 1:
        return functional.tensor_product(x, y, weight, table, bias, gate=gate, backend=backend)
    rows = prod(lead)
    x, y = x.reshape(rows, x.shape[-1]), y.reshape(rows, y.shape[-1])
    out = functional.tensor_product(x, y, weight, table, bias, gate=gate, backend=backend)
    return out.reshape(*lead, out.shape[-1])


def unsupported(instructions, shared_weights: bool) -> str:
    """Why these e3nn instructions cannot run on the fused operator; empty when they can."""
    for n, ins in enumerate(instructions):
        if ins[3] != "uvw":
            return f"connection mode must be 'uvw', got {ins[3]!r} in instruction {n}"
        if not ins[4]:
            return f"every instruction must have weights, got has_weight=False in instruction {n}"
    return "" if shared_weights else "shared_weights must be True, got False (weights per sample)"


def _check_instructions(name: str, irreps: tuple[o3.Irreps, ...], instructions, shared_weights) -> None:
    for n, ins in enumerate(instructions):
        if len(ins) not in (5, 6):
            raise ValueError(f"{name}: instruction {n} must be (i_in1, i_in2, i_out, mode, has_weight[, path_weight]), "
                             f"got {tuple(ins)}")
    reason = unsupported(instructions, shared_weights is not False)
    if reason:
        raise ValueError(f"{name}: {reason}; keep e3nn.o3.{name} for this product")
    for n, ins in enumerate(instructions):
        for slot, index, of in zip(("in1", "in2", "out"), ins[:3], irreps, strict=True):
            if not 0 <= index < len(of):
                raise ValueError(f"{name}: i_{slot} of instruction {n} must be in 0..{len(of) - 1}, got {index}; "
                                 f"irreps_{slot} is {of}")
        a, b, c = (of[index].ir for of, index in zip(irreps, ins[:3], strict=True))
        if c not in a * b:
            raise ValueError(f"{name}: the output of instruction {n} must be one of {list(map(str, a * b))}, got {c}; "
                             f"{a} x {b} holds no {c}")


class TensorProduct(nn.Module):
    r"""Clebsch-Gordan product of two inputs with shared weights, a drop-in for `e3nn.o3.TensorProduct`.

    .. math:: z_w = \sum_{paths} \alpha \sum_{u,v} w_{uvw}\, x_u \otimes y_v

    Constructor, attributes, weight order, initial weights and state_dict are e3nn's; e3nn itself computes the path
    weights. Only connection mode "uvw" with weights that all samples share runs here. `compile_left_right`,
    `_specialized_code` and `_optimize_einsums` steer e3nn's code generation and change nothing.

    Args:
        irreps_in1, irreps_in2, irreps_out: e3nn irreps.
        instructions: (i_in1, i_in2, i_out, "uvw", True[, path_weight]) each.
        in1_var, in2_var, out_var, irrep_normalization, path_normalization, internal_weights, shared_weights: e3nn's.
        backend: which implementation of the operator runs.

    Raises:
        ValueError: another connection mode, weights per sample, `compile_right`, or a path that irreps do not allow.

    Derivatives of any order in x, y and the weights. State dictionaries load both ways between this class and e3nn's.

    Example:
        >>> tp = ace_fast.nn.TensorProduct("2x1o", "1x1o", "3x0e", [(0, 0, 0, "uvw", True)])
        >>> tp(torch.randn(5, 6), torch.randn(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(self, irreps_in1, irreps_in2, irreps_out, instructions, in1_var=None, in2_var=None, out_var=None,
                 irrep_normalization=None, path_normalization=None, internal_weights=None, shared_weights=None,
                 compile_left_right=True, compile_right=False, normalization=None, _specialized_code=None,
                 _optimize_einsums=None, *, backend="auto"):
        super().__init__()
        name = type(self).__name__
        irreps = tuple(o3.Irreps(i) for i in (irreps_in1, irreps_in2, irreps_out))
        instructions = [tuple(ins) for ins in instructions]
        _check_instructions(name, irreps, instructions, shared_weights)
        for option, value, choices in (
            ("irrep_normalization", normalization or irrep_normalization, (None, "component", "norm", "none")),
            ("path_normalization", path_normalization, (None, "element", "path", "none")),
        ):
            if value not in choices:
                raise ValueError(f"{name}: {option} must be one of {choices}, got {value!r}")
        if compile_right:
            raise ValueError(f"{name}: compile_right must be False, got True; keep e3nn.o3.{name} for right()")
        # e3nn's own normalisation, weights and mask; its generated code is left out
        like = o3.TensorProduct(
            *irreps, instructions, in1_var, in2_var, out_var, irrep_normalization, path_normalization,
            internal_weights, shared_weights, compile_left_right=False, compile_right=False,
            normalization=normalization, _specialized_code=_specialized_code, _optimize_einsums=_optimize_einsums,
        )
        self._adopt(like, backend)

    def _adopt(self, like: o3.TensorProduct, backend: str) -> None:
        """Takes over irreps, instructions, weight (the same Parameter) and mask of an e3nn module."""
        self.irreps_in1, self.irreps_in2, self.irreps_out = like.irreps_in1, like.irreps_in2, like.irreps_out
        self.instructions = like.instructions
        self.weight_numel = like.weight_numel
        self.internal_weights, self.shared_weights = like.internal_weights, like.shared_weights
        self._specialized_code = like._specialized_code
        self.backend = backend
        if isinstance(like.weight, nn.Parameter):
            self.weight = like.weight
        else:
            self.register_buffer("weight", like.weight)
        self.register_buffer("output_mask", like.output_mask)
        paths = [(*ins[:5], ins.path_weight) for ins in self.instructions if 0 not in ins.path_shape]
        self.table = ProductTable(self.irreps_in1, self.irreps_in2, self.irreps_out, paths)

    @classmethod
    def from_e3nn(cls, module: o3.TensorProduct, backend: str = "auto"):
        """This layer with the very Parameter and mask of an e3nn module.

        Raises:
            ValueError: the module's connection modes or weights are not supported.
        """
        reason = unsupported(module.instructions, module.shared_weights)
        if reason:
            raise ValueError(f"{cls.__name__}: {reason}; keep the e3nn module")
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        new._adopt(module, backend)
        return new.train(module.training)

    def __repr__(self) -> str:
        shown = [i.simplify() for i in (self.irreps_in1, self.irreps_in2, self.irreps_out)]
        npath = sum(prod(ins.path_shape) for ins in self.instructions)
        return (f"{type(self).__name__}({shown[0]} x {shown[1]} -> {shown[2]} | {npath} paths | "
                f"{self.weight_numel} weights)")

    def _weight(self, weight: Tensor | list[Tensor] | None) -> Tensor:
        name = type(self).__name__
        if weight is None:
            if self.weight_numel and not self.internal_weights:
                raise RuntimeError(f"{name}: weight must be given where internal_weights is False, got None; "
                                   f"pass a tensor [{self.weight_numel}]")
            return self.weight
        if isinstance(weight, list):
            weight = torch.cat([w.reshape(-1) for w in weight])
        if weight.shape != (self.weight_numel,):
            raise ValueError(f"{name}: weight must be [{self.weight_numel}], got {list(weight.shape)}; for weights per "
                             f"sample keep e3nn.o3.{name}")
        return weight

    def forward(self, x: Tensor, y: Tensor, weight: Tensor | list[Tensor] | None = None) -> Tensor:
        """x [..., irreps_in1.dim], y [..., irreps_in2.dim] -> [..., irreps_out.dim]; weight unless internal."""
        return apply_product(type(self).__name__, x, y, self._weight(weight), self.table, backend=self.backend)

    def right(self, y: Tensor, weight: Tensor | None = None) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__}: right() is not provided; keep e3nn.o3.{type(self).__name__}")

    def weight_view_for_instruction(self, instruction: int, weight: Tensor | None = None) -> Tensor:
        """The [U, V, W] block of one instruction, a view of the weights."""
        offset = sum(prod(ins.path_shape) for ins in self.instructions[:instruction])
        shape = self.instructions[instruction].path_shape
        return self._weight(weight).narrow(-1, offset, prod(shape)).view(shape)

    def weight_views(self, weight: Tensor | None = None, yield_instruction: bool = False):
        """Yields the block of every instruction, or (number, instruction, block)."""
        for n, ins in enumerate(self.instructions):
            view = self.weight_view_for_instruction(n, weight)
            yield (n, ins, view) if yield_instruction else view

    def _e3nn_buffers(self) -> set[tuple[int, int, int]]:
        """Degrees of the Wigner 3j buffers that e3nn's generated code holds for these instructions."""
        degrees = {
            (self.irreps_in1[ins.i_in1].ir.l, self.irreps_in2[ins.i_in2].ir.l, self.irreps_out[ins.i_out].ir.l)
            for ins in self.instructions if 0 not in ins.path_shape
        }
        specialized = self._specialized_code
        if specialized is None:
            specialized = get_optimization_defaults()["specialized_code"]
        return {ls for ls in degrees if 0 not in ls} if specialized else degrees

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for ls in sorted(self._e3nn_buffers()):
            with torch.device("cpu"):
                w3j = o3.wigner_3j(*ls, dtype=torch.float64)
            key = f"{prefix}{_W3J}{'_'.join(map(str, ls))}"
            destination[key] = w3j.to(self.output_mask.device, self.output_mask.dtype)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        # e3nn keeps its coefficient tables in the state; ours are made from the irreps
        for key in [key for key in state_dict if key.startswith(prefix + "_compiled_main_")]:
            del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args)


class FullyConnectedTensorProduct(TensorProduct):
    """All allowed paths with shared weights, a drop-in for `e3nn.o3.FullyConnectedTensorProduct`.

    Args:
        irreps_in1, irreps_in2, irreps_out: e3nn irreps.
        irrep_normalization, path_normalization, **kwargs: as in `TensorProduct`.

    Example:
        >>> tp = ace_fast.nn.FullyConnectedTensorProduct("8x0e + 8x1o", "1x0e + 1x1o", "8x0e + 8x1o")
        >>> tp.weight_numel
        256
    """

    def __init__(self, irreps_in1, irreps_in2, irreps_out, irrep_normalization=None, path_normalization=None, **kwargs):
        in1, in2, out = (o3.Irreps(i) for i in (irreps_in1, irreps_in2, irreps_out))
        instructions = [
            (i, j, k, "uvw", True, 1.0)
            for i, (_, a) in enumerate(in1)
            for j, (_, b) in enumerate(in2)
            for k, (_, c) in enumerate(out)
            if c in a * b
        ]
        super().__init__(in1, in2, out, instructions, irrep_normalization=irrep_normalization,
                         path_normalization=path_normalization, **kwargs)
