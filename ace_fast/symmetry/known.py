"""How the inputs and outputs of layers and models transform, where that is known from what they are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from e3nn import o3
from torch import nn

from .layouts import Layout, irreps, layout, vectors

# vnn's layers and ours under its names: [B, C, 3, ...] in and out
_VECTOR_NEURONS = ("VNLinear", "VNLeakyReLU", "VNLinearLeakyReLU", "VNBatchNorm", "VNMaxPool", "VNEdgeConv",
                   "VNLinearAndLeakyReLU")


class Declared(NamedTuple):
    """Layouts of a module's inputs by name and of its outputs in order (None: not known).

    Attributes:
        rows: whether axis 0 runs over samples, each of which may be moved by an element of its own.
    """

    inputs: Mapping[str, Layout]
    outputs: tuple[Layout | None, ...]
    rows: bool = False


def parameters_of(model: Callable[..., Any]) -> list[str]:
    """The names of a callable's positional parameters; none where it does not tell."""
    try:
        found = inspect.signature(model.forward if isinstance(model, nn.Module) else model).parameters.values()
    except (TypeError, ValueError):
        return []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in found if p.kind in kinds]


def declared(module: Any) -> Declared | None:
    """What is known of a module: e3nn's layers and all that have their irreps, vector neurons, ace_fast's models."""
    if not isinstance(module, nn.Module):
        return None
    if type(module).__name__ in _VECTOR_NEURONS:
        return Declared({"x": vectors(2).over(3), "mean": vectors(2)}, (vectors(2).over(3),), True)
    return _model(module) or _graph_layer(module) or _by_irreps(module)


def of_outputs(layouts: tuple[Layout | None, ...], count: int) -> tuple[Layout | None, ...]:
    """The layouts of `count` outputs: EGNN returns its velocity only where it was given one."""
    return layouts[::2] if (len(layouts), count) == (3, 2) else layouts


def _model(module: nn.Module) -> Declared | None:
    from .. import models

    if isinstance(module, models.SEGNN):
        inputs = {"x": module.input_irreps, "edge_attr": module.edge_attr_irreps, "node_attr": module.node_attr_irreps,
                  "additional_message_features": module.additional_irreps}
        return Declared(_irreps_of(inputs), (irreps(module.output_irreps),))
    if isinstance(module, models.SchNet):
        return Declared({"pos": layout("position")}, (layout("scalar"),))
    if isinstance(module, models.VNDGCNN | models.VNPointNet):
        return Declared({"x": vectors(1).over(2)}, (layout("scalar"),), True)
    if isinstance(module, models.VNDGCNNPartSeg):
        return Declared({"x": vectors(1).over(2), "one_hot": layout("scalar")}, (layout("scalar").over(2),), True)
    if isinstance(module, models.EGNO):
        return _egnn({"loc_mean": layout("position")})
    return None


def _egnn(more: Mapping[str, Layout]) -> Declared:
    """EGNN and its kin: x, h, edges, edge features, v; (x, v, h) out, or (x, h), which `of_outputs` tells apart."""
    inputs = {"x": layout("position"), "h": layout("scalar"), "edge_fea": layout("scalar"), "v": layout("vector"),
              "edge_index": layout("index")}
    return Declared(inputs | dict(more), (layout("position"), layout("vector"), layout("scalar")))


def _graph_layer(module: nn.Module) -> Declared | None:
    from .. import nn as layers
    from ..models.segnn import SEGNNLayer

    if isinstance(module, layers.EGNN | layers.EGNN_Layer):
        return _egnn({})
    if type(module).__name__ == "VNStdFeature":
        return Declared({"x": vectors(2).over(3), "mean": vectors(2)}, (layout("scalar").over(3), None), True)
    if isinstance(module, layers.InteractionBlock):
        return Declared({}, (layout("scalar"),))
    if isinstance(module, layers.O3TensorProductSwishGate | layers.O3GauntProductSwishGate):
        out = [(module.gate_table.layout[0], "0e"), *module.irreps_out[1:]]  # its irreps_out hold the gates too
        return Declared(_by_irreps(module).inputs, (irreps(out),))
    if isinstance(module, SEGNNLayer):
        inputs = {"x": module.hidden_irreps, "edge_attr": module.edge_attr_irreps, "node_attr": module.node_attr_irreps,
                  "additional_message_features": module.additional_irreps}
        return Declared(_irreps_of(inputs), (irreps(module.hidden_irreps),))
    return None


def _irreps_of(inputs: Mapping[str, Any]) -> dict[str, Layout]:
    return {name: irreps(own) for name, own in inputs.items()} | {"edge_index": layout("index")}


def _by_irreps(module: nn.Module) -> Declared | None:
    """Layers that carry their irreps as e3nn's do."""
    order = getattr(module, "layout", "mul_ir")
    if order not in ("mul_ir", "ir_mul"):
        return None
    for names, out in ((("irreps_in1", "irreps_in2"), "irreps_out"), (("irreps_in",), "irreps_out"),
                       (("irreps",), "irreps")):
        if all(isinstance(getattr(module, name, None), o3.Irreps) for name in (*names, out)):
            taken = parameters_of(module)
            if len(taken) < len(names):
                return None
            inputs = {given: irreps(getattr(module, name), order) for given, name in zip(taken, names, strict=False)}
            return Declared(inputs, (irreps(getattr(module, out), order),))
    return None
