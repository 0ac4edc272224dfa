"""e3nn's Linear on the fused operator: the tensor product with the constant 1."""

from itertools import accumulate
from math import prod, sqrt

import torch
from e3nn import o3
from torch import Tensor, nn

from ..kernels.tensor_product import ProductTable
from .tensor_product import apply_product, check_options, no_script


def _check_instructions(name: str, irreps: tuple[o3.Irreps, o3.Irreps], instructions) -> None:
    for n, ins in enumerate(instructions):
        if len(ins) != 2:
            raise ValueError(f"{name}: instruction {n} must be (i_in, i_out), got {tuple(ins)}")
        for slot, index, of in zip(("in", "out"), ins, irreps, strict=True):
            if not 0 <= index < len(of):
                raise ValueError(f"{name}: i_{slot} of instruction {n} must be in 0..{len(of) - 1}, got {index}; "
                                 f"irreps_{slot} is {of}")
        a, b = (of[index].ir for of, index in zip(irreps, ins, strict=True))
        if a != b:
            raise ValueError(f"{name}: the output of instruction {n} must be {a} as its input, got {b}")


class Linear(nn.Module):
    r"""Equivariant linear map, a drop-in for `e3nn.o3.Linear`.

    .. math:: z_w = \sum_{paths} \alpha \sum_u w_{uw} x_u (+ b)

    Constructor, attributes, weight order, initial weights and state_dict are e3nn's; e3nn itself computes the path
    weights. Weights of every sample ([..., n]) broadcast with the leading dimensions of the features.

    Args:
        irreps_in, irreps_out: e3nn irreps.
        f_in, f_out: additional channels of the features [..., f_in, irreps_in.dim] -> [..., f_out, irreps_out.dim], all
            mixed with all; the weights are [f_in, f_out, n].
        internal_weights, shared_weights, instructions, biases, path_normalization: e3nn's.
        layout: of features and result, "mul_ir" (e3nn's) or "ir_mul".
        backend: which implementation of the operator runs (with f_in it is plain torch), or a library of
            `TensorProduct`'s for comparison.

    Raises:
        ValueError: instructions between different irreps or slices that do not exist, biases that are not
            one for each slice or not of even scalars, f_in without f_out, an unknown option.

    Derivatives of any order. State dictionaries load both ways between this class and e3nn's.

    Example:
        >>> linear = ace_fast.nn.Linear("4x0e + 16x1o", "8x0e + 8x1o", biases=True)
        >>> linear(torch.randn(5, 52)).shape
        torch.Size([5, 32])
    """

    def __init__(self, irreps_in, irreps_out, *, f_in=None, f_out=None, internal_weights=None, shared_weights=None,
                 instructions=None, biases=False, path_normalization="element", _optimize_einsums=None,
                 layout="mul_ir", backend="auto"):
        super().__init__()
        name = type(self).__name__
        check_options(name, layout=layout, internal_weights=internal_weights, shared_weights=shared_weights)
        if path_normalization not in ("element", "path"):
            raise ValueError(f"{name}: path_normalization must be one of ('element', 'path'), got "
                             f"{path_normalization!r}")
        if (f_in is None) != (f_out is None):
            raise ValueError(f"{name}: f_in and f_out must be given together, got {f_in} and {f_out}")
        irreps_in, out = o3.Irreps(irreps_in), o3.Irreps(irreps_out)
        if instructions is not None:
            instructions = list(instructions)
            _check_instructions(name, (irreps_in, out), instructions)
        if isinstance(biases, (list, tuple)):
            if len(biases) != len(out):
                raise ValueError(f"{name}: biases must hold {len(out)} flags, one for each of {out}, got {len(biases)}")
            if wrong := [str(i) for bias, i in zip(biases, out, strict=True) if bias and not i.ir.is_scalar()]:
                raise ValueError(f"{name}: biases must be of even scalars (0e), got one for {', '.join(wrong)}")
        like = o3.Linear(irreps_in, out, f_in=f_in, f_out=f_out, internal_weights=internal_weights,
                         shared_weights=shared_weights, instructions=instructions, biases=biases,
                         path_normalization=path_normalization, _optimize_einsums=False)
        if _optimize_einsums is not None:
            like._optimize_einsums = _optimize_einsums
        self._adopt(like, f_in, f_out, layout, backend)

    def _adopt(self, like: o3.Linear, f_in: int | None, f_out: int | None, layout: str, backend: str) -> None:
        """Takes over irreps, instructions, weight and bias (the same Parameters) and mask of an e3nn module."""
        for key in ("irreps_in", "irreps_out", "instructions", "weight_numel", "bias_numel", "internal_weights",
                    "shared_weights", "weight_index_slices", "_optimize_einsums"):
            setattr(self, key, getattr(like, key))
        self.f_in, self.f_out, self.layout, self.backend = f_in, f_out, layout, backend
        for key in ("weight", "bias"):
            value = getattr(like, key)
            if isinstance(value, nn.Parameter):
                setattr(self, key, value)
            else:
                self.register_buffer(key, value)
        self.register_buffer("output_mask", like.output_mask)
        # w3j(l, 0, l) is the identity / sqrt(2l + 1)
        paths = [(ins.i_in, 0, ins.i_out, "uvw", True, ins.path_weight * sqrt(self.irreps_in[ins.i_in].ir.dim))
                 for ins in self.instructions if ins.i_in != -1 and 0 not in ins.path_shape]
        slices = [[(s.start, s.stop) for s in irreps.slices()] for irreps in (self.irreps_in, self.irreps_out)]
        offsets = [0, *accumulate(prod(ins.path_shape) for ins in self.instructions)]
        # of each instruction where it takes and puts, offset and shape of its weights, 2l + 1 and path weight
        self._blocks = [(slices[0][ins.i_in], slices[1][ins.i_out], (offset, *ins.path_shape),
                         self.irreps_in[ins.i_in].ir.dim, ins.path_weight)
                        for ins, offset in zip(self.instructions, offsets, strict=False)
                        if ins.i_in != -1 and 0 not in ins.path_shape]
        biased = [ins.i_out for ins in self.instructions if ins.i_in == -1]
        self.table = ProductTable(self.irreps_in, "0e", self.irreps_out, paths, bias=biased, layout=layout)

    @classmethod
    def from_e3nn(cls, module: o3.Linear, backend: str = "auto", layout: str = "mul_ir"):
        """This layer with the very Parameters and mask of an e3nn module.

        Raises:
            ValueError: f_in with external weights, whose numbers the module does not keep.
        """
        f_in, f_out = module.weight.shape[:2] if module.weight.dim() == 3 else (None, None)
        if f_in is None and not cls.takes_plain(module):
            raise ValueError(f"{cls.__name__}: f_in and f_out of external weights are not known; keep the e3nn module")
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        new._adopt(module, f_in, f_out, layout, backend)
        return new.train(module.training)

    @staticmethod
    def takes_plain(module: o3.Linear) -> bool:
        """Whether an e3nn module without internal weights has no f_in (which it does not keep)."""
        if module.internal_weights or not module.weight_numel + module.bias_numel:
            return True
        sizes = (module.irreps_in.dim, module.weight_numel, module.bias_numel)
        try:
            with torch.no_grad():
                # .forward, for fx prints the errors of a call
                out = module._compiled_main.forward(*map(module.output_mask.new_zeros, sizes))
        except RuntimeError:
            return False
        return out.shape == (module.irreps_out.dim,)

    def __prepare_scriptable__(self):
        no_script(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.irreps_in} -> {self.irreps_out} | {self.weight_numel} weights)"

    def _given(self, what: str, value: Tensor | None, numel: int) -> Tensor:
        """The weight or bias of this call."""
        if value is None:
            if numel and not self.internal_weights:
                raise RuntimeError(f"{type(self).__name__}: {what} must be given where internal_weights is False, got "
                                   f"None; pass a tensor [..., {numel}]")
            return getattr(self, what)
        mixed = () if self.f_in is None else (self.f_out,) if what == "bias" else (self.f_in, self.f_out)
        want = (*mixed, numel)
        fits = value.shape[-len(want):] == want
        if what == "bias":
            fits = value.numel() == prod(want)
        elif self.shared_weights:
            fits = value.shape == want
        if not fits:
            more = "" if self.shared_weights or what == "bias" else "..., "
            raise ValueError(f"{type(self).__name__}: {what} must be [{more}{', '.join(map(str, want))}], got "
                             f"{list(value.shape)}")
        return value.reshape(want) if what == "bias" else value

    def forward(self, features: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """features [..., irreps_in.dim] -> [..., irreps_out.dim]; weight and bias unless internal."""
        weight = self._given("weight", weight, self.weight_numel) if self.weight_numel else features.new_empty(0)
        bias = self._given("bias", bias, self.bias_numel) if self.bias_numel else None
        if self.f_in is not None:
            return self._mixed(features, weight, bias)
        one = features.new_ones(1)
        return apply_product(type(self).__name__, features, one, weight, self.table, bias, backend=self.backend)

    def _mixed(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., f_in, irreps_in.dim] -> [..., f_out, irreps_out.dim]."""
        if x.dim() < 2 or x.shape[-2:] != (self.f_in, self.table.dims[0]):
            raise ValueError(f"{type(self).__name__}: features must be [..., {self.f_in}, {self.table.dims[0]}], got "
                             f"{list(x.shape)}")
        try:
            lead = torch.broadcast_shapes(x.shape[:-2], weight.shape[:-3])
        except RuntimeError:
            raise ValueError(f"{type(self).__name__}: the leading dimensions of features and weight must broadcast, "
                             f"got {list(x.shape)} and {list(weight.shape)}") from None
        out = x.new_zeros(*lead, self.f_out, self.table.dims[2])
        ui, wi = ("ui", "wi") if self.layout == "mul_ir" else ("iu", "iw")
        for (start, stop), (at, end), (offset, *shape), d, alpha in self._blocks:
            inner = (shape[0], d) if self.layout == "mul_ir" else (d, shape[0])
            block = alpha * weight[..., offset:offset + prod(shape)].unflatten(-1, shape)
            part = torch.einsum(f"...xyuw,...x{ui}->...y{wi}", block, x[..., start:stop].unflatten(-1, inner))
            out = out + nn.functional.pad(part.flatten(-2), (at, out.shape[-1] - end))
        start = 0
        for at, n in zip(self.table.bias_slots[::2], self.table.bias_slots[1::2], strict=True):
            out = out + nn.functional.pad(bias[:, start:start + n], (at, out.shape[-1] - at - n))
            start += n
        return out

    def weight_view_for_instruction(self, instruction: int, weight: Tensor | None = None) -> Tensor:
        """The block [..., U, W] of one instruction, a view of the weights."""
        ins = self.instructions[instruction]
        if ins.i_in == -1:
            raise ValueError(f"{type(self).__name__}: instruction {instruction} must have weights, got a bias")
        weight = self._given("weight", weight, self.weight_numel)
        offset = sum(prod(i.path_shape) for i in self.instructions[:instruction])
        return weight.narrow(-1, offset, prod(ins.path_shape)).view(*weight.shape[:-1], *ins.path_shape)

    def weight_views(self, weight: Tensor | None = None, yield_instruction: bool = False):
        """Yields the block of every instruction with weights, or (number, instruction, block)."""
        for n, ins in enumerate(self.instructions):
            if ins.i_in != -1:
                view = self.weight_view_for_instruction(n, weight)
                yield (n, ins, view) if yield_instruction else view
