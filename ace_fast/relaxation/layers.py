"""Which layers can take a branch, and how: by type for e3nn's and ours, by name and children for vnn's and EGNN's."""

from __future__ import annotations

import inspect
from typing import NamedTuple

import torch
from e3nn import o3
from torch import nn

from .. import nn as ours
from ..nn.added import AddedBranch, AddedBranches, SteerableBranch, VectorBranch

_PRODUCTS = (o3.TensorProduct, ours.TensorProduct)
# ace_fast's vector neurons, with their maps
_FUSED = {"VNLinear": ("feat",), "VNLeakyReLU": ("dir",), "VNLinearLeakyReLU": ("feat", "dir"),
          "VNEdgeConv": ("feat", "dir")}
_MAPS = ("map_to_feat", "map_to_dir")
_THEIRS = ("VNLinear", "VNLeakyReLU", "VNLinearLeakyReLU")
# EGNN layers: name and place of the arguments h and x, and of their outputs; the children that they must have
_EGNN = {
    "EGNN_Layer": ({"h": (1, "h"), "x": (0, "x")}, {"h": 2, "x": 0}, ("edge_message_net", "coord_net", "node_net")),
    "E_GCL": ({"h": (0, "h"), "x": (2, "coord")}, {"h": 0, "x": 1}, ("edge_mlp", "coord_mlp", "node_mlp")),
}


class _Rows(NamedTuple):
    """A branch on the rows of one argument."""

    inputs: int
    outputs: int
    irreps: tuple[o3.Irreps, o3.Irreps] | None
    source: tuple[int, str]
    vectors: bool = False

    def make(self, hidden: tuple[int, ...], bias: bool, gamma: float, backend: str) -> AddedBranch:
        arguments = ((self.inputs, *hidden, self.outputs), bias, gamma, self.source, backend)
        if self.irreps is None:
            return AddedBranch(*arguments)
        return (VectorBranch if self.vectors else SteerableBranch)(*arguments, irreps=self.irreps)


class Kind(NamedTuple):
    """How a layer takes a branch."""

    rows: dict[str, _Rows] = {}  # "" alone: of its output; names: of a tuple's
    outputs: dict[str, int] = {}
    fused: tuple[tuple[str, int, int], ...] = ()  # part, input and output channels of ace_fast's vector neurons

    def branch(self, hidden: tuple[int, ...], bias: bool, gamma: float, backend: str) -> nn.Module:
        made = {name: rows.make(hidden, bias, gamma, backend) for name, rows in self.rows.items()}
        return made[""] if "" in made else AddedBranches(made, self.outputs)


def kind_of(module: nn.Module, parent: nn.Module | None = None) -> Kind | str:
    """How a module takes a branch, or why it cannot.

    Args:
        parent: the module that it is a child of: maps of vnn's layers read vectors.
    """
    name = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        return "it is scripted; relax the model before torch.jit.script"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        return "its shapes are not known yet; call the model once first"
    if name in _FUSED and is_ours(module):
        if module.gammas:
            return "it was built with relaxed=True"
        sizes = {part: getattr(module, f"map_to_{part}") for part in _FUSED[name]}
        return Kind(fused=tuple((part, m.in_features, m.out_features) for part, m in sizes.items()))
    if isinstance(module, (ours.O3TensorProduct, o3.Linear, ours.Linear, *_PRODUCTS)):
        return _steerable(module)
    if name in _EGNN and all(hasattr(module, child) for child in _EGNN[name][2]):
        return _egnn(module, *_EGNN[name][:2])
    if isinstance(module, nn.Linear):
        rows = _Rows(module.in_features, module.out_features, None, (0, "input"))
        if type(parent).__name__ in _THEIRS and any(getattr(parent, key, None) is module for key in _MAPS):
            irreps = o3.Irreps(f"{module.in_features}x1o"), o3.Irreps(f"{module.out_features}x1o")
            rows = _Rows(3 * module.in_features, 3 * module.out_features, irreps, (0, "input"), vectors=True)
        return Kind({"": rows})
    if name in _THEIRS and any(isinstance(getattr(module, key, None), nn.Linear) for key in _MAPS):
        return f"its branches belong to its maps; choose its children {' and '.join(_MAPS)}"
    return "nothing is known of its input and output"


