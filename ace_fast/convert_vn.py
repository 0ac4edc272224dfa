"""Vector-neuron layers in somebody's model: recognised by class name and parameters, replaced by ours, put back."""

import torch
from torch import nn
from torch.nn.utils import parametrize

from .nn import VNBatchNorm, VNLeakyReLU, VNLinear, VNLinearLeakyReLU, VNMaxPool, VNStdFeature

OURS = {cls.__name__: cls for cls in (VNLinear, VNLeakyReLU, VNBatchNorm, VNLinearLeakyReLU, VNMaxPool, VNStdFeature)}
# what vnn's and ACE's layers are known to hold besides their children; `legacy_view` is that of bench/eager_vn.py
_KNOWN = {"args", "dim", "in_channels", "out_channels", "negative_slope", "normalize_frame", "legacy_view"}
_CHILDREN = {
    "VNLinear": ({"map_to_feat"}, set()),
    "VNLeakyReLU": ({"map_to_dir"}, set()),
    "VNBatchNorm": ({"bn"}, set()),
    "VNLinearLeakyReLU": ({"map_to_feat", "batchnorm", "map_to_dir"},
                          {"map_to_feat_nonequiv", "map_to_dir_nonequiv", "gammas"}),
    "VNMaxPool": ({"map_to_dir"}, set()),
    "VNStdFeature": ({"vn1", "vn2", "vn_lin"}, set()),
}
_NEEDED = {"VNLeakyReLU": {"negative_slope"}, "VNLinearLeakyReLU": {"dim", "negative_slope"}, "VNBatchNorm": {"dim"},
           "VNStdFeature": {"dim", "normalize_frame"}}
_PLAIN = frozenset(vars(nn.Module()))
_HOOKS = sorted(name for name in _PLAIN if name.endswith("_hooks"))
_CALL_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")  # of kept children


def of_interest(module: nn.Module) -> bool:
    """Whether it bears the name of a vector-neuron layer, theirs or ours."""
    return _name(module) in OURS


def _name(module: nn.Module) -> str:
    return module.original_name if isinstance(module, torch.jit.ScriptModule) else type(module).__name__


def is_ours(module: nn.Module) -> bool:
    return type(module) in OURS.values()


def way(module: nn.Module) -> str:
    """What to do with a model that is itself such a layer."""
    return "put it into a torch.nn.Sequential"


def describe(module: nn.Module) -> str:
    """Name and channels."""
    name, bn = _name(module), getattr(module, "bn", None)
    if bn is not None:
        return f"{name} {getattr(bn, 'num_features', '?')}"
    first = getattr(module, "vn1", module)
    maps = [getattr(first, f"map_to_{part}", None) for part in ("feat", "dir")]
    linear = next((m for m in maps if m is not None), None)
    return f"{name} {getattr(linear, 'in_features', '?')} -> {getattr(linear, 'out_features', '?')}"


