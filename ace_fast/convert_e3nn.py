"""e3nn's products, Linear, Gate, NormActivation and S2Activation in somebody's model, replaced by ours, put back."""

import functools
from typing import NamedTuple

import e3nn.nn
import torch
from e3nn import o3
from torch import nn
from torch.nn.utils import parametrize

from .nn import (
    ElementwiseTensorProduct,
    FullTensorProduct,
    FullyConnectedTensorProduct,
    Gate,
    Linear,
    NormActivation,
    S2Activation,
    TensorProduct,
    TensorSquare,
)


class _Kind(NamedTuple):
    theirs: type
    ours: type
    shared: tuple[str, ...]  # what both hold and `put_back` hands over
    plain: tuple  # arguments of a small one, to see what every module of this class holds


_STATE = ("weight", "output_mask")
_KINDS = [
    _Kind(o3.FullyConnectedTensorProduct, FullyConnectedTensorProduct, _STATE, ("0e", "0e", "0e")),
    _Kind(o3.FullTensorProduct, FullTensorProduct, _STATE, ("0e", "0e")),
    _Kind(o3.ElementwiseTensorProduct, ElementwiseTensorProduct, _STATE, ("0e", "0e")),
    _Kind(o3.TensorSquare, TensorSquare, _STATE, ("0e",)),
    _Kind(o3.TensorProduct, TensorProduct, _STATE, ("0e", "0e", "0e", [])),
    _Kind(o3.Linear, Linear, ("weight", "bias", "output_mask"), ("0e", "0e")),
    _Kind(e3nn.nn.Gate, Gate, ("act_scalars", "act_gates"), ("0e", [None], "0e", [None], "0e")),
    _Kind(e3nn.nn.NormActivation, NormActivation, ("biases", "scalar_nonlinearity", "norm", "scalar_multiplier"),
          (o3.Irreps("0e"), torch.tanh)),
    _Kind(e3nn.nn.S2Activation, S2Activation, ("act", "to_s2", "from_s2"), ("0e", torch.tanh, 2)),
]
_WEIGHTLESS = ("Gate", "NormActivation", "S2Activation")
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks",
         "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")


def _kind(module: nn.Module) -> _Kind | None:
    return next((kind for kind in _KINDS if isinstance(module, (kind.theirs, kind.ours))), None)


def of_interest(module: nn.Module) -> bool:
    """Whether it is a product, Linear, Gate, NormActivation or S2Activation, e3nn's or ours."""
    if isinstance(module, torch.jit.ScriptModule):
        # a scripted torch.nn.Linear bears the same name
        return (module.original_name in {kind.theirs.__name__ for kind in _KINDS}
                and (module.original_name in _WEIGHTLESS or hasattr(module, "weight_numel")))
    return _kind(module) is not None


def is_ours(module: nn.Module) -> bool:
    return isinstance(module, tuple(kind.ours for kind in _KINDS))


def way(module: nn.Module) -> str:
    """What to do with a model that is itself such a module."""
    return f"use ace_fast.nn.{_kind(module).ours.__name__}.from_e3nn"


def describe(module: nn.Module) -> str:
    """Name and irreps."""
    if isinstance(module, torch.jit.ScriptModule):
        return module.original_name
    both = hasattr(module, "irreps_in1") and not hasattr(module, "irreps_in")
    inputs = f"{module.irreps_in1} x {module.irreps_in2}" if both else module.irreps_in
    return f"{type(module).__name__} {inputs} -> {module.irreps_out}"


@functools.cache
def _usual(cls: type) -> frozenset[str]:
    """Names that every module of type `cls` holds: a plain one, asked once."""
    kind = next(kind for kind in _KINDS if cls in (kind.theirs, kind.ours))
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        plain = kind.theirs(*kind.plain)
    names = _names(plain if cls is kind.theirs else kind.ours.from_e3nn(plain))
    return names | {*kind.shared, "_converted_from"}


def _names(module: nn.Module) -> frozenset[str]:
    return frozenset([*vars(module), *module._parameters, *module._buffers, *module._modules])


def would_be_lost(module: nn.Module, usual: frozenset[str]) -> str:
    """What of `module` a replacement that has the names `usual` would not have; else empty."""
    if any(getattr(module, name, None) for name in HOOKS):
        return "it has hooks; remove them first"
    if parametrize.is_parametrized(module):
        return "it has parametrizations; remove them first"
    own = sorted(name for name in _names(module) - usual if not name.startswith("_compiled_main"))
    return f"it has attributes of its own ({', '.join(own)}) that would be lost; delete them first" if own else ""


def _product(module: nn.Module) -> nn.Module:
    """Where a Gate or NormActivation, e3nn's or ours, has its output_mask; any other module itself."""
    name = {Gate: "mul", NormActivation: "scalar_multiplier"}.get(_kind(module).ours)
    return getattr(module, name) if name else module


def _unused(module: nn.Module) -> tuple[nn.Module, ...]:
    """The modules in e3nn's Gate, NormActivation or S2Activation that ours does not call."""
    if isinstance(module, e3nn.nn.Gate):
        return module.sc, module.sc.cut, module.mul
    if isinstance(module, e3nn.nn.NormActivation):
        return module.norm, module.norm.tp, module.scalar_multiplier
    if isinstance(module, e3nn.nn.S2Activation):
        return module.to_s2, module.from_s2, module.act
    return ()


def _buffer(module: nn.Module) -> torch.Tensor:
    """A tensor that every module of interest has, e3nn's or ours: its dtype and device are the module's."""
    return module.to_s2.shb if _kind(module).ours is S2Activation else _product(module).output_mask


def why_not(module: nn.Module) -> str:
    """Why this module stays as it is; empty where it can be replaced."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is scripted; convert the model before torch.jit.script"
    if is_ours(module):
        return "it is converted already" if hasattr(module, "_converted_from") else "it is ace_fast's own"
    kind = _kind(module)
    if type(module) is not kind.theirs and not parametrize.is_parametrized(module):  # which changes the type
        return "it is a subclass, which may compute something else"
    if lost := would_be_lost(module, _usual(kind.theirs)):
        return lost
    if any(would_be_lost(inner, _names(inner)) for inner in _unused(module)):
        return "what is inside has hooks, which ours would not call; remove them first"
    product = _product(module)
    if product is not module and type(product) is not o3.ElementwiseTensorProduct:
        return f"its product is {type(product).__name__}; it must be e3nn's"
    if _buffer(module).dtype not in (torch.float32, torch.float64):
        return f"its weights are {_buffer(module).dtype}; ours must be float32 or float64"
    if kind.ours is Linear and not Linear.takes_plain(module):
        return "it takes f_in and external weights, whose numbers it does not keep"
    return ""


def replacement(module: nn.Module, backend: str) -> nn.Module:
    """Ours in place of `module`, with its very Parameters."""
    return _kind(module).ours.from_e3nn(module, backend)


def changed_since(new: nn.Module) -> str:
    """What of a replacement its original would not have; else empty."""
    return would_be_lost(new, _usual(_kind(new).ours))


def put_back(new: nn.Module, old: nn.Module) -> None:
    """Gives `old` the present parameters and buffers of its replacement, and the training flag."""
    like = _buffer(new)
    old.to(like.device, like.dtype)  # its tables did not see .to() while it was out
    for key in _kind(new).shared:
        if hasattr(new, key):
            setattr(old, key, getattr(new, key))
    old.train(new.training)
