"""How far a model is from commuting with a group: at its output and layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..graph import Graph
from .groups import Element, Group
from .groups import group as named
from .inputs import Inputs, moved_graph
from .known import Declared, parameters_of
from .layouts import Layout, directions, layout
from .matrices import alternating
from .probing import Call, Place, Probe, absolute, relative, set_generators, tensors_of, untouched
from .report import Error, Report

HOWS = ("draws", "lie", "differences")
_WEIGHTS = ("weight", "bias")  # of single rows: no group turns them


def measure(model: Callable[..., Any], batch: Any, group: str | Group = "O(3)", *, layouts: Any = None,
            output: Any = None, layers: Mapping[str, Any] | Sequence[str] | None = None, draws: int = 8, seed: int = 0,
            how: str = "draws", graphs: Tensor | str | None = None, module: nn.Module | None = None) -> Report:
    r"""The equivariance error of a model, and of its layers, on a batch.

    .. math:: \frac{\|f(g x) - g f(x)\|}{\|f(x)\|}

    for random elements g, one a graph (or one a sample) where the batch has several. Without sampling, "lie" takes the
    derivative along each one-parameter subgroup with generator A, per radian or unit of length:

    .. math:: \frac{\|J_f(x)\, A x - A f(x)\|}{\|f(x)\|}

    The model runs in evaluation mode and in the caller's grad mode. Training modes, buffers, gradients and the state of
    the generators of torch, numpy and Python and of those that modules hold are afterwards what they were; every pass
    begins with the same state, so a model that draws takes the same draws.

    Args:
        model: a module, or a callable.
        batch: a tensor, a tuple, a mapping, or an object with attributes that the model reads (`Inputs`).
        group: by its name (`ace_fast.symmetry.group`), or itself.
        layouts: of the arguments or attributes: irreps, "vector", "position", "scalar", "index", "image" or a `Layout`,
            by name or in order. None: as they are known of e3nn's layers, vector neurons and ace_fast's models.
        output: of the outputs, one or in order (None: one that is not compared). None: as they are known.
        layers: which layers are measured too: None, all whose output layout is known; names, these; a mapping, these
            with the layouts of their outputs.
        draws: random elements, or sets of one a graph; of a finite group with no more elements all are taken.
        seed: of these draws.
        how: "draws"; "lie", by the double-backward trick (a gradient with respect to the vector of a
            vector-Jacobian product), which needs second derivatives; "differences", the same by central differences,
            of any callable.
        graphs: the graph [N] of each node; "samples", axis 0 of all arrays runs over samples. None: an argument or
            attribute `batch` says so, else one element moves everything.
        module: that the callable runs, where the model is none itself.

    Returns:
        A `Report`, which prints as a table and draws itself (`plot`).

    Raises:
        ValueError: an unknown group or layout, one that is missing or that the group cannot act on, or outputs that do
            not fit. Errors of outputs that are not finite are NaN.

    Example:
        >>> layer = ace_fast.nn.Linear("4x0e + 2x1o", "4x0e + 2x1o")
        >>> measure(layer, torch.randn(8, 10)).relative < 1e-5
        True
    """
    found = _checked(group, how, draws)
    root = module if module is not None else model if isinstance(model, nn.Module) else None
    with untouched([] if root is None else [root]):
        probe = Probe(model, Inputs(model, batch, found, layouts, graphs), root, output, layers)
        if how == "draws":
            return _by_draws(probe, draws, seed)
        return _by_gradients(probe) if how == "lie" else _by_differences(probe)


def _checked(group: str | Group, how: str, draws: int) -> Group:
    """The group, if it can be measured so."""
    found = group if isinstance(group, Group) else named(group)
    if how not in HOWS:
        raise ValueError(f"measure: how must be one of {', '.join(HOWS)}, got {how!r}")
    if draws < 1:
        raise ValueError(f"measure: draws must be at least 1, got {draws}")
    if how != "draws" and not found.directions:
        raise ValueError(f"measure: how must be 'draws' under {found.name}, which has no infinitesimal elements, got "
                         f"{how!r}")
    return found


def _by_draws(probe: Probe, draws: int, seed: int) -> Report:
    """f(g x) against g f(x) for random g, or for all of a small group."""
    base = probe.outputs_of((probe.outputs, probe.calls))
    errors, own = [Error(name) for name, _ in probe.compared], {}
    order = probe.group.order
    exact = order is not None and order <= draws
    for element in _elements(probe, order if exact else draws, seed, exact):
        found = probe.outputs_of(probe.look(probe.inputs.moved(element)))
        for error, (name, own_layout), x, y in zip(errors, probe.compared, base, found, strict=True):
            error.add(*_difference(probe, element, name, own_layout, x, y))
        for label, numbers in _own(probe, element):
            own.setdefault(label, Error(label)).add(*numbers)
    return probe.report("draws", errors, own, exact)


def _elements(probe: Probe, count: int, seed: int, exact: bool) -> Iterator[Element]:
    if exact:
        every = probe.group.elements()
        for i in range(count):
            yield Element(*(None if part is None else part[i : i + 1] for part in every))
        return
    generator, inputs = torch.Generator().manual_seed(seed), probe.inputs
    for i in range(count):
        found = probe.group.sample(inputs.rows.count, generator, sizes=inputs.sizes, side=inputs.side,
                                   reach=inputs.reach)
        if probe.group.rotations == "O(3)":  # every second draw begins with a reflection: a few hold both kinds
            found = found._replace(matrix=alternating(found.matrix, i))
        yield found


def _difference(probe: Probe, element: Element, name: str, own: Layout, x: Tensor, y: Tensor | None
                ) -> tuple[float, float]:
    expected = probe.at(name, x, own, element)
    if y is None or y.shape != expected.shape:
        raise ValueError(f"measure: {name} must keep its shape {list(x.shape)} where the input is moved, got "
                         f"{None if y is None else list(y.shape)}")
    return relative(y.detach() - expected, x), absolute(y.detach() - expected)


def _own(probe: Probe, element: Element) -> Iterator[tuple[str, tuple[float, float]]]:
    """Of every call whose inputs' layouts are known: what the layer adds itself, its inputs moved exactly."""
    places: dict[tuple[str, int], list[Place]] = {}
    for place in probe.places:
        places.setdefault((place.layer, place.call), []).append(place)
    for (name, number), compared in places.items():
        module, known = probe.layers[name]
        call = probe.calls[name][number]
        arguments = _moved_arguments(probe, module, known, call, element)
        if arguments is None:
            continue
        set_generators(call.states)
        outputs, before = tensors_of(module(*arguments[0], **arguments[1])), tensors_of(call.output)
        for place in compared:
            x, y = before[place.output], outputs[place.output]
            yield place.label, _difference(probe, element, place.label, place.own, x, y)