def why_not(module: nn.Module) -> str:
    """Why this layer stays as it is; empty where it can be replaced."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is scripted; convert the model before torch.jit.script"
    if is_ours(module):
        return "it is converted already" if hasattr(module, "_converted_from") else "it is ace_fast's own"
    name = type(module).__name__
    required, optional = _CHILDREN[name]
    if any(getattr(module, hooks) for hooks in _HOOKS):
        return "it has hooks; remove them first"
    held = {key for key, child in module._modules.items() if child is not None}
    attributes = set(vars(module)) - _PLAIN
    missing = sorted(required - held) + sorted(_NEEDED.get(name, set()) - attributes)
    if missing:
        return f"it has no {', '.join(missing)} as vnn's {name}"
    tensors = {key for key, value in {**module._parameters, **module._buffers}.items() if value is not None}
    own = sorted((attributes - _KNOWN) | (held - required - optional) | tensors)
    if own:
        return f"it has attributes of its own ({', '.join(own)}); ours may compute something else"
    return _CHECKS[name](module)


def _linear(module: nn.Module, key: str, bias: bool, shape: tuple[int | None, int | None]) -> str:
    """Why the child is no plain linear map with weight `shape` (None: any); empty where it is."""
    child = module._modules[key]
    if not (type(child) is nn.Linear or isinstance(child, nn.Linear) and parametrize.is_parametrized(child)):
        return f"its {key} is {type(child).__name__}; it must be torch.nn.Linear"
    if any(getattr(child, hooks) for hooks in _CALL_HOOKS):
        return f"its {key} has hooks, which ours would not call; remove them first"
    if (child.bias is not None) != bias:
        return f"its {key} must have {'a' if bias else 'no'} bias"
    if any(want not in (None, got) for want, got in zip(shape, child.weight.shape, strict=True)):
        return f"its {key} must map to and from {shape} features, got {tuple(child.weight.shape)}"
    if child.weight.dtype not in (torch.float32, torch.float64):
        return f"its weights are {child.weight.dtype}; ours must be float32 or float64"
    return ""


def _check_relu(module: nn.Module) -> str:
    width = module.map_to_dir.weight.shape[-1] if isinstance(module.map_to_dir, nn.Linear) else None
    return _linear(module, "map_to_dir", False, (None, width)) or _directions(module, width)


def _directions(module: nn.Module, channels: int) -> str:
    out = module.map_to_dir.weight.shape[0]
    return "" if out in (1, channels) else f"its map_to_dir must have 1 or {channels} directions, got {out}"


def _check_pool(module: nn.Module) -> str:
    width = getattr(module.map_to_dir, "out_features", None)
    return _linear(module, "map_to_dir", False, (width, width))


def _check_norm(module: nn.Module) -> str:
    if module.dim not in (3, 4, 5):
        return f"its dim must be 3, 4 or 5, got {module.dim!r}"
    usual = nn.BatchNorm2d if module.dim == 5 else nn.BatchNorm1d
    if type(module.bn) is not usual:
        return f"its bn is {type(module.bn).__name__}; for dim {module.dim} it must be torch.nn.{usual.__name__}"
    if any(getattr(module.bn, hooks) for hooks in _CALL_HOOKS):
        return "its bn has hooks, which ours would not call; remove them first"
    return ""


def _inner(module: nn.Module, key: str, name: str) -> str:
    """Why a child is no `name` that can be replaced."""
    child = module._modules[key]
    if type(child).__name__ != name:
        return f"its {key} is {type(child).__name__}; it must be {name}"
    why = why_not(child)
    return f"its {key}: {why}" if why else ""


def _check_linear_relu(module: nn.Module) -> str:
    if why := _linear(module, "map_to_feat", False, (None, None)) or _inner(module, "batchnorm", "VNBatchNorm"):
        return why
    out, width = module.map_to_feat.weight.shape
    bn = module.batchnorm.bn
    if bn.num_features != out:
        return f"its batchnorm must have {out} features, got {bn.num_features}"
    if module.dim not in (3, 4, 5) or (module.dim == 5) != (module.batchnorm.dim == 5):
        return f"its dim must be that of its batchnorm, {module.batchnorm.dim}, got {module.dim!r}"
    if why := _linear(module, "map_to_dir", False, (None, width)) or _directions(module, out):
        return why
    directions = module.map_to_dir.weight.shape[0]
    held = set(module._modules)
    branches = held & {"map_to_feat_nonequiv", "map_to_dir_nonequiv", "gammas"}
    if not branches:
        return ""
    if not {"map_to_feat_nonequiv", "gammas"} <= branches:
        return f"it has {', '.join(sorted(branches))} alone; ACE's has map_to_feat_nonequiv and gammas"
    for key, rows in (("map_to_feat_nonequiv", 3 * out), ("map_to_dir_nonequiv", 3 * directions)):
        if key in held and (why := _linear(module, key, True, (rows, 3 * width))):
            return why
    gammas = module.gammas
    if not isinstance(gammas, nn.ParameterList) or len(gammas) != 2 or any(g.dim() for g in gammas):
        return "its gammas must be a torch.nn.ParameterList of two scalars"
    return ""


def _check_std(module: nn.Module) -> str:
    why = (_inner(module, "vn1", "VNLinearLeakyReLU") or _inner(module, "vn2", "VNLinearLeakyReLU")
           or _linear(module, "vn_lin", False, (2 if module.normalize_frame else 3, None)))
    if why:
        return why
    widths = [m.weight.shape for m in (module.vn1.map_to_feat, module.vn2.map_to_feat, module.vn_lin)]
    if widths[1][1] != widths[0][0] or widths[2][1] != widths[1][0]:
        return f"its maps must follow each other, got {[tuple(w) for w in widths]}"
    return ""


_CHECKS = {
    "VNLinear": lambda module: _linear(module, "map_to_feat", False, (None, None)),
    "VNLeakyReLU": _check_relu,
    "VNBatchNorm": _check_norm,
    "VNLinearLeakyReLU": _check_linear_relu,
    "VNMaxPool": _check_pool,
    "VNStdFeature": _check_std,
}


def replacement(module: nn.Module, backend: str) -> nn.Module:
    """Ours in place of `module`: the very children with their parameters and buffers, on no device of its own."""
    name = type(module).__name__
    with torch.device("meta"):  # no memory, no random numbers
        new = _build(name, module, backend)
    new.training = module.training
    for key, child in module._modules.items():
        if child is not None:
            setattr(new, key, replacement(child, backend) if of_interest(child) else child)
    return new


def _build(name: str, module: nn.Module, backend: str) -> nn.Module:
    if name == "VNLinear":
        return VNLinear(module.map_to_feat.in_features, module.map_to_feat.out_features, backend=backend)
    if name == "VNLeakyReLU":
        channels, shared = module.map_to_dir.in_features, module.map_to_dir.out_features == 1
        return VNLeakyReLU(channels, shared, module.negative_slope, backend=backend)
    if name == "VNBatchNorm":
        return VNBatchNorm(module.bn.num_features, module.dim, backend=backend)
    if name == "VNMaxPool":
        return VNMaxPool(module.map_to_dir.in_features, backend=backend)
    if name == "VNStdFeature":
        return VNStdFeature(module.vn1.map_to_feat.in_features, module.dim, module.normalize_frame, backend=backend)
    relaxed = "gammas" in module._modules
    linear = module.map_to_feat
    new = VNLinearLeakyReLU(linear.in_features, linear.out_features, module.dim,
                            module.map_to_dir.out_features == 1, module.negative_slope, relaxed=relaxed,
                            legacy_view=relaxed and getattr(module, "legacy_view", True), backend=backend)
    if relaxed and "map_to_dir_nonequiv" not in module._modules:  # ACE without full_nonequi
        del new.map_to_dir_nonequiv
    return new


def changed_since(new: nn.Module) -> str:
    """What of a replacement its original would not have; else empty."""
    with torch.device("meta"):
        usual = _build(type(new).__name__, new, "reference")
    if any(getattr(new, hooks) for hooks in _HOOKS):
        return "it has hooks; remove them first"
    names = {key for where in (vars(new), new._parameters, new._buffers, new._modules) for key in where}
    known = {key for where in (vars(usual), usual._modules) for key in where} | {"_converted_from"}
    own = sorted(names - known)
    if own:
        return f"it has attributes of its own ({', '.join(own)}) that would be lost; delete them first"
    inner = ((key, changed_since(child)) for key, child in new._modules.items() if child is not None and is_ours(child))
    return next((f"its {key}: {why}" for key, why in inner if why), "")


def put_back(new: nn.Module, old: nn.Module) -> None:
    """Gives `old` the present children of its replacement, and the training flags."""
    old.training = new.training
    for key, child in new._modules.items():
        if child is not None and is_ours(child):
            put_back(child, old._modules[key])
        elif child is not None:
            old._modules[key] = child
