"""How a room registers its operators: schema, implementation, fake, derivative, vmap, autocast, in one call."""

import functools
import operator
from collections.abc import Sequence

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import forward_ad

from .calls import Operator

_library = torch.library.Library("ace_fast", "FRAGMENT")


def define(schema: str, choose, fake, setup=None, backward=None, batched: tuple[int, ...] = (),
           tags: tuple[torch.Tag, ...] = ()):
    """Registers `ace_fast::<schema>` and returns it.

    Args:
        schema: name, arguments and returns, as torch.library.Library.define takes them.
        choose: checks the arguments and returns what computes, on every device: a function of all of them but
            `backend`, the last. It reads shapes, dtypes, devices, whether anything requires grad and what is no
            tensor, and its function keeps no tensor: it is asked once for all arguments that are alike in these.
        fake: same checks, shapes only.
        setup: setup_context(ctx, inputs, output), as in torch.autograd.Function.
        backward: the derivative; itself a composition of registered operators or plain torch.
        batched: positions of the arguments whose first dimension is a batch; vmap over these folds into it
            where nothing else is mapped, and loops otherwise.
        tags: torch.Tag.dynamic_output_shape of an operator whose shapes depend on values: it waits for the device.
    """
    name = f"ace_fast::{schema.split('(')[0]}"
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag, *tags))
    _library.impl(name, lambda *arguments: choose(*arguments)(*arguments[:-1]), "CompositeExplicitAutograd")
    torch.library.register_fake(name, fake, lib=_library)
    registered = getattr(torch.ops.ace_fast, schema.split("(")[0]).default
    rule = None if backward is None else _derivative(registered, setup, backward)
    for device in ("cpu", "cuda"):
        torch.library.register_autocast(name, device, torch.float32, lib=_library)
    torch.library.register_vmap(name, _vmap_rule(registered, batched), lib=_library)
    return Operator(registered, choose, rule)


def _derivative(registered, setup, backward):
    """Registers the derivative and returns rule(run, arguments): run(arguments), recorded by autograd.

    What torch.library.register_autograd does, for schemas without default values: that function looks for defaults of
    every argument at every call, a quarter of the time of a small one.
    """
    tensors = 1 + max(i for i, a in enumerate(registered._schema.arguments) if "Tensor" in str(a.type))

    class Rule(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *given):
            arguments, run = given[-2:]
            output = run(arguments)
            setup(ctx, arguments, output)
            return output

        @staticmethod
        def backward(ctx, *cotangents):
            needs = ctx.needs_input_grad
            wanted = _wanted(ctx, needs)
            if wanted is needs:
                return *backward(ctx, *cotangents)[:tensors], None, None
            try:
                ctx.needs_input_grad = wanted
                return *backward(ctx, *cotangents)[:tensors], None, None
            finally:
                ctx.needs_input_grad = needs  # for another pass over a graph that is retained

    # Function.apply less what it does for torch.func, whose tensors a straight call never sees
    apply = super(torch.autograd.Function, Rule).apply

    def rule(run, arguments):
        return apply(*arguments[:tensors], arguments, run)

    def below(keys, arguments):
        with torch._C._AutoDispatchBelowAutograd():
            return registered.redispatch(keys & torch._C._after_autograd_keyset, *arguments)

    @torch.compiler.disable  # Dynamo would look into it where a graph breaks around the operator
    def call(keys, *arguments):
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
            arguments = unwrap_dead_wrappers(arguments)  # as apply does with the tensors
            return Rule.apply(*arguments[:tensors], arguments, functools.partial(below, keys))
        return below(keys, arguments)

    _library.impl(registered._schema.name, call, "Autograd", with_keyset=True)
    return rule