def _moved_arguments(probe: Probe, module: nn.Module, known: Declared, call: Call, element: Element
                    ) -> tuple[list[Any], dict[str, Any]] | None:
    """A layer's arguments under an element; None where the layout of one of them is not known."""
    names = parameters_of(module)
    if not known.inputs:
        return None
    layouts = dict.fromkeys(_WEIGHTS, layout("scalar")) | dict(known.inputs)

    def move(name: str, x: Any) -> Any:
        if isinstance(x, Graph) and element.permutation is not None:
            return moved_graph(probe.group, element, x)
        if isinstance(x, Tensor) and name in layouts:
            return probe.at(name, x, layouts[name], element)
        return x

    named = [(names[i] if i < len(names) else "", x) for i, x in enumerate(call.args)] + list(call.kwargs.items())
    if any(isinstance(x, Tensor) and x.is_floating_point() and name not in layouts for name, x in named):
        return None
    try:
        moved = [move(name, x) for name, x in named]
    except (ValueError, IndexError):  # rows or axes that the batch does not have
        return None
    args, kwargs = moved[: len(call.args)], moved[len(call.args) :]
    return args, dict(zip(call.kwargs, kwargs, strict=True))


def _by_gradients(probe: Probe) -> Report:
    """J A x - A f(x) by double backward: J t is the derivative of <J^T v, t> with respect to v."""
    floats = {name: x.requires_grad_() for name, x in probe.inputs.floats().items()}
    with torch.enable_grad():
        outputs = probe.outputs_of(probe.look(floats))
    if not all(y is not None and y.requires_grad for y in outputs[: len(probe.layouts)]):
        raise ValueError("measure: how must be 'differences' for a model whose output has no gradient with respect to "
                         "its input, got 'lie'")
    reached = [y if y is not None and y.requires_grad else None for y in outputs]
    dummies = [None if y is None else torch.zeros_like(y, requires_grad=True) for y in reached]
    pairs = [(y, v) for y, v in zip(reached, dummies, strict=True) if y is not None]
    with torch.enable_grad():
        pulled = torch.autograd.grad([y for y, _ in pairs], list(floats.values()), [v for _, v in pairs],
                                     create_graph=True, allow_unused=True)
    tangents = {name: directions(probe.group, x.detach(), probe.inputs.layouts[name]) for name, x in floats.items()}
    errors = [Error(name) for name, _ in probe.compared]
    for a in range(len(probe.group.directions)):
        with torch.enable_grad():
            along = sum((g * tangents[name][a]).sum() for (name, g) in zip(floats, pulled, strict=True)
                        if g is not None)
        pushed = iter(torch.autograd.grad(along, [v for _, v in pairs], retain_graph=True, allow_unused=True))
        for error, (_, own), y, v in zip(errors, probe.compared, outputs, dummies, strict=True):
            change = next(pushed) if v is not None else None
            wanted = directions(probe.group, y.detach(), own)[a]
            missing = wanted if change is None else change - wanted
            error.add(relative(missing, y), absolute(missing))
    return probe.report("lie", errors)


def _by_differences(probe: Probe) -> Report:
    """The same by central differences: (g^-1 f(g x) at a small g, less that at its inverse) over twice its size."""
    base = probe.outputs_of((probe.outputs, probe.calls))
    step = torch.finfo(base[0].dtype).eps ** (1 / 3)
    errors = [Error(name) for name, _ in probe.compared]
    for way in probe.group.directions:
        ends = []
        for ahead in (step, -step):
            element, back = (probe.group.near(way, sign * ahead) for sign in (1, -1))
            found = probe.outputs_of(probe.look(probe.inputs.moved(element)))
            ends.append([probe.at(name, y.detach(), own, back) for (name, own), y in
                         zip(probe.compared, found, strict=True)])
        for error, x, one, two in zip(errors, base, *ends, strict=True):
            change = (one - two) / (2 * step)
            error.add(relative(change, x), absolute(change))
    return probe.report("differences", errors)
