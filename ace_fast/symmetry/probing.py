"""Looking into a model without leaving a trace: what its layers read and return, and everything as it was."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from e3nn import o3
from torch import Tensor, nn

from .groups import Element
from .inputs import Inputs
from .known import Declared, declared, of_outputs
from .layouts import Layout, act, check, layout
from .report import Error, Layer, Report


class States(NamedTuple):
    """Of the generators of torch, on the CPU and on CUDA where that is in use, of numpy and Python, and of `held`."""

    cpu: Tensor
    cuda: list[Tensor]
    numpy: Any
    python: Any
    held: list[tuple[torch.Generator, Tensor]]


class Call(NamedTuple):
    """One call of a layer, and the states that it began with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    states: States | None = None


def tensors_of(output: Any) -> list[Tensor | None]:
    """The outputs in order; what is no floating-point tensor is None."""
    parts = [output] if isinstance(output, Tensor) else list(output.values()) if isinstance(output, Mapping) else (
        list(output) if isinstance(output, Sequence) and not isinstance(output, str) else [])
    return [x if isinstance(x, Tensor) and x.is_floating_point() else None for x in parts]


def detached(x: Any) -> Any:
    """x with all tensors in tuples, lists and dicts out of the graph, which can then be freed."""
    if isinstance(x, Tensor):
        return x.detach()
    if type(x) in (tuple, list):
        return type(x)(detached(part) for part in x)
    return {name: detached(part) for name, part in x.items()} if type(x) is dict else x


def generators_of(modules: Sequence[nn.Module]) -> list[torch.Generator]:
    """Generators that modules, or what is in them, hold as attributes."""
    held = [x for root in modules for m in root.modules() for x in vars(m).values() if isinstance(x, torch.Generator)]
    return list(dict.fromkeys(held))


def generator_states(held: Sequence[torch.Generator]) -> States:
    """The states now, of `held` and of the common generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return States(torch.get_rng_state(), cuda, np.random.get_state(), random.getstate(),
                  [(generator, generator.get_state()) for generator in held])


def set_generators(states: States) -> None:
    """As `generator_states` said."""
    torch.set_rng_state(states.cpu)
    if states.cuda:
        torch.cuda.set_rng_state_all(states.cuda)
    np.random.set_state(states.numpy)
    random.setstate(states.python)
    for generator, state in states.held:
        generator.set_state(state)


@contextmanager
def recording(layers: Mapping[str, nn.Module], held: Sequence[torch.Generator] | None = None
              ) -> Iterator[dict[str, list[Call]]]:
    """Yields name -> the layer's calls while the block runs; given the generators that modules hold, with all that it
    takes to repeat them and without their graph."""
    calls: dict[str, list[Call]] = {name: [] for name in layers}
    begun: list[States] = []

    def begin(module: nn.Module, args: tuple) -> None:
        begun.append(generator_states(held))

    def hook(name: str) -> Callable[..., None]:
        def record(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            calls[name].append(Call((), {}, output) if held is None else
                               Call(*detached((args, kwargs, output)), begun.pop()))
        return record

    handles = [layer.register_forward_hook(hook(name), with_kwargs=True) for name, layer in layers.items()]
    handles += [] if held is None else [layer.register_forward_pre_hook(begin) for layer in layers.values()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def untouched(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Evaluation mode; afterwards training modes, buffers, gradients and the state of every generator as before."""
    training = [(m, m.training) for root in modules for m in root.modules()]
    gradients = [(p, p.grad) for root in modules for p in root.parameters()]
    buffers = [(m, name, b, b.clone()) for root in modules for m in root.modules()
               for name, b in m.named_buffers(recurse=False)]
    states = generator_states(generators_of(modules))
    try:
        for root in modules:
            root.eval()
        for p, _ in gradients:
            p.grad = None
        yield
    finally:
        for m, mode in training:
            m.training = mode
        for p, gradient in gradients:
            p.grad = gradient
        with torch.no_grad():
            for m, name, b, before in buffers:
                m._buffers[name] = b
                if not torch.equal(b, before):
                    b.copy_(before)
        set_generators(states)


class Place(NamedTuple):
    """An output of a call of a layer that is compared."""

    label: str
    layer: str
    call: int
    output: int
    own: Layout