def _wanted(ctx, needs: tuple[bool, ...]) -> tuple[bool, ...]:
    """ctx.needs_input_grad less what this pass does not ask for, as the weights in autograd.grad(energy, positions).

    Nodes written in C++ know this by themselves, those in Python do not.
    """
    nodes = [node for node, _ in ctx.next_functions if node is not None]  # of the arguments that require grad
    if len(nodes) == 1:
        return needs  # this node runs for it
    runs = []
    for node in nodes:
        try:
            runs.append(torch._C._will_engine_execute_node(node))
        except RuntimeError:  # a leaf whose gradient is collected, or a pass that PyTorch's tracer drives
            runs.append(True)
    if all(runs):
        return needs
    found = iter(runs)
    return tuple([need and next(found) for need in needs])


def _vmap_rule(op, batched: tuple[int, ...]):
    def rule(info, in_dims, *args):
        in_dims = [d if isinstance(d, int) else None for d in in_dims]  # list arguments come with a list
        mapped = [i for i, d in enumerate(in_dims) if d is not None]
        foldable = batched and set(mapped) == set(batched)
        if foldable:
            args = list(args)
            for i in mapped:
                x = args[i].movedim(in_dims[i], 0)
                args[i] = x.reshape(-1, *x.shape[2:])
            out = op(*args)
            split = lambda y: y.unflatten(0, (info.batch_size, y.shape[0] // info.batch_size))  # noqa: E731
            return (split(out), 0) if isinstance(out, Tensor) else (tuple(map(split, out)), (0,) * len(out))
        outs = [op(*(a.select(d, b) if d is not None else a for a, d in zip(args, in_dims, strict=True)))
                for b in range(info.batch_size)]
        if isinstance(outs[0], Tensor):
            return torch.stack(outs), 0
        return tuple(torch.stack(column) for column in zip(*outs, strict=True)), (0,) * len(outs[0])

    return rule


def mask(needs: Sequence[bool]) -> int:
    """The gradients asked for as the compiled kernels take them: bit n for the n-th."""
    return _mask(tuple(needs))


@functools.cache
def _mask(needs: tuple[bool, ...]) -> int:
    return sum(need << i for i, need in enumerate(needs))


def vjp(function, inputs: list[Tensor | None], cotangents: list[Tensor | None]) -> list[Tensor | None]:
    """Gradients of sum(<cotangent, output>) of a differentiable `function(*inputs)` with respect to its inputs.

    Differentiable again wherever grad mode is on, so that no order of derivative is silently dropped.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = [x if x is None or (again and x.requires_grad) else x.detach().requires_grad_() for x in inputs]
        # a leaf of its own, so that the gradient with respect to each argument is separate even for shared tensors
        leaves = [x if x is None else x.view_as(x) for x in leaves]
        outputs = function(*leaves)
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if c is not None and o.requires_grad]
        wanted = [x for x in leaves if x is not None]
        if not pairs:
            return [None] * len(inputs)
        outputs, cotangents = zip(*pairs, strict=True)
        grads = torch.autograd.grad(outputs, wanted, cotangents, allow_unused=True, create_graph=again)
    found = iter(grads)
    return [None if x is None else next(found) for x in inputs]


def fail(op: str, argument: str, expected: str, got, remedy: str = "") -> None:
    """Raises `ValueError("<op>: <argument> must be <expected>, got <got>; <remedy>")`.

    Call it behind an `if`: operators are called often, and building a message costs more than the check.
    """
    raise ValueError(f"{op}: {argument} must be {expected}, got {got}" + (f"; {remedy}" if remedy else ""))


def integer(op: str, argument: str, value, least: int = 0, most: int | None = None, remedy: str = "") -> int:
    """The value as an int, of whatever type it is; booleans, texts and fractions are none.

    Raises:
        ValueError: no integer, or one outside least..most.
    """
    try:
        found = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        found = None
    if found is None or found < least or most is not None and found > most:
        within = f"of at least {least}" if most is None else f"from {least} to {most}"
        fail(op, argument, f"an integer {within}", repr(value), remedy)
    return found


def is_half(op: str, argument: str, x: Tensor, backend: str) -> bool:
    """Whether `x` is bfloat16, in an operator that takes it on GPUs and, anywhere, with plain torch, Triton and
    emulated CUDA.

    Raises:
        ValueError: it is, on the CPU.
    """
    if x.dtype != torch.bfloat16:
        return False
    if not (x.is_cuda or backend in ("reference", "triton", "cuda")):
        fail(op, argument, "float32 or float64 on the CPU", x.dtype, "cast it with .float()")
    return True


def check_tensors(op: str, reference: Tensor, *, half: bool = False, **tensors: Tensor | None) -> None:
    """All `tensors` (None skipped) share `reference`'s dtype, float32 or float64 (any where `half`), and device."""
    if not half and reference.dtype not in (torch.float32, torch.float64):
        fail(op, "the first argument", "float32 or float64", reference.dtype, "cast it with .float()")
    for name, x in tensors.items():
        if x is not None and (x.dtype != reference.dtype or x.device != reference.device):
            fail(op, name, f"{reference.dtype} on {reference.device}", f"{x.dtype} on {x.device}")


def check_segments(op: str, role: str, nodes: int, device, *tensors: Tensor) -> None:
    """`Segments` of `nodes` nodes by their three tensors: index, order, ptr."""
    index, order, ptr = tensors
    for name, t in zip(("index", "order", "ptr"), tensors, strict=True):
        if t.dtype != torch.int64 or t.dim() != 1 or t.device != device:
            fail(op, f"{role}_{name}", f"int64 [length] on {device}", f"{t.dtype} {list(t.shape)} on {t.device}",
                 "pass an ace_fast.Graph")
    if order.shape != index.shape:
        fail(op, f"{role}_order", f"{list(index.shape)} like {role}_index", list(order.shape))
    if ptr.shape[0] != nodes + 1:
        fail(op, f"{role}_ptr", f"[{nodes + 1}], one more than the rows of h", list(ptr.shape),
             "build the graph for these nodes")


def check_int64(op: str, device: torch.device, shape: str, **tensors: Tensor) -> None:
    """All `tensors` are int64 on the device, of as many dimensions as `shape` names: "[K, N]" are two."""
    for name, t in tensors.items():
        if t.dtype != torch.int64 or t.dim() != shape.count(",") + 1 or t.device != device:
            fail(op, name, f"int64 {shape} on {device}", f"{t.dtype} {list(t.shape)} on {t.device}")


def check_ptr(op: str, device: torch.device, ptr: Tensor) -> None:
    """`ptr` is int64 [B + 1] on the device; its values are not read."""
    check_int64(op, device, "[B + 1]", ptr=ptr)
    if ptr.shape[0] < 1:
        fail(op, "ptr", "[B + 1]", list(ptr.shape), "no sets are ptr = [0]")


def longest_segment(op: str, ptr: Tensor, rows: int) -> int:
    """The most rows of a set; raises unless ptr ascends from 0 to the number of rows. Reads the device once."""
    if not isinstance(ptr, Tensor):
        fail(op, "ptr", "a tensor", type(ptr).__name__, "use torch.as_tensor(...)")
    check_ptr(op, ptr.device, ptr)
    sizes = torch.cat([ptr.diff(), ptr.new_zeros(1)])
    first, last, least, most = torch.stack([ptr[0], ptr[-1], sizes.min(), sizes.max()]).tolist()
    if first != 0 or last != rows or least < 0:
        fail(op, "ptr", f"ascending from 0 to {rows}, the rows", f"{first} to {last}" if least >= 0 else "a descent")
    return most


def check_constant(op: str, **tensors: Tensor | None) -> None:
    """Arguments that have no derivative must not ask for one."""
    for name, x in tensors.items():
        if x is not None and x.requires_grad:
            fail(op, name, "a constant", "a tensor that requires grad", "detach it")


def no_forward_mode(op: str, *tensors: Tensor | None) -> None:
    """Forward-mode derivatives of a torch.library operator are silently zero: raise instead."""
    if forward_ad._current_level < 0:
        return
    for x in tensors:
        if x is not None and forward_ad.unpack_dual(x).tangent is not None:
            raise NotImplementedError(f"{op}: forward-mode derivatives (torch.func.jvp) are not supported; use vjp")