def _steerable(module: nn.Module) -> Kind:
    """A product or linear map between irreps."""
    single = isinstance(module, (o3.Linear, ours.Linear))
    into = o3.Irreps(module.irreps_in if single else module.irreps_in1)
    out = o3.Irreps(module.irreps_out)
    if isinstance(module, ours.O3TensorProductSwishGate):
        # the gates are scalars of the product that do not come out
        out = o3.Irreps([(module.gate_table.layout[0], "0e"), *out[1:]])
    argument = list(inspect.signature(type(module).forward).parameters)[1]
    irreps = (into, out) if getattr(module, "layout", "mul_ir") == "mul_ir" else None
    return Kind({"": _Rows(into.dim, out.dim, irreps, (0, argument))})


def _egnn(module: nn.Module, sources: dict[str, tuple[int, str]], outputs: dict[str, int]) -> Kind | str:
    """An EGNN layer: invariant features and positions."""
    last = lambda net: [m for m in net.modules() if isinstance(m, nn.Linear)]  # noqa: E731
    node = last(module.node_net if hasattr(module, "node_net") else module.node_mlp)
    width = node[-1].out_features
    if hasattr(module, "edge_mlp"):
        inputs = node[0].in_features - last(module.edge_mlp)[-1].out_features
        if inputs != width:
            return f"its features change their width from {inputs} to {width}"
    scalars, vector = o3.Irreps(f"{width}x0e"), o3.Irreps("1x1o")
    return Kind({"h": _Rows(width, width, (scalars, scalars), sources["h"]),
                 "x": _Rows(3, 3, (vector, vector), sources["x"])}, outputs)


def walk(model: nn.Module) -> tuple[list[tuple[str, nn.Module, Kind]], list[str]]:
    """The layers that take a branch without being named, each once; modules that have branches of their own."""
    able: list[tuple[str, nn.Module, Kind]] = []
    own: list[str] = []
    seen: set[nn.Module] = set()

    def visit(module: nn.Module, name: str, parent: nn.Module | None) -> None:
        if module in seen:
            return
        seen.add(module)
        kind = kind_of(module, parent)
        if hasattr(type(module), "set_equivariance") or type(module).__name__ == "SEGNNLayer":
            own.append(f"{type(module).__name__} {name!r}")
        elif isinstance(kind, Kind) and _by_itself(module, kind):
            able.append((name, module, kind))
        elif not _closed(module):
            for key, child in module.named_children():
                visit(child, f"{name}.{key}" if name else key, module)

    visit(model, "", None)
    return able, own


def _by_itself(module: nn.Module, kind: Kind) -> bool:
    """Whether a layer gets a branch without being chosen: not a plain map, nor a product without weights."""
    if isinstance(module, nn.Linear):
        return kind.rows[""].vectors
    return not isinstance(module, _PRODUCTS) or module.weight_numel > 0


def _closed(module: nn.Module) -> bool:
    """Modules whose children are no layers of the model's: those of e3nn's layers, and what ace_fast's fuse."""
    where = type(module).__module__
    return (where.startswith("e3nn.") and not where.startswith("e3nn.nn.models.")
            or fuses(module))


def is_ours(module: nn.Module) -> bool:
    return type(module).__module__.startswith(("ace_fast.nn.", "ace_fast.models."))


def fuses(module: nn.Module) -> bool:
    """Whether it may read its children's weights without calling them: all of ace_fast's but two containers."""
    return is_ours(module) and not isinstance(module, (ours.VNStdFeature, ours.EGNN))
