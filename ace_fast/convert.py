"""Swaps e3nn's products and vnn's layers in somebody's model for ours, sharing their parameters, and back."""

import functools
from typing import NamedTuple

import torch
from e3nn import o3
from torch import nn
from torch.nn.utils import parametrize

from . import convert_vn
from .kernels.tensor_product.op import BACKENDS
from .nn import (
    ElementwiseTensorProduct,
    FullTensorProduct,
    FullyConnectedTensorProduct,
    TensorProduct,
    TensorSquare,
)

_REPLACEMENTS = {
    o3.TensorProduct: TensorProduct,
    o3.FullyConnectedTensorProduct: FullyConnectedTensorProduct,
    o3.FullTensorProduct: FullTensorProduct,
    o3.ElementwiseTensorProduct: ElementwiseTensorProduct,
    o3.TensorSquare: TensorSquare,
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks",
          "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")


class Entry(NamedTuple):
    """One module of the model: its dotted name, what it is, and why it was left (empty where it was replaced)."""

    name: str
    what: str
    why: str = ""


class Report(NamedTuple):
    """What `convert` or `restore` did; printing it gives a table."""

    replaced: list[Entry]
    left: list[Entry]

    def __str__(self) -> str:
        rows = [("replaced", e.name, e.what) for e in self.replaced]
        rows += [("left", e.name, f"{e.what}: {e.why}") for e in self.left]
        width = max((len(name) for _, name, _ in rows), default=0)
        lines = [f"{len(self.replaced)} replaced, {len(self.left)} left"]
        return "\n".join(lines + [f"  {done:<8}  {name:<{width}}  {what}" for done, name, what in rows])


def _describe(module: nn.Module) -> str:
    if isinstance(module, (o3.TensorProduct, TensorProduct)):
        return f"{type(module).__name__} {module.irreps_in1} x {module.irreps_in2} -> {module.irreps_out}"
    if convert_vn.of_interest(module):
        return convert_vn.describe(module)
    return getattr(module, "original_name", type(module).__name__)


def _of_interest(module: nn.Module) -> bool:
    if convert_vn.of_interest(module):
        return True
    if isinstance(module, torch.jit.ScriptModule):
        return module.original_name in {cls.__name__ for cls in _REPLACEMENTS}
    return isinstance(module, (o3.TensorProduct, TensorProduct))


@functools.cache
def _usual(cls: type) -> frozenset[str]:
    """Names that every module of type `cls` holds: a plain one, asked once; it draws no random numbers."""
    with torch.device("cpu"):
        plain = o3.TensorProduct("0e", "0e", "0e", [(0, 0, 0, "uvw", True)], internal_weights=False)
    return _names(plain if cls is o3.TensorProduct else TensorProduct.from_e3nn(plain)) | {"weight", "irreps_in", "_converted_from"}


def _names(module: nn.Module) -> frozenset[str]:
    return frozenset([*vars(module), *module._parameters, *module._buffers, *module._modules])


def _would_be_lost(module: nn.Module, kind: type) -> str:
    """What of `module`, an instance of o3.TensorProduct or of ours, its replacement would not have; else empty."""
    if any(getattr(module, name, None) for name in _HOOKS):
        return "it has hooks; remove them first"
    if parametrize.is_parametrized(module):
        return "it has parametrizations; remove them first"
    own = sorted(name for name in _names(module) - _usual(kind) if not name.startswith("_compiled_main_"))
    return f"it has attributes of its own ({', '.join(own)}) that would be lost; delete them first" if own else ""


def _why_not(module: nn.Module) -> str:
    """Why this product or layer stays as it is; empty where it can be replaced."""
    if convert_vn.of_interest(module):
        return convert_vn.why_not(module)
    if isinstance(module, torch.jit.ScriptModule):
        return "it is scripted; convert the model before torch.jit.script"
    if isinstance(module, TensorProduct):
        return "it is converted already" if hasattr(module, "_converted_from") else "it is ace_fast's own"
    if type(module) not in _REPLACEMENTS and not parametrize.is_parametrized(module):  # which changes the type
        return "it is a subclass, which may compute something else"
    if lost := _would_be_lost(module, o3.TensorProduct):
        return lost
    if module.weight.dtype not in (torch.float32, torch.float64):
        return f"its weights are {module.weight.dtype}; ours must be float32 or float64"
    return ""