class Probe:
    """A model, its inputs, what it answered to them, and the layouts of all that is compared."""

    def __init__(self, model: Any, inputs: Inputs, root: nn.Module | None, output: Any, layers: Any) -> None:
        self.model, self.inputs, self.group, self.rows = model, inputs, inputs.group, inputs.rows
        self._held = generators_of([] if root is None else [root])
        self._states = generator_states(self._held)
        self.layers = chosen(root, model, layers)
        self.demanded = tuple(layers or ())
        outputs, self.calls = self.look(inputs.floats(), keep=True)
        self.outputs = detached(outputs)
        known = declared(model)
        layouts = output_layouts(output, known.outputs if known else None, self.outputs)
        several = sum(own is not None for own in layouts) > 1
        self.layouts = {i: (f"output {i}" if several else "output", own) for i, own in enumerate(layouts)
                        if own is not None}
        for name, own in self.layouts.values():
            check(self.group, own, f"measure: the layout of {name}")
        self.places = list(self._places())

    def look(self, arrays: Mapping[str, Any], keep: bool = False) -> tuple[list[Tensor | None], dict[str, list[Call]]]:
        """The model's outputs for other arrays, and its layers' calls."""
        set_generators(self._states)
        layers = {name: module for name, (module, _) in self.layers.items()}
        with recording(layers, self._held if keep else None) as calls:
            return tensors_of(self.inputs.call(self.model, arrays)), calls

    def _places(self) -> Iterator[Place]:
        for name, (_, known) in self.layers.items():
            for number, call in enumerate(self.calls[name]):
                outputs = tensors_of(call.output)
                label = name if number == 0 else f"{name} #{number + 1}"
                layouts = of_outputs(known.outputs, len(outputs))
                for i, (x, own) in enumerate(zip(outputs, layouts, strict=False)):
                    if x is not None and own is not None and self.fits(label, x, own):
                        yield Place(f"{label} [{i}]" if len(layouts) > 1 else label, name, number, i, own)

    def fits(self, name: str, x: Tensor, own: Layout) -> bool:
        """Whether the group can act on a layer's output: rows and axes are those that the batch is known to have."""
        same = self.group.identity(self.rows.count, sizes=self.inputs.sizes)
        try:
            self.at(name, x, own, same)
        except (ValueError, IndexError):
            if name in self.demanded:
                raise
            return False
        return True

    def at(self, name: str, x: Tensor, own: Layout, element: Element) -> Tensor:
        """x under an element."""
        return act(self.group, element, x, self.rows.placed(name, x, own), self.inputs.owner(element, name, x, own))

    def outputs_of(self, found: tuple[list[Tensor | None], dict[str, list[Call]]]) -> list[Tensor | None]:
        """What is compared of a pass: the outputs, then the layers'."""
        outputs, calls = found
        answered = [outputs[i] if i < len(outputs) else None for i in self.layouts]
        for place in self.places:
            made = calls[place.layer]
            parts = tensors_of(made[place.call].output) if place.call < len(made) else []
            answered.append(parts[place.output] if place.output < len(parts) else None)
        return answered

    @property
    def compared(self) -> list[tuple[str, Layout]]:
        """Names and layouts of `outputs_of`."""
        return [*self.layouts.values(), *((place.label, place.own) for place in self.places)]

    def report(self, how: str, errors: Sequence[Error], own: Mapping[str, Error] | None = None,
               exact: bool = False) -> Report:
        count = len(self.layouts)
        layers = [Layer(place.label, place.own.shown, error, (own or {}).get(place.label))
                  for place, error in zip(self.places, errors[count:], strict=True)]
        return Report(self.group.name, how, list(errors[:count]), layers, self._rounding(), exact)

    def _rounding(self) -> float:
        """The relative change of the output where every number of the input changes in its last digit."""
        generator = torch.Generator().manual_seed(0)
        nudged = {}
        for name, x in self.inputs.floats().items():
            sign = 1 - 2 * torch.randint(2, x.shape, generator=generator).to(x)
            nudged[name] = x * (1 + torch.finfo(x.dtype).eps * sign)
        outputs, _ = self.look(nudged)
        return max(relative(outputs[i] - self.outputs[i], self.outputs[i]) for i in self.layouts)


def relative(difference: Tensor, x: Tensor) -> float:
    """|difference| / |x|; 0 where nothing differs."""
    size = difference.detach().double().norm()
    return 0.0 if size == 0 else float(size / x.detach().double().norm())


def absolute(difference: Tensor) -> float:
    return float(difference.detach().abs().max()) if difference.numel() else 0.0


def chosen(root: nn.Module | None, model: Any, layers: Any) -> dict[str, tuple[nn.Module, Declared]]:
    """Name -> (layer, what is known of it), of the layers that are measured."""
    if root is None:
        if layers:
            raise ValueError("measure: layers must be left out for a callable whose module is not given, got "
                             f"{', '.join(layers)}; pass module=")
        return {}
    modules = {name: m for name, m in root.named_modules() if name and m is not model}
    if layers is None:
        return {name: (m, known) for name, m in modules.items() if (known := declared(m)) is not None}
    found = {}
    for name in layers:
        if name not in modules:
            raise ValueError(f"measure: layers must be among {', '.join(list(modules)[:8])}, ..., got {name}")
        known = declared(modules[name])
        if isinstance(layers, Mapping):
            given = layers[name] if isinstance(layers[name], tuple | list) else (layers[name],)
            outputs = tuple(None if own is None else layout(own) for own in given)
            known = Declared(known.inputs if known else {}, outputs)
        if known is None:
            raise ValueError(f"measure: the layout of {name} must be given, got none; pass layers={{{name!r}: "
                             '"8x0e + 8x1o"}')
        found[name] = (modules[name], known)
    return found


def output_layouts(given: Any, known: tuple[Layout | None, ...] | None, outputs: Sequence[Tensor | None]
                   ) -> list[Layout | None]:
    """The layout of every output, None where it is not compared."""
    if not any(x is not None for x in outputs):
        raise ValueError("measure: the model must return tensors of floating-point numbers, got none")
    if given is not None:
        one = isinstance(given, str | Layout | o3.Irreps) or not isinstance(given, Sequence | Mapping)
        parts = [given] if one else list(given.values()) if isinstance(given, Mapping) else list(given)
        found = [None if own is None else layout(own) for own in parts]
    elif known is not None:
        found = list(of_outputs(known, len(outputs)))
    else:
        raise ValueError('measure: the layout of the output must be given, got none; pass output="vector", or "scalar",'
                         ' "position" or irreps')
    if len(found) != len(outputs):
        raise ValueError(f"measure: output must have {len(outputs)} layouts for as many outputs, got {len(found)}")
    return [own if x is not None else None for own, x in zip(found, outputs, strict=True)]
