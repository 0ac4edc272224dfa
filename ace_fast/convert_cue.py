"""cuequivariance_torch's layers in somebody's model: recognised by module and class name, replaced by ours, put back.

Their weights are ours, in the same order and under the same Parameter; coefficients, which depend on the group and its
basis, are taken from their own description of the layer.
"""

import sys

import torch
from e3nn import o3
from torch import Tensor, nn

from . import convert_e3nn, functional
from .graph import Graph, check_range
from .kernels.tensor_product import ProductTable
from .nn.tensor_product import apply_product

_NAMES = ("FullyConnectedTensorProduct", "ChannelWiseTensorProduct", "Linear")
_PLAIN = frozenset(vars(nn.Module()))
_KNOWN = {"irreps_in", "irreps_in1", "irreps_in2", "irreps_out", "weight_numel", "shared_weights", "internal_weights",
          "weight_classes", "weight", "method", "f", "transpose_in", "transpose_in1", "transpose_in2", "transpose_out",
          "_converted_from"}
_SIDES = {"Linear": ("in", "out")}  # the others have two inputs


class _Layer(nn.Module):
    """What the three replacements share: their attributes, weight and state."""

    def __init__(self, like: nn.Module, table: ProductTable, layouts: list[str], backend: str):
        super().__init__()
        for key in (_KNOWN & set(vars(like))) - {"weight"}:
            setattr(self, key, getattr(like, key))
        self.register_parameter("weight", like.weight)
        # follows the model to its device, for `put_back`
        device = next((t.device for t in like.state_dict().values()), None)
        self.register_buffer("_where", torch.empty(0, device=device), persistent=False)
        self.table, self.layouts, self.backend = table, layouts, backend
        self.train(like.training)

    def extra_repr(self) -> str:
        return (f"shared_weights={self.shared_weights}, internal_weights={self.internal_weights}, "
                f"weight_numel={self.weight_numel}")

    def _chosen(self, weight: Tensor | None) -> Tensor:
        name = type(self).__name__
        if self.weight is not None:
            if weight is not None:
                raise ValueError(f"{name}: weight must be None with internal weights, got a tensor")
            return self.weight
        if weight is None:
            rows = 1 if self.shared_weights else "Z"
            raise ValueError(f"{name}: weight must be [{rows}, {self.weight_numel}] without internal weights, got None")
        return weight

    def _moved(self, x: Tensor, side: int, back: bool = False) -> Tensor:
        """An operand from its own layout to the table's, or back."""
        ours = "ir_mul" if self.table.dims[3] else "mul_ir"
        if self.layouts[side] == ours:
            return x
        to_ir_mul = (ours == "ir_mul") != back
        shapes = [(mul, ir.dim) if to_ir_mul else (ir.dim, mul) for mul, ir in self.table.irreps[side]]
        parts = x.split([a * b for a, b in shapes], -1)
        return torch.cat([p.unflatten(-1, s).mT.flatten(-2) for p, s in zip(parts, shapes, strict=True)], -1)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        (old,) = self._converted_from  # its coefficient buffers
        destination.update({prefix + key: value for key, value in old.state_dict().items() if key != "weight"})

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for key in [key for key in state_dict if key.startswith(prefix) and key != f"{prefix}weight"]:
            del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args)


class FullyConnectedTensorProduct(_Layer):
    """cuequivariance_torch's layer of this name."""

    def forward(self, x1: Tensor, x2: Tensor, weight: Tensor | None = None) -> Tensor:
        """x1 [Z, dim1], x2 [Z, dim2], weight [1, n] or [Z, n] unless internal -> [Z, dim_out]."""
        out = apply_product(type(self).__name__, self._moved(x1, 0), self._moved(x2, 1), self._chosen(weight),
                            self.table, backend=self.backend)
        return self._moved(out, 2, back=True)


