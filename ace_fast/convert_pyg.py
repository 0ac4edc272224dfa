"""PyTorch Geometric's SchNet and its blocks in somebody's model, recognised by their class's path, replaced by ours.

torch_geometric is not imported: whoever has such a module has it.
"""

import functools

import torch
from torch import nn

from .convert_e3nn import HOOKS, would_be_lost
from .models import SchNet
from .models.schnet import READOUTS, pyg_readout
from .nn import CFConv, InteractionBlock

_PATH = "torch_geometric.nn.models.schnet"
_OURS = {cls.__name__: cls for cls in (SchNet, InteractionBlock, CFConv)}
_PLAIN = {  # arguments of a small one, to see what every module of this class holds
    "SchNet": lambda: (3, 2, 1, 2),
    "InteractionBlock": lambda: (2, 2, 2, 1.0),
    "CFConv": lambda: (2, 2, 2, nn.Sequential(), 1.0),
}
_BUFFERS = ("initial_atomref", "atomic_mass")


def _is(module: nn.Module, name: str) -> bool:
    """Whether it is torch_geometric's class `name` and no subclass."""
    return (type(module).__module__, type(module).__name__) == (_PATH, name)


def _name(module: nn.Module) -> str | None:
    """The class in _OURS that it is, or that it derives from as torch_geometric's."""
    if is_ours(module):
        return type(module).__name__
    found = (cls.__name__ for cls in type(module).__mro__ if cls.__module__ == _PATH and cls.__name__ in _OURS)
    return next(found, None)


def of_interest(module: nn.Module) -> bool:
    """Whether it is a SchNet, InteractionBlock or CFConv, torch_geometric's or ours."""
    return _name(module) is not None


def is_ours(module: nn.Module) -> bool:
    return type(module) in _OURS.values()


def way(module: nn.Module) -> str:
    """What to do with a model that is itself such a module."""
    return f"use ace_fast.{'models' if _name(module) == 'SchNet' else 'nn'}.{_name(module)}.from_pyg"


def describe(module: nn.Module) -> str:
    """Name and sizes."""
    name = _name(module)
    if name == "SchNet":
        return f"{name} {module.lin1.in_features} channels, {len(module.interactions)} interactions"
    conv = getattr(module, "conv", module)
    sizes = [getattr(getattr(conv, key, None), "weight", None) for key in ("lin1", "lin2")]
    return f"{name} {' -> '.join('?' if w is None else str(w.shape[i]) for w, i in zip(sizes, (1, 0), strict=True))}"


def _names(module: nn.Module) -> frozenset[str]:
    return frozenset([*vars(module), *module._parameters, *module._buffers, *module._modules])


@functools.cache
def _usual(cls: type, converted: bool) -> frozenset[str]:
    """Names that every module of torch_geometric's class `cls`, or its replacement, holds."""
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        plain = cls(*_PLAIN[cls.__name__]())
        plain = _OURS[cls.__name__].from_pyg(plain) if converted else plain
    return _names(plain) | {*_BUFFERS, "_converted_from"}


def why_not(module: nn.Module) -> str:
    """Why this module stays as it is; empty where it can be replaced."""
    if is_ours(module):
        return "it is converted already" if hasattr(module, "_converted_from") else "it is ace_fast's own"
    if not _is(module, _name(module)):
        return "it is a subclass, which may compute something else"
    return would_be_lost(module, _usual(type(module), False)) or _CHECKS[type(module).__name__](module)


def _inner(module: nn.Module, key: str, name: str) -> str:
    """Why a child is no `name` that can be replaced."""
    child = module.get_submodule(key)
    if not _is(child, name):
        return f"its {key} is {type(child).__name__}; it must be torch_geometric's {name}"
    why = why_not(child)
    return f"its {key}: {why}" if why else ""


def _check_conv(conv: nn.Module) -> str:
    if any(value for name, value in vars(conv).items() if name.endswith("_hooks")):
        return "it has hooks; remove them first"
    how = conv.aggr, conv.flow, conv.node_dim
    if how not in (("add", "source_to_target", -2), ("sum", "source_to_target", -2)):
        return f"it must add along source_to_target, got aggr, flow and node_dim {how}"
    if getattr(conv, "_explain", None):
        return "it explains its edges, which ours does not; set explain to False first"
    return ""


def _check_block(block: nn.Module) -> str:
    return _inner(block, "conv", "CFConv")