def _places(model: nn.Module, prefix: str = "", seen: set[nn.Module] | None = None):
    """(parent, key, dotted name, module) of every product and vector-neuron layer, each place of a shared module.

    Products are not entered, nor layers that were replaced; what lies in a layer that was left comes after it.
    """
    seen = set() if seen is None else seen
    if model in seen:
        return
    seen.add(model)
    for key, child in list(model._modules.items()):
        if child is None:
            continue
        if _of_interest(child):
            yield model, key, f"{prefix}{key}", child
            enter = convert_vn.of_interest(child) and not convert_vn.is_ours(child) and model._modules[key] is child
        else:
            enter = True
        if enter:
            yield from _places(child, f"{prefix}{key}.", seen)


def convert(model: nn.Module, backend: str = "auto") -> Report:
    """Replaces e3nn's shared-weight "uvw" products and vnn's layers anywhere inside `model`, in place, by ours.

    The new modules hold the very Parameter objects of the old ones: optimisers, parameter groups and checkpoints stay
    valid. A module that occurs in several places is replaced by one module in all of them.

    Vector-neuron layers (VNLinear, VNLeakyReLU, VNBatchNorm, VNLinearLeakyReLU, VNMaxPool, VNStdFeature) are recognised
    by class name, children and shapes, without importing anybody's code: a class of these names that computes something
    else must stay out of `model`. Those with ACE's branches become relaxed ones, with ACE's order of the unconstrained
    maps (`legacy_view`), and go on taking `disable_equivariance` in their calls. Edge features that the model itself
    forms stay: `ace_fast.nn.VNEdgeConv` and `ace_fast.models.VNDGCNN` do without them and load the same checkpoints.

    Args:
        model: any module; it is changed.
        backend: which implementation of the operator the new modules run.

    Returns:
        Report of what was replaced and what was left, and why: a module with hooks, parametrizations or attributes
        that somebody set on it stays as it is.

    Raises:
        ValueError: an unknown backend.

    Example:
        >>> print(ace_fast.convert(model))
        2 replaced, 1 left
    """
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"convert: backend must be one of {['auto', *BACKENDS]}, got {backend!r}; take 'auto'")
    replaced, left, made = [], [], {}
    if _of_interest(model):
        way = ("put it into a torch.nn.Sequential" if convert_vn.of_interest(model)
               else "use ace_fast.nn.TensorProduct.from_e3nn")
        why = _why_not(model) or f"it is the model itself; {way}"
        return Report([], [Entry("", _describe(model), why)])
    for parent, key, name, module in _places(model):
        why = "" if module in made else _why_not(module)
        if why:
            left.append(Entry(name, _describe(module), why))
            continue
        if module not in made:
            if convert_vn.of_interest(module):
                made[module] = convert_vn.replacement(module, backend)
            else:
                made[module] = _REPLACEMENTS[type(module)].from_e3nn(module, backend)
            # inside a tuple it is no submodule: its parameters and buffers are not listed twice
            made[module]._converted_from = (module,)
        parent._modules[key] = made[module]
        replaced.append(Entry(name, _describe(module)))
    return Report(replaced, left)


def restore(model: nn.Module) -> Report:
    """Undoes `convert`: the same modules in the same places, with the present parameters.

    Returns:
        Report of what was put back, and what was left converted because it got hooks, parametrizations or attributes
        since.
    """
    put_back, left = [], []
    for parent, key, name, module in _places(model):
        if not hasattr(module, "_converted_from"):
            continue
        vector = convert_vn.of_interest(module)
        if lost := convert_vn.changed_since(module) if vector else _would_be_lost(module, TensorProduct):
            left.append(Entry(name, _describe(module), lost))
            continue
        (old,) = module._converted_from
        if vector:
            convert_vn.put_back(module, old)
            parent._modules[key] = old
            put_back.append(Entry(name, _describe(old)))
            continue
        # tables of the old module did not see .to() while it was out
        old.to(module.output_mask.device, module.output_mask.dtype)
        for field in ("weight", "output_mask"):
            setattr(old, field, getattr(module, field))
        old.train(module.training)
        parent._modules[key] = old
        put_back.append(Entry(name, _describe(old)))
    return Report(put_back, left)