class ChannelWiseTensorProduct(_Layer):
    """cuequivariance_torch's layer of this name, with its gather and sum."""

    def forward(self, x1: Tensor, x2: Tensor, weight: Tensor | None = None, indices_1: Tensor | None = None,
                indices_2: Tensor | None = None, indices_out: Tensor | None = None,
                size_out: int | None = None) -> Tensor:
        """x1 [Z, dim1], x2 [Z, dim2], weight [1, n] or [Z, n] unless internal -> [Z, dim_out].

        indices_1 and indices_2 [Z] take rows of x1 and x2, indices_out [Z] sums rows into [size_out, dim_out].
        """
        name = type(self).__name__
        if indices_out is not None and size_out is None:
            raise ValueError(f"{name}: size_out must be given with indices_out, got None")
        weight = self._chosen(weight)
        x1, x2 = self._moved(x1, 0), self._moved(x2, 1)
        x2 = x2 if indices_2 is None else x2[indices_2]
        if indices_1 is not None and indices_out is not None:
            edges = indices_out.shape[0]
            weight = weight.reshape(-1) if weight.shape[:-1] == (1,) else weight
            graph = Graph(torch.stack([indices_1, indices_out]).long(), (x1.shape[0], size_out))
            x2 = x2.expand(edges, -1)
            out = functional.tensor_product_conv(x1, x2, weight, graph, self.table, backend=self.backend)
            return self._moved(out, 2, back=True)
        x1 = x1 if indices_1 is None else x1[indices_1]
        out = apply_product(name, x1, x2, weight, self.table, backend=self.backend)
        if indices_out is not None:
            check_range(name, "indices_out", indices_out, size_out, "check size_out")
            out = out.new_zeros(size_out, out.shape[1]).index_add(0, indices_out, out.expand(len(indices_out), -1))
        return self._moved(out, 2, back=True)


class Linear(_Layer):
    """cuequivariance_torch's layer of this name, with its classes of weights."""

    def forward(self, x: Tensor, weight: Tensor | None = None, weight_indices: Tensor | None = None) -> Tensor:
        """x [Z, dim], weight [classes, n] or [Z, n] unless internal, weight_indices [Z] -> [Z, dim_out]."""
        weight = self._chosen(weight)
        if self.weight_classes > 1:
            if weight_indices is None:
                raise ValueError(f"Linear: weight_indices must be [Z] with {self.weight_classes} weight classes, got "
                                 "None")
            weight = weight[weight_indices]
        x = self._moved(x, 0)
        out = apply_product("Linear", x, x.new_ones(1), weight, self.table, backend=self.backend)
        return self._moved(out, 2, back=True)


_OURS = {cls.__name__: cls for cls in (FullyConnectedTensorProduct, ChannelWiseTensorProduct, Linear)}


def of_interest(module: nn.Module) -> bool:
    """Whether it is a layer of cuequivariance_torch, or ours in its place."""
    cls = type(module)
    return is_ours(module) or cls.__name__ in _NAMES and cls.__module__.split(".")[0] == "cuequivariance_torch"


def is_ours(module: nn.Module) -> bool:
    return isinstance(module, _Layer)


def way(module: nn.Module) -> str:
    """What to do with a model that is itself such a layer."""
    return "put it into a torch.nn.Sequential"


def describe(module: nn.Module) -> str:
    """Name and irreps."""
    inputs = module.irreps_in if type(module).__name__ == "Linear" else f"{module.irreps_in1} x {module.irreps_in2}"
    return f"cuequivariance {type(module).__name__} {inputs} -> {module.irreps_out}"


def _layouts(module: nn.Module) -> list[str]:
    """Layout of in1, in2 (of a Linear the constant) and out."""
    sides = _SIDES.get(type(module).__name__, ("in1", "in2", "out"))
    found = []
    for side in sides:
        transpose = getattr(module, f"transpose_{side}")
        layout = transpose.target if side == "out" else transpose.source
        found.append(getattr(layout, "name", str(layout)))
    return [found[0], found[-1], found[-1]] if len(found) == 2 else found


