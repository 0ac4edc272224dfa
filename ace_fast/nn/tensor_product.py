"""e3nn's TensorProduct on the fused operator: every connection mode, shared and per-sample weights, both layouts."""

from contextlib import nullcontext
from math import prod

import torch
from e3nn import get_optimization_defaults, o3
from torch import Tensor, nn

from .. import functional
from ..kernels.define import fail, is_half
from ..kernels.tensor_product import GateTable, ProductTable
from ..kernels.tensor_product.op import BACKENDS
from ..kernels.tensor_product.table import LAYOUTS, MODES
from . import peers

WIDE = torch.float32, torch.float64
_CHOICES = {
    "irrep_normalization": (None, "component", "norm", "none"),
    "normalization": (None, "component", "norm", "none"),
    "path_normalization": (None, "element", "path", "none"),
    "layout": LAYOUTS,
    "backend": ("auto", *BACKENDS, *peers.NAMES),
}
# (mode, has_weight) whose code e3nn specialises where a degree is 0, in its forward and in its right()
_SPECIALIZED = {
    "left_right": {("uvw", True), ("uvu", True), ("uvv", True), ("uvv", False), ("uuw", True), ("uuu", True),
                   ("uuu", False)},
    "right": {("uvw", True), ("uvu", True), ("uvv", True), ("uuu", True), ("uuu", False)},
}


