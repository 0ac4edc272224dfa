"""Swaps other libraries' layers in somebody's model for ours, sharing their parameters, and back."""

from typing import NamedTuple

from torch import nn

from . import convert_cue, convert_e3nn, convert_nequip, convert_pyg, convert_vn
from .kernels.tensor_product.op import BACKENDS

# each knows one library: of_interest, is_ours, describe, why_not, way, replacement, changed_since, put_back
_LIBRARIES = (convert_cue, convert_e3nn, convert_nequip, convert_vn, convert_pyg)


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


def _library(module: nn.Module):
    """The one of _LIBRARIES that knows this module, or None."""
    return next((library for library in _LIBRARIES if library.of_interest(module)), None)


def _places(model: nn.Module, prefix: str = "", seen: set[nn.Module] | None = None):
    """(parent, key, dotted name, module, library) of every module that a library knows, each place of a shared one.

    What was replaced is not entered; what lies in a module that was left comes after it.
    """
    seen = set() if seen is None else seen
    if model in seen:
        return
    seen.add(model)
    for key, child in list(model._modules.items()):
        if child is None:
            continue
        library = _library(child)
        if library:
            yield model, key, f"{prefix}{key}", child, library
        if not library or model._modules[key] is child and not library.is_ours(child):
            yield from _places(child, f"{prefix}{key}.", seen)


def convert(model: nn.Module, backend: str = "auto") -> Report:
    """Replaces layers of e3nn, NequIP, cuequivariance_torch, vnn and PyTorch Geometric in `model`, in place, by ours.

    The new modules hold the very Parameter objects of the old ones: optimisers, parameter groups and checkpoints stay
    valid. A module that occurs in several places is replaced by one module in all of them.

    e3nn: TensorProduct, FullyConnectedTensorProduct, FullTensorProduct, ElementwiseTensorProduct, TensorSquare and
    Linear of `e3nn.o3`, `Gate`, `NormActivation` and `S2Activation` of `e3nn.nn`; their subclasses stay. Blocks that
    compute `tp(x[src], edge_attr, weight)` and scatter keep doing so, on our product.

    NequIP: a class TensorProductScatter whose child `tp` is e3nn's product becomes one convolution without edge
    features; of an InteractionBlock that gathers and sums itself, the layers inside are replaced.

    cuequivariance_torch: FullyConnectedTensorProduct, ChannelWiseTensorProduct (with its gather and sum) and Linear
    (with weight classes), in any group of odd-dimensional irreps and any layouts. Their weights have our order, so the
    Parameter [1, n] is the same object.

    Vector-neuron layers (VNLinear, VNLeakyReLU, VNBatchNorm, VNLinearLeakyReLU, VNMaxPool, VNStdFeature) are recognised
    by class name, children and shapes, without importing anybody's code: a class of these names that computes something
    else must stay out of `model`. Those with ACE's branches become relaxed ones, with ACE's order of the unconstrained
    maps (`legacy_view`), and go on taking `disable_equivariance` in their calls. Edge features that the model itself
    forms stay: `ace_fast.nn.VNEdgeConv` and `ace_fast.models.VNDGCNN` do without them and load the same checkpoints.

    PyTorch Geometric: SchNet of `torch_geometric.nn.models` as a whole, which then needs neither torch-cluster nor edge
    tensors, with any of its weights, the published ones too; InteractionBlock and CFConv in other models. A model that
    is itself a SchNet: `ace_fast.models.SchNet.from_pyg(model)`.

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
    if library := _library(model):
        why = library.why_not(model) or f"it is the model itself; {library.way(model)}"
        return Report([], [Entry("", library.describe(model), why)])
    for parent, key, name, module, library in _places(model):
        why = "" if module in made else library.why_not(module)
        if why:
            left.append(Entry(name, library.describe(module), why))
            continue
        if module not in made:
            made[module] = library.replacement(module, backend)
            # inside a tuple it is no submodule: its parameters and buffers are not listed twice
            made[module]._converted_from = (module,)
        parent._modules[key] = made[module]
        replaced.append(Entry(name, library.describe(module)))
    return Report(replaced, left)


def restore(model: nn.Module) -> Report:
    """Undoes `convert`: the same modules in the same places, with the present parameters.

    Returns:
        Report of what was put back, and what was left converted because it got hooks, parametrizations or attributes
        since.
    """
    put_back, left = [], []
    for parent, key, name, module, library in _places(model):
        if not hasattr(module, "_converted_from"):
            continue
        if lost := library.changed_since(module):
            left.append(Entry(name, library.describe(module), lost))
            continue
        (old,) = module._converted_from
        library.put_back(module, old)
        parent._modules[key] = old
        put_back.append(Entry(name, library.describe(old)))
    return Report(put_back, left)