def why_not(module: nn.Module) -> str:
    """Why this layer stays as it is; empty where it can be replaced."""
    if is_ours(module):
        return "it is converted already"
    if lost := convert_e3nn.would_be_lost(module, _PLAIN | _KNOWN):
        return lost
    weight = module.weight
    if weight is not None and weight.dtype not in (torch.float32, torch.float64):
        return f"its weights are {weight.dtype}; ours must be float32 or float64"
    precise = str(getattr(module.f, "_math_dtype_orig", None)).removeprefix("torch.")
    if weight is not None and precise not in ("None", str(weight.dtype).removeprefix("torch.")):
        return f"it computes in {precise}, its weights are {weight.dtype}; ours computes in one dtype"
    if not set(_layouts(module)) <= {"mul_ir", "ir_mul"}:
        return f"its layouts are {_layouts(module)}; ours are mul_ir and ir_mul"
    try:
        _table(module, "mul_ir")
    except (AttributeError, ValueError) as why:
        return f"its description is not understood: {why}"
    return ""


def _described(module: nn.Module):
    """Their segmented tensor product of this layer, made from its irreps as they make it."""
    descriptors = sys.modules["cuequivariance"].descriptors
    if type(module).__name__ == "Linear":
        whole = descriptors.linear(module.irreps_in, module.irreps_out)
    elif type(module).__name__ == "ChannelWiseTensorProduct":
        kept = [ir for _, ir in module.irreps_out]
        whole = descriptors.channelwise_tensor_product(module.irreps_in1, module.irreps_in2, kept)
    else:
        whole = descriptors.fully_connected_tensor_product(module.irreps_in1, module.irreps_in2, module.irreps_out)
    ((_, product),) = whole.polynomial.operations
    if whole.outputs[0].irreps != module.irreps_out or product.operands[0].size != module.weight_numel:
        raise ValueError("other irreps or numbers of weights follow from its own")
    return product


def _irreps(irreps) -> o3.Irreps:
    """Theirs with e3nn's names for the same numbers of components; the coefficients say what they are."""
    found = [(mul, ir.dim) for mul, ir in irreps]
    if any(d % 2 == 0 for _, d in found):
        raise ValueError(f"irreps of even dimension in {irreps}")
    return o3.Irreps([(mul, ((d - 1) // 2, 1)) for mul, d in found])


def _table(module: nn.Module, layout: str) -> ProductTable:
    """The layer's paths, with their own coefficients, in the order of their weights."""
    product, linear = _described(module), type(module).__name__ == "Linear"
    in1, out = _irreps(module.irreps_in if linear else module.irreps_in1), _irreps(module.irreps_out)
    in2 = o3.Irreps("0e") if linear else _irreps(module.irreps_in2)
    paths = sorted(product.paths, key=lambda path: path.indices[0])
    if [path.indices[0] for path in paths] != list(range(product.operands[0].num_segments)):
        raise ValueError("paths that share weights")
    instructions = []
    for path in paths:
        i, k, j = path.indices[1], path.indices[-1], 0 if linear else path.indices[2]
        coefficients = torch.as_tensor(path.coefficients, dtype=torch.float64, device="cpu")
        if linear:
            coefficients = coefficients * torch.eye(in1[i].ir.dim, dtype=torch.float64, device="cpu")[:, None]
        # one channel in2: the sum over v of "uvu" has one term, and that mode has the faster kernels
        channelwise = "uvu" if in2[j].mul == 1 else "uvuv"
        mode = channelwise if type(module).__name__ == "ChannelWiseTensorProduct" else "uvw"
        instructions.append((i, j, k, mode, True, coefficients))
    return ProductTable(in1, in2, out, instructions, layout=layout)


def replacement(module: nn.Module, backend: str) -> nn.Module:
    """Ours in place of `module`, with its very Parameter."""
    layouts = _layouts(module)
    table = _table(module, layouts[0] if len(set(layouts)) == 1 else "ir_mul")
    return _OURS[type(module).__name__](module, table, layouts, backend)


def changed_since(new: nn.Module) -> str:
    """What of a replacement its original would not have; else empty."""
    return convert_e3nn.would_be_lost(new, _PLAIN | _KNOWN | {"table", "layouts", "backend", "_where"})


def put_back(new: nn.Module, old: nn.Module) -> None:
    """Gives `old` the present parameter of its replacement, and the training flag."""
    old.to(new._where.device)
    old.weight = new.weight
    old.train(new.training)