def check_floating(name: str, argument: str, value) -> None:
    """A tensor of floating point."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: {argument} must be a tensor, got {type(value).__name__}; use torch.as_tensor(...)")
    if not value.is_floating_point():
        raise ValueError(f"{name}: {argument} must be float32 or float64, got {value.dtype}; cast it with .float()")


def check_columns(name: str, **arguments: tuple[Tensor, int]) -> None:
    """Each argument (value, dim) of a layer is [..., dim], of floating point."""
    for argument, (value, dim) in arguments.items():
        check_floating(name, argument, value)
        if value.dim() == 0 or value.shape[-1] != dim:
            raise ValueError(f"{name}: {argument} must be [..., {dim}], got {list(value.shape)}; "
                             "its last dimension is that of the irreps")


def check_dtypes(name: str, weight: Tensor, backend: str, **inputs: Tensor) -> None:
    """Inputs of a layer, multiplied by its weights where it has any, are of one dtype that an operator takes here.

    Call it where they differ or are no WIDE ones: others are right.
    """
    (first, x), *others = inputs.items()
    if torch.is_autocast_enabled(x.device.type):
        return  # the operator gets float32
    weights = weight.dtype if weight.numel() else x.dtype
    dtype = torch.promote_types(x.dtype, weights)
    for argument, y in others:
        if torch.promote_types(y.dtype, weights if weight.numel() else y.dtype) != dtype:
            fail(name, argument, f"{x.dtype} as {first}", y.dtype, "cast one of them with .to(...)")
    if dtype not in WIDE and not is_half(name, first, x, backend):
        fail(name, first, "float32 or float64", x.dtype, "cast it with .float()")


def widened(x: Tensor) -> Tensor:
    """x in float32 where it is of half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(x: Tensor):
    """A context in which plain torch on x's device keeps its precision, as operators do under autocast."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def check_options(name: str, **options) -> None:
    """Options of one name have the same choices in every layer."""
    for option, choices in _CHOICES.items():
        if option in options and options[option] not in choices:
            raise ValueError(f"{name}: {option} must be one of {choices}, got {options[option]!r}")
    if options.get("internal_weights") and options.get("shared_weights") is False:
        raise ValueError(f"{name}: internal_weights must be False where shared_weights is False, got True; "
                         "pass the weights of every sample to the call")


def weight_of_call(layer: nn.Module, x: Tensor, weight: Tensor | None) -> Tensor:
    """The weights of a call of a layer, its own or [weight_numel] or [..., weight_numel]; empty where it has none."""
    name, n = type(layer).__name__, layer.weight_numel
    if layer.internal_weights is not False:
        if weight is not None:
            raise ValueError(f"{name}: weight must be None, got {list(weight.shape)}; build the layer with "
                             "internal_weights=False")
        return x.new_empty(0) if layer.weight is None else layer.weight
    if weight is None or weight.dim() == 0 or weight.shape[-1] != n:
        raise ValueError(f"{name}: weight must be [{n}] or [..., {n}] where internal_weights is False, got "
                         f"{None if weight is None else list(weight.shape)}")
    return weight


def as_rows(name: str, weight: Tensor, **inputs: Tensor) -> tuple[list[Tensor], Tensor, torch.Size]:
    """Inputs [..., dim] and weight [n] or [..., n], whose leading dimensions broadcast, as rows of the same number
    (weight [n] as it is), and what the leading dimensions are."""
    xs = list(inputs.values())
    lead = xs[0].shape[:-1]
    own = weight.dim() > 1  # every row has its own weights
    if any(x.shape[:-1] != lead for x in xs) or own and weight.shape[:-1] != lead:
        given = inputs | ({"weight": weight} if own else {})
        try:
            lead = torch.broadcast_shapes(*(x.shape[:-1] for x in given.values()))
        except RuntimeError:
            *names, last = given
            raise ValueError(f"{name}: the leading dimensions of {', '.join(names)} and {last} must broadcast, got "
                             f"{' and '.join(str(list(x.shape)) for x in given.values())}") from None
        xs = [x.expand(*lead, x.shape[-1]) for x in xs]
        if own and prod(weight.shape[:-1]) == 1:
            weight = weight.reshape(-1)
        elif own:
            weight = weight.expand(*lead, weight.shape[-1])
    if len(lead) != 1:
        rows = prod(lead)
        xs = [x.reshape(rows, x.shape[-1]) for x in xs]
        weight = weight if weight.dim() == 1 else weight.reshape(rows, weight.shape[-1])
    return xs, weight, lead


def apply_product(name: str, x: Tensor, y: Tensor, weight: Tensor, table: ProductTable, bias: Tensor | None = None,
                  gate: GateTable | None = None, backend: str = "auto") -> Tensor:
    """The operator for x [..., dim1], y [..., dim2] and weight [n] or [..., n] whose leading dimensions broadcast."""
    check_columns(name, x=(x, table.dims[0]), y=(y, table.dims[1]))
    (x, y), weight, lead = as_rows(name, weight, x=x, y=y)
    if backend in peers.NAMES:
        out = peers.run(backend, table, x, y, weight, bias, gate)
    else:
        out = functional.tensor_product(x, y, weight, table, bias, gate=gate, backend=backend)
    return out if len(lead) == 1 else out.reshape(*lead, out.shape[-1])


def no_script(layer: nn.Module) -> None:
    """What torch.jit.script hears of a layer of ours."""
    raise NotImplementedError(f"{type(layer).__name__}: torch.jit.script is not supported; use torch.compile, or "
                              "ace_fast.restore(model) before scripting a converted model")


def _check_instructions(name: str, irreps: tuple[o3.Irreps, ...], instructions) -> None:
    for n, ins in enumerate(instructions):
        if len(ins) not in (5, 6):
            raise ValueError(f"{name}: instruction {n} must be (i_in1, i_in2, i_out, mode, has_weight[, path_weight]), "
                             f"got {tuple(ins)}")
        if len(ins) == 6 and not ins[5] >= 0:
            raise ValueError(f"{name}: the path_weight of instruction {n} must be 0 or more, got {ins[5]}; the product "
                             "is multiplied by its root")
        if ins[3] not in MODES:
            raise ValueError(f"{name}: the mode of instruction {n} must be one of {MODES}, got {ins[3]!r}")
        for slot, index, of in zip(("in1", "in2", "out"), ins[:3], irreps, strict=True):
            if not 0 <= index < len(of):
                raise ValueError(f"{name}: i_{slot} of instruction {n} must be in 0..{len(of) - 1}, got {index}; "
                                 f"irreps_{slot} is {of}")
        a, b, c = (of[index].ir for of, index in zip(irreps, ins[:3], strict=True))
        if c not in a * b:
            raise ValueError(f"{name}: the output of instruction {n} must be one of {list(map(str, a * b))}, got {c}; "
                             f"{a} x {b} holds no {c}")


class TensorProduct(nn.Module):
    r"""Clebsch-Gordan product of two inputs, a drop-in for `e3nn.o3.TensorProduct`.

    .. math:: z_w = \sum_{paths} \alpha \sum_{u,v} w_{uvw}\, x_u \otimes y_v

    Constructor, attributes, weight order, initial weights and state_dict are e3nn's; e3nn itself computes the path
    weights. All connection modes, weights shared by all samples or one row for each, leading dimensions that broadcast.
    `right()` needs no `compile_right`. `compile_left_right`, `compile_right`, `_specialized_code` and
    `_optimize_einsums` steer e3nn's code generation: here they only choose the names in the state_dict.

    Args:
        irreps_in1, irreps_in2, irreps_out: e3nn irreps.
        instructions: (i_in1, i_in2, i_out, mode, has_weight[, path_weight]) each, mode one of "uvw", "uvu", "uvv",
            "uuw", "uuu", "uvuv", "uvu<v", "u<vw".
        in1_var, in2_var, out_var, irrep_normalization, path_normalization, internal_weights, shared_weights: e3nn's.
        layout: of x, y and the result, "mul_ir" (e3nn's: the components of a channel lie together) or "ir_mul" (the
            channels of a component lie together).
        backend: which implementation of the operator runs; "cuequivariance" and "openequivariance" run these libraries,
            where they are installed, for comparison.

    Raises:
        ValueError: a path that the irreps do not allow, multiplicities that do not fit the mode, an unknown option,
            or a backend that cannot run this product.

    Derivatives of any order in x, y and the weights. State dictionaries load both ways between this class and e3nn's.

    Example:
        >>> tp = ace_fast.nn.TensorProduct("2x1o", "1x1o", "2x0e", [(0, 0, 0, "uvu", True)], shared_weights=False)
        >>> tp(torch.randn(5, 6), torch.randn(5, 3), torch.randn(5, tp.weight_numel)).shape
        torch.Size([5, 2])
    """

    def __init__(self, irreps_in1, irreps_in2, irreps_out, instructions, in1_var=None, in2_var=None, out_var=None,
                 irrep_normalization=None, path_normalization=None, internal_weights=None, shared_weights=None,
                 compile_left_right=True, compile_right=False, normalization=None, _specialized_code=None,
                 _optimize_einsums=None, *, layout="mul_ir", backend="auto"):
        name = type(self).__name__
        irreps = tuple(o3.Irreps(i) for i in (irreps_in1, irreps_in2, irreps_out))
        instructions = [tuple(ins) for ins in instructions]
        _check_instructions(name, irreps, instructions)
        for slot, variances, of in zip(("in1", "in2", "out"), (in1_var, in2_var, out_var), irreps, strict=True):
            if variances is not None and len(variances) != len(of):
                raise ValueError(f"{name}: {slot}_var must hold {len(of)} numbers, one for each of {of}, got "
                                 f"{len(variances)}")
        self._build(o3.TensorProduct, *irreps, instructions, in1_var, in2_var, out_var, layout=layout, backend=backend,
                    irrep_normalization=irrep_normalization, path_normalization=path_normalization,
                    internal_weights=internal_weights, shared_weights=shared_weights, normalization=normalization,
                    compile_left_right=compile_left_right, compile_right=compile_right,
                    _specialized_code=_specialized_code, _optimize_einsums=_optimize_einsums)

    def _build(self, make, *args, compile_left_right=True, compile_right=False, layout="mul_ir", backend="auto",
               **options) -> None:
        """Becomes what e3nn's class `make` is: its normalisation, weights and mask; its generated code is left out."""
        nn.Module.__init__(self)
        check_options(type(self).__name__, layout=layout, **options)
        like = make(*args, compile_left_right=False, compile_right=False, **options)
        self._adopt(like, layout, backend, compile_left_right, compile_right)

    def _adopt(self, like: o3.TensorProduct, layout: str, backend: str, left_right: bool, right: bool) -> None:
        """Takes over irreps, instructions, weight (the same Parameter) and mask of an e3nn module."""
        for key in ("irreps_in1", "irreps_in2", "irreps_out", "instructions", "weight_numel", "internal_weights",
                    "shared_weights", "_specialized_code", "_optimize_einsums", "_in1_dim", "_in2_dim"):
            setattr(self, key, getattr(like, key))
        self._did_compile_left_right, self._did_compile_right = left_right, right
        self.layout, self.backend = layout, backend
        if isinstance(like.weight, nn.Parameter):
            self.weight = like.weight
        else:
            self.register_buffer("weight", like.weight)
        self.register_buffer("output_mask", like.output_mask)
        paths = [(*ins[:5], ins.path_weight) for ins in self.instructions if 0 not in ins.path_shape]
        self.table = ProductTable(self.irreps_in1, self.irreps_in2, self.irreps_out, paths, layout=layout)

    @classmethod
    def from_e3nn(cls, module: o3.TensorProduct, backend: str = "auto", layout: str = "mul_ir"):
        """This layer with the very Parameter and mask of an e3nn module."""
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        generated = [any(key.startswith(f"_compiled_main_{side}.") for key in module.state_dict())
                     for side in ("left_right", "right")]
        new._adopt(module, layout, backend, generated[0], generated[1])
        return new.train(module.training)

    def _shown(self) -> str:
        return f"{self.irreps_in1.simplify()} x {self.irreps_in2.simplify()}"

    def __repr__(self) -> str:
        npath = sum(prod(ins.path_shape) for ins in self.instructions)
        return (f"{type(self).__name__}({self._shown()} -> {self.irreps_out.simplify()} | {npath} paths | "
                f"{self.weight_numel} weights)")

    def _weight(self, weight: Tensor | list[Tensor] | None) -> Tensor:
        name, n = type(self).__name__, self.weight_numel
        if weight is None:
            if n and not self.internal_weights:
                shape = f"[{n}]" if self.shared_weights else f"[..., {n}]"
                raise RuntimeError(f"{name}: weight must be given where internal_weights is False, got None; "
                                   f"pass a tensor {shape}")
            return self.weight
        if isinstance(weight, list):
            weight = self._flat(weight)
        if self.shared_weights and weight.shape != (n,):
            raise ValueError(f"{name}: weight must be [{n}], got {list(weight.shape)}; weights of every sample need "
                             "shared_weights=False")
        if not self.shared_weights and (weight.dim() < 2 or weight.shape[-1] != n):
            raise ValueError(f"{name}: weight must be [..., {n}], a row for every sample, got {list(weight.shape)}; "
                             "weights that all samples share need shared_weights=True")
        return weight

    def _flat(self, blocks: list[Tensor]) -> Tensor:
        """[..., n] of the blocks [..., U, V, W] (or flat ones [..., U V W]) of all instructions with weights."""
        shapes = [ins.path_shape for ins in self.instructions if ins.has_weight]
        if len(blocks) != len(shapes):
            raise ValueError(f"{type(self).__name__}: weight must be a list of {len(shapes)} blocks, one for each "
                             f"instruction with weights, got {len(blocks)}")
        flat = []
        for n, (block, shape) in enumerate(zip(blocks, shapes, strict=True)):
            if tuple(block.shape[-len(shape):]) == tuple(shape):
                block = block.flatten(-len(shape))
            elif block.shape[-1:] != (prod(shape),):
                raise ValueError(f"{type(self).__name__}: weight block {n} must be [..., "
                                 f"{', '.join(map(str, shape))}], got {list(block.shape)}")
            flat.append(block)
        return torch.cat(flat, -1) if flat else self.weight

    def forward(self, x: Tensor, y: Tensor, weight: Tensor | list[Tensor] | None = None) -> Tensor:
        """x [..., irreps_in1.dim], y [..., irreps_in2.dim] -> [..., irreps_out.dim]; weight unless internal."""
        weight = self._weight(weight) if self.weight_numel else x.new_empty(0)
        return apply_product(type(self).__name__, x, y, weight, self.table, backend=self.backend)

    def right(self, y: Tensor, weight: Tensor | list[Tensor] | None = None) -> Tensor:
        """The product as a linear map of x: y [..., irreps_in2.dim] -> [..., irreps_in1.dim, irreps_out.dim]."""
        if self.weight_numel:
            weight = self._weight(weight)
            weight = weight if weight.dim() == 1 else weight.unsqueeze(-2)
        else:
            weight = y.new_empty(0)
        x = torch.eye(self.irreps_in1.dim, dtype=y.dtype, device=y.device)
        return apply_product(f"{type(self).__name__}.right", x, y.unsqueeze(-2), weight, self.table,
                             backend=self.backend)

    def weight_view_for_instruction(self, instruction: int, weight: Tensor | None = None) -> Tensor:
        """The block [..., U, V, W] (or what the mode has) of one instruction, a view of the weights."""
        ins = self.instructions[instruction]
        if not ins.has_weight:
            raise ValueError(f"{type(self).__name__}: instruction {instruction} must have weights, got "
                             "has_weight=False")
        offset = sum(prod(i.path_shape) for i in self.instructions[:instruction] if i.has_weight)
        weight = self._weight(weight)
        return weight.narrow(-1, offset, prod(ins.path_shape)).view(*weight.shape[:-1], *ins.path_shape)

    def weight_views(self, weight: Tensor | None = None, yield_instruction: bool = False):
        """Yields the block of every instruction with weights, or (number, instruction, block)."""
        for n, ins in enumerate(self.instructions):
            if ins.has_weight:
                view = self.weight_view_for_instruction(n, weight)
                yield (n, ins, view) if yield_instruction else view

    def __prepare_scriptable__(self):
        no_script(self)

    def visualize(self, *args, **kwargs):
        """e3nn's drawing of the paths: (matplotlib figure, axes)."""
        return o3.TensorProduct.visualize(self, *args, **kwargs)

    def _e3nn_buffers(self) -> dict[str, tuple[int, ...] | int]:
        """Coefficient buffers of e3nn's generated code: their names, with the degrees of a 3j symbol or the number of
        channels of an index table of pairs."""
        default = get_optimization_defaults()["specialized_code"]
        specialize = default if self._specialized_code is None else self._specialized_code
        found = {}
        for ins in self.instructions:
            if 0 in ins.path_shape:
                continue
            ls = tuple(i[k].ir.l for i, k in zip(self.table.irreps, ins[:3], strict=True))
            mode = (ins.connection_mode, ins.has_weight)
            for side in ("left_right", "right"):
                if not getattr(self, f"_did_compile_{side}"):
                    continue
                cross = side == "left_right" and ls == (1, 1, 1) and mode[0] == "uuu"
                if not (specialize and mode in _SPECIALIZED[side] and (0 in ls or cross)):
                    found[f"_compiled_main_{side}._w3j_{ls[0]}_{ls[1]}_{ls[2]}"] = ls
                if side == "left_right" and "<" in mode[0]:
                    mul = self.irreps_in1[ins.i_in1].mul
                    found[f"_compiled_main_{side}._triu_indices_{mul}"] = mul
        return found

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        like = self.output_mask
        for key, what in self._e3nn_buffers().items():
            with torch.device("cpu"):
                table = (torch.triu_indices(what, what, 1) if isinstance(what, int)
                         else o3.wigner_3j(*what, dtype=torch.float64).to(like.dtype))
            destination[prefix + key] = table.to(like.device)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        # e3nn keeps its coefficient tables in the state; ours are made from the irreps
        for key in [key for key in state_dict if key.startswith(prefix + "_compiled_main_")]:
            del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args)
