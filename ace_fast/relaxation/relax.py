"""Gated branches for somebody's own strict model, and the strict model back without a trace."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from e3nn import o3
from torch import nn

from ..nn.added import NAME, hang, join, take_off
from ..nn.vn_maps import add_branch, add_gammas
from .gammas import in_range
from .layers import Kind, fuses, kind_of, walk
from .recalibrate import _SWITCHES, _attributes

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
Choice = str | Iterable[str] | Callable[[str, nn.Module], bool]


class Relaxed(NamedTuple):
    """What `relax` did: `model, gammas = ace_fast.relax(model)`."""

    model: nn.Module  # the same object
    gammas: dict[str, nn.Parameter]  # by their parameter names

    def __str__(self) -> str:
        return "\n".join([f"{len(self.gammas)} gates", *(f"  {name}" for name in self.gammas)])


def relax(model: nn.Module, modules: Choice | None = None, *, hidden: Iterable[int] = (), gamma_init: float = 1.0,
          bias: bool = True, irreps: Mapping[str, tuple[str, str]] | None = None, backend: str = "auto") -> Relaxed:
    r"""Adds a gated unconstrained branch to layers of a strict model, in place: f(x) becomes f(x) + gamma n(x).

    The model keeps its modules, their types and parameters; a layer gets a child `lin_noneq` and a forward hook, or,
    where it is a vector-neuron layer of ace_fast, its own fused branch. Any decider then owns the gammas::

        model, gammas = ace_fast.relax(model)
        decider = ace_fast.relaxation.make("ace", model, bound="spectral")

    Layers that can take a branch:

    * e3nn's Linear and products with weights (branches read the first input), and ace_fast's in their place; ace_fast's
      O3TensorProduct and O3TensorProductSwishGate
    * VNLinear, VNLeakyReLU, VNLinearLeakyReLU of vnn, of ACE (strict) or of ace_fast, and its VNEdgeConv
    * EGNN_Layer (EGNO's, ace_fast's) and E_GCL (EGNN's): one branch for features, one for positions
    * torch.nn.Linear, where `modules` chooses it

    Args:
        model: changed in place. Relax before torch.compile and DistributedDataParallel, after `ace_fast.convert`.
        modules: which layers: dotted names with wildcards ("blocks.*.lin"), one or several, or a function of name and
            module; None: all that can take a branch, but no torch.nn.Linear.
        hidden: widths between the branch's linear maps, GELU between; () is one affine map. ACE's SEGNN has
            (2 D, D). The fused branches of vector neurons have none.
        gamma_init: every gate at the start. While it is 0 the outputs are those of the strict model, to the bit.
        bias: of the branch's maps.
        irreps: of input and output of torch.nn.Linear layers, by their names: what "schedule" and "per" need to know.
        backend: which implementation of the operators the branches run.

    Returns:
        The model and its gammas.

    Raises:
        ValueError: a model that is relaxed, wrapped or compiled, or has a switch of its own (relaxed=True); no layer
            chosen, or one that cannot take a branch; irreps that do not fit.

    Example:
        >>> model = torch.nn.Sequential(e3nn.o3.Linear("4x0e+4x1o", "4x0e+4x1o"))
        >>> list(ace_fast.relax(model).gammas)
        ['0.lin_noneq.gamma']
    """
    widths = list(hidden) if isinstance(hidden, Iterable) else [None]
    if any(not isinstance(width, int) or width < 1 for width in widths):
        raise ValueError(f"relax: hidden must be positive widths such as (64,), got {hidden!r}")
    hidden = tuple(widths)
    if not in_range(gamma_init):
        raise ValueError(f"relax: gamma_init must be finite, got {gamma_init!r}")
    _check_model(model)
    chosen = _chosen(model, modules)
    chosen = _with_irreps(chosen, dict(irreps or {}))
    fused = [name for name, _, kind in chosen if kind.fused]
    if hidden and fused:
        raise ValueError(f"relax: hidden must be () for ace_fast's vector neurons, got {hidden} for {fused[0]!r}")
    for _, layer, kind in chosen:
        _add(layer, kind, hidden, gamma_init, bias, backend, _like(layer, model))
    own = {id(p) for _, layer, _ in chosen for name, p in layer.named_parameters() if _is_added(name)}
    return Relaxed(model, {name: p for name, p in model.named_parameters() if id(p) in own})


def strict(model: nn.Module) -> nn.Module:
    """Removes what `relax` added; the model has its former state_dict keys, hooks and outputs, and pickles alike.

    Returns:
        The same model, with the weights that it has now.

    Raises:
        ValueError: nothing was added to it.
    """
    layers = _added_to(model)
    if not layers:
        raise ValueError(f"strict: model must have branches that ace_fast.relax added, got {type(model).__name__} "
                         "without; a model built with relaxed=True has set_equivariance(False)")
    for layer in layers:
        if NAME in layer._modules:
            take_off(layer)
            continue
        for name in ("map_to_feat_nonequiv", "map_to_dir_nonequiv", "gammas"):
            layer._modules.pop(name, None)
        del layer._added
        add_gammas(layer, 0, False, 0.0)
    return model


@contextmanager
def branches_off(model: nn.Module) -> Iterator[None]:
    """Switches all branches of a model off while the context is open, without looking at a gamma."""
    changes = [(m, name, False) for m in model.modules() for name in _SWITCHES if getattr(m, name, False) is True]
    with _attributes(changes):
        yield


def _is_added(name: str) -> bool:
    """Whether a parameter of a relaxed layer is a gate of its added branch."""
    parts = name.split(".")
    return parts[-1] == "gamma" and NAME in parts or parts[0] == "gammas"


def _added_to(model: nn.Module) -> list[nn.Module]:
    """The layers that carry what `relax` added."""
    return [m for m in model.modules()
            if NAME in m._modules and join in m._forward_hooks.values() or getattr(m, "_added", False)]


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise ValueError(f"relax: model must be a torch.nn.Module, got {type(model).__name__}")
    names = {module: name for name, module in model.named_modules()}
    for module in names:
        compiled = hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        if compiled or isinstance(module, _WRAPPERS):
            raise ValueError(f"relax: model must not be compiled or wrapped yet, got {type(module).__name__}"
                             f"{' that is compiled' if compiled else ''}; relax it first, then compile or wrap it")
    if added := _added_to(model):
        raise ValueError(f"relax: model must be strict, got one whose layer {names[added[0]]!r} was relaxed before; "
                         "choose all layers in one call, or call ace_fast.strict(model) first")


def _chosen(model: nn.Module, modules: Choice | None) -> list[tuple[str, nn.Module, Kind]]:
    """Name, layer and kind of every layer that gets a branch, each once."""
    able, own = walk(model)
    if modules is None:
        if not able:
            hint = f"{own[0]} has branches of its own: build it with relaxed=True" if own else (
                "choose torch.nn.Linear layers with modules=")
            raise ValueError(f"relax: model must have layers that can take a branch, got {type(model).__name__} "
                             f"without; {hint}")
        return able
    plain = callable(modules) and not isinstance(modules, type | nn.Module)
    named = [modules] if isinstance(modules, str) or not isinstance(modules, Iterable) else list(modules)
    if not plain and (wrong := [m for m in named if not isinstance(m, str)]):
        got = f"the class {wrong[0].__name__}" if isinstance(wrong[0], type) else f"a {type(wrong[0]).__name__}"
        raise ValueError(f"relax: modules must be names of layers, or a function of name and module, got {got}; for "
                         "all layers of a class pass lambda name, module: isinstance(module, THE_CLASS)")
    takes = modules if plain else _by_name(model, named, [name for name, *_ in able])
    found = [(name, m, _kind(model, name, m)) for name, m in model.named_modules() if takes(name, m)]
    if not found:
        raise ValueError("relax: modules must choose at least one layer, got a function that chooses none")
    return found


def _by_name(model: nn.Module, patterns: list[str], able: list[str]) -> Callable[[str, nn.Module], bool]:
    """Whether a name fits one of the patterns, each of which must fit one."""
    names = [name for name, _ in model.named_modules()]
    idle = [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)]
    if idle or not patterns:
        known = ", ".join(map(repr, able)) or "none but torch.nn.Linear"
        raise ValueError(f"relax: modules must match names of the model's layers, got {idle[0]!r} that matches none; "
                         f"layers that can take a branch: {known}" if idle else
                         f"relax: modules must name at least one layer, got none; there are {known}")
    return lambda name, module: any(fnmatchcase(name, pattern) for pattern in patterns)


def _kind(model: nn.Module, name: str, module: nn.Module) -> Kind:
    """How a chosen module takes its branch."""
    parts = name.split(".") if name else []
    around = [model.get_submodule(".".join(parts[:end])) for end in range(len(parts))]
    for outer in around:
        if fuses(outer):
            raise ValueError(f"relax: modules must be layers that their model calls, got {name!r} inside "
                             f"{type(outer).__name__} of ace_fast, which reads its weights; choose that layer, or "
                             "build the model with relaxed=True")
    kind = kind_of(module, around[-1] if around else None)
    if isinstance(kind, str):
        raise ValueError(f"relax: modules must be layers that can take a branch (e3nn's Linear and products, vector "
                         f"neurons, EGNN layers, torch.nn.Linear), got {name!r}, a {type(module).__name__}: {kind}")
    return kind


def _with_irreps(chosen: list[tuple[str, nn.Module, Kind]],
                 irreps: dict[str, tuple[str, str]]) -> list[tuple[str, nn.Module, Kind]]:
    """The same with the irreps that the user gave."""
    found = []
    for name, layer, kind in chosen:
        if given := irreps.pop(name, None):
            rows, ends = kind.rows.get(""), tuple(o3.Irreps(i) for i in given)
            sizes = None if rows is None else (rows.inputs, rows.outputs)
            if rows is None or rows.irreps is not None or len(ends) != 2 or tuple(i.dim for i in ends) != sizes:
                raise ValueError(f"relax: irreps of {name!r} must be two, of the dimensions of a torch.nn.Linear that "
                                 f"has none yet, got {', '.join(map(str, ends))} for {layer}")
            kind = kind._replace(rows={"": rows._replace(irreps=ends)})
        found.append((name, layer, kind))
    if irreps:
        raise ValueError(f"relax: irreps must be of layers that get a branch, got {', '.join(map(repr, irreps))}; "
                         "choose them with modules=")
    return found


def _like(layer: nn.Module, model: nn.Module) -> torch.Tensor:
    """A tensor of the dtype and device that a branch shall have."""
    own = [p for part in (layer, model) for p in part.parameters() if p.is_floating_point()]
    return own[0] if own else torch.empty(0)


def _add(layer: nn.Module, kind: Kind, hidden: tuple[int, ...], gamma: float, bias: bool, backend: str,
         like: torch.Tensor) -> None:
    before = set(layer._modules)
    if kind.fused:
        for part, inputs, outputs in kind.fused:
            add_branch(layer, part, inputs, outputs)
        add_gammas(layer, len(kind.fused), True, gamma)
        layer._added = True
    else:
        hang(layer, kind.branch(hidden, bias, gamma, backend))
    for name in set(layer._modules) - before:
        layer._modules[name].to(like.device, like.dtype).train(layer.training)