def _uncalled(module: nn.Module, what: str) -> str:
    """Why a module whose numbers ours takes without calling it is not as plain as that."""
    inside = module.modules()
    return f"its {what} has hooks, which ours would not call" if any(
        getattr(part, name) for part in inside for name in HOOKS) else ""


def _check_filter(network: nn.Module, what: str) -> str:
    kinds = [type(part).__name__ for part in network.children()]
    linear = len(kinds) == 3 and all(isinstance(network[i], nn.Linear) for i in (0, 2))
    if not isinstance(network, nn.Sequential) or not linear or kinds[1] not in ("ShiftedSoftplus", "SiLU"):
        return f"its {what} must be Linear, ShiftedSoftplus or SiLU, Linear, got {', '.join(kinds)}"
    if any(network[i].bias is None for i in (0, 2)):
        return f"its {what} must have biases"
    return _uncalled(network, what)


def _check_schnet(schnet: nn.Module) -> str:
    for i, block in enumerate(schnet.interactions):
        key = f"interactions.{i}"
        if why := _inner(schnet, key, "InteractionBlock") or _check_filter(block.conv.nn, f"{key}.conv.nn"):
            return why
    smearing, graph = schnet.distance_expansion, schnet.interaction_graph
    if not _is(smearing, "GaussianSmearing"):
        return f"its distance_expansion is {type(smearing).__name__}; it must be torch_geometric's GaussianSmearing"
    if why := _uncalled(smearing, "distance_expansion"):
        return why
    if _is(graph, "RadiusInteractionGraph") and (why := _uncalled(graph, "interaction_graph")):
        return why
    if schnet.embedding.weight.dtype not in (torch.float32, torch.float64):
        return f"its weights are {schnet.embedding.weight.dtype}; ours must be float32 or float64"
    if (readout := pyg_readout(schnet)) not in READOUTS:
        return f"its readout is {readout}; it must be add or mean"
    if schnet.dipole and "atomic_mass" not in schnet._buffers:
        return "it has no atomic_mass, which dipole needs"
    return ""


_CHECKS = {"SchNet": _check_schnet, "InteractionBlock": _check_block, "CFConv": _check_conv}


def replacement(module: nn.Module, backend: str) -> nn.Module:
    """Ours in place of `module`, on its very children."""
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        return _OURS[type(module).__name__].from_pyg(module, backend=backend)


def changed_since(new: nn.Module) -> str:
    """What of a replacement its original would not have; else empty."""
    (old,) = new._converted_from
    return _changed(new, old)


def _changed(new: nn.Module, old: nn.Module) -> str:
    if lost := would_be_lost(new, _usual(type(old), True)):
        return lost
    if isinstance(new, SchNet):
        if new.readout != pyg_readout(old):
            return f"its readout became {new.readout}; set it back to {pyg_readout(old)}"
        pairs = zip(new.interactions, old.interactions, strict=True)
        inner = ((f"interactions.{i}", *pair) for i, pair in enumerate(pairs))
    else:
        inner = [("conv", new.conv, old.conv)] if isinstance(new, InteractionBlock) else []
    found = ((key, _changed(mine, theirs)) for key, mine, theirs in inner)
    return next((f"its {key}: {why}" for key, why in found if why), "")


def put_back(new: nn.Module, old: nn.Module) -> None:
    """Gives `old` the present children, buffers and numbers of its replacement, and the training flags."""
    _hand_over(new, old)
    shared = set(new.modules())
    for part in old.modules():
        if part not in shared:
            part.training = new.training


def _hand_over(new: nn.Module, old: nn.Module) -> None:
    if isinstance(new, SchNet):
        for key in ("embedding", "lin1", "act", "lin2", "atomref", "dipole", "mean", "std", "scale"):
            setattr(old, key, getattr(new, key))
        for key in _BUFFERS:
            if new._buffers.get(key) is not None:
                old.register_buffer(key, new._buffers[key])
        old.distance_expansion.offset = new.distance_expansion.offset
        for pair in zip(new.interactions, old.interactions, strict=True):
            _hand_over(*pair)
    elif isinstance(new, InteractionBlock):
        for key in ("mlp", "act", "lin"):
            setattr(old, key, getattr(new, key))
        _hand_over(new.conv, old.conv)
    else:
        for key in ("lin1", "lin2", "nn"):
            setattr(old, key, getattr(new, key))
