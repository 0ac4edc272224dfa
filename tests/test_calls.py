"""Operators called straight from Python: results as through the dispatcher, which sees the calls that it must see."""

import gc
import importlib
import threading
import weakref

import numpy
import pytest
import torch
from operator_calls import Calls
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ace_fast import native
from ace_fast.functional import sphere_product, sphere_table
from ace_fast.kernels import ROOMS
from ace_fast.kernels.calls import MOST, Operator
from ace_fast.kernels.cases import cast, generator
from ace_fast.kernels.dual_update.op import dual_update_op
from ace_fast.kernels.dual_update.reference import ROWS, Rule
from ace_fast.kernels.knn.op import knn_op
from ace_fast.kernels.segment_sum.op import segment_sum_bwd, segment_sum_op
from ace_fast.kernels.sphere_product.op import sphere_product_bwd, sphere_product_op
from ace_fast.kernels.vn_linear.op import vn_leaky_relu_op

BACKEND = "reference" if native.load() else "cpu"
TINY = [case for room in ROOMS for case in importlib.import_module(f"ace_fast.kernels.{room}.cases").SMALL
        if case.name == "tiny" and BACKEND not in case.refused_by]
TABLE = sphere_table((1, 1), 1)
LISTS = torch.tensor([0, 1, 0]), torch.tensor([0, 2, 1]), torch.tensor([0, 2, 3])


def draw(*shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=generator(), dtype=dtype)


@pytest.fixture
def dispatched(monkeypatch) -> list[str]:
    """The names of the operators that Operator hands to the dispatcher."""
    seen = []

    def spy(self, name):
        value = object.__getattribute__(self, name)
        if name == "registered":
            seen.append(self.name)
        return value

    monkeypatch.setattr(Operator, "__getattribute__", spy)
    return seen


def as_list(outputs) -> list:
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)


def derivatives(function, inputs: list, leaves: list) -> list:
    """Outputs of `function`, their gradients, and gradients of the sum of squares of those."""
    outputs = function(*inputs)
    found = [type(outputs), *as_list(outputs)]
    smooth = [o for o in as_list(outputs) if o.requires_grad]
    first = torch.autograd.grad([o.sin().sum() for o in smooth], leaves, create_graph=True, allow_unused=True)
    smooth = [g.square().sum() for g in first if g is not None and g.requires_grad]
    return [*found, *first, *(torch.autograd.grad(smooth, leaves, allow_unused=True) if smooth else ())]


@pytest.mark.parametrize("case", TINY, ids=repr)
def test_both_ways_are_one(case, dispatched):
    inputs = cast(case.inputs(generator()), case, torch.float32)
    leaves = [inputs[n] for n in case.differentiable if inputs[n] is not None]
    arguments = [*inputs.values(), BACKEND]
    with torch.no_grad():
        straight = case.op(*arguments)
        assert not dispatched
        through = case.op.registered(*arguments)
    dispatched.clear()
    assert type(straight) is type(through)
    pairs = [(as_list(straight), as_list(through))]
    if leaves:
        pairs.append((derivatives(case.op, arguments, leaves), derivatives(case.op.registered, arguments, leaves)))
    assert all(map(torch.equal, *([x for x in side if isinstance(x, torch.Tensor)] for side in pairs[0])))
    for mine, expected in zip(*pairs[-1], strict=True):
        assert torch.equal(mine, expected) if isinstance(expected, torch.Tensor) else mine is expected


def test_training_steps_do_without_the_dispatcher(dispatched):
    x, y = draw(3, 4).requires_grad_(), torch.nn.Parameter(draw(3, 4))
    z = sphere_product(x, y, table=TABLE)
    g_x, g_y = torch.autograd.grad(z.square().sum(), (x, y), create_graph=True)
    (g_x.sum() * g_y.square().sum()).backward()
    with torch.no_grad():
        sphere_product(x, y, table=TABLE)
    with torch.inference_mode():
        assert sphere_product(x, x * 2, table=TABLE).is_inference()
    assert not dispatched


class Functions(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **kwargs or {})


CONTEXTS = {
    "a dispatch mode": Calls,
    "a function mode": Functions,
    "a default device": lambda: torch.device("cpu"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "the profiler": torch.profiler.profile,
    "forward mode": forward_ad.dual_level,
}


@pytest.mark.parametrize("context", CONTEXTS)
def test_the_dispatcher_sees_every_call_in(context, dispatched):
    x = draw(3, 4, dtype=torch.float32).requires_grad_()
    expected = sphere_product(x, x, table=TABLE)
    gradient = torch.autograd.grad(expected.sum(), x)[0]
    with CONTEXTS[context]():
        found = sphere_product(x, x, table=TABLE)
        assert torch.equal(found, expected) and torch.equal(torch.autograd.grad(found.sum(), x)[0], gradient)
    forward_alone = context in ("a function mode", "a default device")  # which end where torch.autograd.grad begins
    assert dispatched == ["sphere_product", "sphere_product_bwd"][:1 if forward_alone else 2]


def test_fake_tensors_and_modes_see_arguments(dispatched):
    x = draw(3, 4)
    with FakeTensorMode() as mode:
        fake = segment_sum_op(*map(mode.from_tensor, (x, *LISTS)), "auto")
    assert fake.shape == (2, 4) and isinstance(fake, FakeTensor)
    with Calls() as calls:
        sphere_product(x, x, table=TABLE)
    assert [name for name, _ in calls.own] == ["sphere_product"] and calls.own[0][1][0] is x
    assert len(dispatched) == 2


def test_the_profiler_has_our_names():
    x = draw(3, 4).requires_grad_()
    with torch.profiler.profile() as profile:
        sphere_product(x, x, table=TABLE).sum().backward()
    assert {"ace_fast::sphere_product", "ace_fast::sphere_product_bwd"} <= {e.key for e in profile.key_averages()}


class Marked(torch.Tensor):
    """A subclass without a dispatch key; results are of its kind."""


class Wrapped(torch.Tensor):
    """A tensor that is none: it holds one and counts what it meets in the dispatcher."""

    seen: list = []

    @staticmethod
    def __new__(cls, x):
        y = torch.Tensor._make_wrapper_subclass(cls, x.shape, dtype=x.dtype, device=x.device)
        y.inner = x
        return y

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        cls.seen.append(str(function))
        bare = torch.utils._pytree.tree_map_only(Wrapped, lambda x: x.inner, (args, kwargs or {}))
        return torch.utils._pytree.tree_map_only(torch.Tensor, Wrapped, function(*bare[0], **bare[1]))


def test_subclasses(dispatched):
    x = draw(3, 4)
    expected = segment_sum_op(draw(3, 4), *LISTS, "auto")
    marked = segment_sum_op(x.as_subclass(Marked), *LISTS, "auto")
    assert type(marked) is Marked and torch.equal(marked.as_subclass(torch.Tensor), expected)
    wrapped = segment_sum_op(Wrapped(x), *LISTS, "auto")
    assert Wrapped.seen == ["ace_fast.segment_sum.default"] and torch.equal(wrapped.inner, expected)
    assert dispatched == ["segment_sum"] * 2


def test_tensors_that_are_not_what_they_store(dispatched):
    x = draw(3, 4)
    negative = torch.complex(x, -x).conj().imag  # x behind a bit that says: negated
    assert negative.is_neg()
    assert torch.equal(segment_sum_op(negative, *LISTS, "auto"), segment_sum_op(x, *LISTS, "auto"))
    functional = torch._to_functional_tensor(x)
    assert torch.equal(torch._from_functional_tensor(segment_sum_op(functional, *LISTS, "auto")),
                       segment_sum_op(x, *LISTS, "auto"))
    leaked = []
    torch.func.grad(lambda x: (leaked.append(x), x.sum())[1])(x)
    assert torch.equal(segment_sum_op(leaked[0], *LISTS, "auto"), segment_sum_op(x, *LISTS, "auto"))
    assert dispatched == ["segment_sum"] * 3


def test_the_derivative_of_what_a_transform_left_behind(dispatched):
    x, y = draw(3, 4).requires_grad_(), draw(3, 4)
    leaked = []
    torch.func.grad(lambda x: (leaked.append(x * 2), x.sum())[1])(x)
    [found] = torch.autograd.grad(sphere_product(leaked[0], y, table=TABLE).sin().sum(), x)
    [expected] = torch.autograd.grad(sphere_product(x * 2, y, table=TABLE).sin().sum(), x)
    assert torch.equal(found, expected) and dispatched[0] == "sphere_product"


def test_transforms(dispatched):
    x, y = draw(2, 3, 4), draw(3, 4)
    mapped = torch.vmap(lambda x: sphere_product(x, y, table=TABLE))(x)
    assert dispatched == ["sphere_product"]
    assert torch.equal(mapped, torch.stack([sphere_product(one, y, table=TABLE) for one in x]))
    leaf = x[0].clone().requires_grad_()
    z, cotangents = sphere_product(leaf, y, table=TABLE), draw(2, 3, 4)
    [batched] = torch.autograd.grad(z, leaf, cotangents, is_grads_batched=True, retain_graph=True)  # a vmap of the rule
    looped = [torch.autograd.grad(z, leaf, c, retain_graph=True)[0] for c in cotangents]
    assert torch.equal(batched, torch.stack(looped))
    with pytest.raises(RuntimeError, match="setup_context"):  # as in the dispatcher: PyTorch has no such rule
        torch.func.grad(lambda x: sphere_product(x, y, table=TABLE).sum())(x[0])


def test_traced_and_compiled():
    x, y = draw(3, 4), draw(3, 4)

    def function(x):
        return sphere_product(x, y, table=TABLE).sin()

    traced = torch.jit.trace(function, x, check_trace=False)
    assert "ace_fast::sphere_product" in str(traced.graph)
    graph = torch.fx.experimental.proxy_tensor.make_fx(function)(x)
    assert sphere_product_op.registered in [node.target for node in graph.graph.nodes]
    targets = []

    def backend(graph, _):
        targets.extend(node.target for node in graph.graph.nodes)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    assert torch.equal(compiled(x), function(x)) and sphere_product_op.registered in targets
    assert torch.equal(traced(2 * x), function(2 * x)) and torch.equal(graph(2 * x), function(2 * x))


def test_checkpoints(dispatched):
    x, y = draw(3, 4).requires_grad_(), draw(3, 4).requires_grad_()
    run = lambda x, y: sphere_product(x, y, table=TABLE).sin().sum()  # noqa: E731
    expected = torch.autograd.grad(run(x, y), (x, y))
    for reentrant in (False, True):
        x.grad = y.grad = None
        checkpoint(run, x, y, use_reentrant=reentrant).backward()
        assert torch.equal(x.grad, expected[0]) and torch.equal(y.grad, expected[1])
    assert not dispatched
    asked = []

    def policy(context, function, *args, **kwargs):
        asked.append(function)
        return CheckpointPolicy.PREFER_RECOMPUTE

    x.grad = y.grad = None
    checkpoint(run, x, y, use_reentrant=False,
               context_fn=lambda: create_selective_checkpoint_contexts(policy)).backward()
    assert sphere_product_op.registered in asked and torch.equal(x.grad, expected[0])


def test_saved_tensors_hooks(dispatched):
    x, y = draw(3, 4).requires_grad_(), draw(3, 4).requires_grad_()
    packed, unpacked = [], []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (packed.append(t), t.clone())[1],
                                                  lambda t: (unpacked.append(t), t)[1]):
        z = sphere_product(x, y, table=TABLE)
    found = torch.autograd.grad(z.sum(), (x, y))
    expected = torch.autograd.grad(sphere_product(x, y, table=TABLE).sum(), (x, y))
    assert len(packed) == len(unpacked) == 3 and all(map(torch.equal, found, expected))  # x, y, the table
    assert not dispatched


def test_a_tensor_changed_in_place_after_the_call_is_an_error():
    x, y = draw(3, 4).requires_grad_(), draw(3, 4)
    z = sphere_product(x, y, table=TABLE)
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_nothing_is_kept():
    """No cycle: without the garbage collector everything is gone with the last name for it."""
    gc.collect()
    gc.disable()
    try:
        x, y = draw(3, 4).requires_grad_(), draw(3, 4).requires_grad_()
        z = sphere_product(x, y, table=TABLE)
        [g] = torch.autograd.grad(z.sin().sum(), x, create_graph=True)
        g.sum().backward()
        kept = [weakref.ref(t) for t in (x, y, z, g, z.grad_fn)]
        del x, y, z, g
        assert [r() for r in kept] == [None] * 5
    finally:
        gc.enable()


ALIKE = {
    "another table": lambda x, y: sphere_product(x, y, table=sphere_table((1, 1), 2)),
    "another form of the table": lambda x, y: sphere_product(x, y, table=sphere_table((1, 1), 1, form="dense")),
    "another layout": lambda x, y: sphere_product(x.repeat(1, 2), y.repeat(1, 2), table=TABLE, layout="ir_mul"),
    "other rows": lambda x, y: sphere_product(x[:2], y[:2], table=TABLE),
    "one row for all": lambda x, y: sphere_product(x, y[:1], table=TABLE),
    "more channels": lambda x, y: sphere_product(x.repeat(1, 3), y, table=TABLE),
    "another dtype": lambda x, y: sphere_product(x.float(), y.float(), table=TABLE),
    "another backend": lambda x, y: sphere_product(x, y, table=TABLE, backend="reference"),
    "strides": lambda x, y: sphere_product(x.T.contiguous().T, y.T.contiguous().T, table=TABLE),
    "no grad": lambda x, y: sphere_product(x.detach(), y, table=TABLE),
    "gradients": lambda x, y: torch.cat(torch.autograd.grad(sphere_product(x, y, table=TABLE).sin().sum(), (x, y))),
    "one gradient": lambda x, y: torch.autograd.grad(sphere_product(x, y, table=TABLE).sin().sum(), y)[0],
}


@pytest.mark.parametrize("alike", ALIKE)
def test_what_ran_before_has_no_part_in_a_call(alike, monkeypatch):
    def run():
        x, y = draw(3, 4).requires_grad_(), draw(3, 4).requires_grad_()
        return ALIKE[alike](x, y)

    for op in (sphere_product_op, sphere_product_bwd):
        monkeypatch.setattr(op, "_runs", {})
    expected = run()
    for other in ALIKE.values():
        other(draw(3, 4).requires_grad_(), draw(3, 4).requires_grad_())
    kinds = len(sphere_product_op._runs), len(sphere_product_bwd._runs)
    again = run()
    assert again.dtype == expected.dtype and torch.equal(again, expected)
    assert kinds == (len(sphere_product_op._runs), len(sphere_product_bwd._runs))  # nothing was checked again


REFUSED = {
    "rows": (lambda x, lists: (x[:2], *lists, "auto"), "x must be"),
    "dtype": (lambda x, lists: (x.int(), *lists, "auto"), "must be float32 or float64"),
    "dimensions": (lambda x, lists: (x[None], *lists, "auto"), "must be"),
    "lists of another dtype": (lambda x, lists: (x, *(t.int() for t in lists), "auto"), "index must be int64"),
    "a device": (lambda x, lists: (x, *(t.to("meta") for t in lists), "auto"), None),
    "a backend": (lambda x, lists: (x, *lists, "cuda9"), "backend must be one of"),
}


@pytest.mark.parametrize("refused", REFUSED)
def test_bad_input_after_good_is_refused(refused):
    x = draw(3, 4)
    arguments, message = REFUSED[refused]
    for _ in range(2):
        segment_sum_op(x, *LISTS, "auto")
        with pytest.raises((ValueError, RuntimeError, NotImplementedError), match=message):
            segment_sum_op(*arguments(x, LISTS))


def test_numbers_that_are_equal_are_not_alike(dispatched):
    """1 == 1.0 == True, but the dispatcher takes one of them."""
    p, (table, grid, slots) = draw(2, 3, 4), TABLE.on("cpu")
    vn_leaky_relu_op(p, p, None, None, None, None, 1.0, 0.0, "auto")
    vn_leaky_relu_op(p, p, None, None, None, None, 1, 0, "auto")
    assert dispatched == ["vn_leaky_relu"]
    given = draw(2, 4), draw(2, 4), None, None, None, None, table, grid
    sphere_product_op(*given, slots, False, "auto")
    with pytest.raises(RuntimeError, match="slots"):
        sphere_product_op(*given, tuple(map(float, slots)), False, "auto")


def test_a_constant_that_requires_grad_is_refused_after_one_that_does_not():
    x = [torch.zeros(2, dtype=torch.float64) for _ in range(4)]
    arguments = *x, torch.zeros(len(ROWS), 2, dtype=torch.float64), *Rule(), "auto"
    dual_update_op(*arguments)
    x[1].requires_grad_()
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(ValueError, match="grad must be a constant"):
            dual_update_op(*arguments)


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(segment_sum_op, "_runs", {})
    for columns in range(MOST + 10):
        segment_sum_op(draw(3, columns), *LISTS, "auto")
        assert 0 < len(segment_sum_op._runs) <= MOST


@pytest.mark.parametrize("case", TINY, ids=repr)
def test_no_tensor_is_remembered(case):
    inputs = cast(case.inputs(generator()), case, torch.float64)
    leaves = [inputs[n] for n in case.differentiable if inputs[n] is not None]
    kept = [weakref.ref(x) for x in leaves or inputs.values() if isinstance(x, torch.Tensor) and x.is_floating_point()]
    smooth = [o.sum() for o in as_list(case.op(*inputs.values(), BACKEND)) if o.requires_grad]
    if smooth:
        torch.autograd.grad(smooth, leaves, allow_unused=True)
    del inputs, leaves, smooth
    gc.collect()
    assert kept and not [r for r in kept if r() is not None]


def test_threads_have_modes_of_their_own(dispatched):
    x = draw(3, 4)
    with Calls() as calls:
        thread = threading.Thread(target=segment_sum_op, args=(x, *LISTS, "auto"))
        thread.start()
        thread.join()
    assert not calls.own and not dispatched


WRONG = {
    "a list for a tensor": (segment_sum_op, ([[1.0]], *LISTS, "auto")),
    "an array": (segment_sum_op, (numpy.ones((3, 4)), *LISTS, "auto")),
    "no tensor": (segment_sum_op, (None, *LISTS, "auto")),
    "a backend that is no text": (segment_sum_op, (torch.ones(3, 4), *LISTS, 3)),
    "too few": (segment_sum_op, (torch.ones(3, 4), *LISTS)),
    "too many": (segment_sum_op, (torch.ones(3, 4), *LISTS, "auto", 1)),
    "a float for an int": (knn_op, (torch.ones(3, 2), torch.tensor([0, 3]), 3, 1.5, True, "auto")),
    "a text in a list": (sphere_product_bwd, (*[torch.ones(2, 4)] * 3, *[None] * 4, *TABLE.on("cpu")[:2], ["a"] * 15,
                                              False, [True] * 6, "auto")),
    "an integer dtype": (segment_sum_op, (torch.ones(3, 4, dtype=torch.int32), *LISTS, "auto")),
    "another number of rows": (segment_sum_op, (torch.ones(4, 4), *LISTS, "auto")),
    "an unknown backend": (segment_sum_op, (torch.ones(3, 4), *LISTS, "cuda9")),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_errors_are_those_of_the_dispatcher(wrong):
    op, arguments = WRONG[wrong]
    errors = []
    for call in (op, op.registered):
        with pytest.raises((RuntimeError, ValueError, AttributeError)) as error:
            call(*arguments)
        errors.append((type(error.value), str(error.value)))
    assert errors[0] == errors[1]


def test_arguments_that_the_dispatcher_converts(dispatched):
    p = draw(2, 3, 4)
    given = p, p, None, None, None, None
    expected = vn_leaky_relu_op(*given, 1.0, 0.0, "auto")
    assert not dispatched
    assert torch.equal(vn_leaky_relu_op(*given, 1, 0, "auto"), expected)
    assert torch.equal(vn_leaky_relu_op(*given, 1.0, slope=0.0, backend="auto"), expected)
    assert torch.equal(knn_op(p[0], torch.tensor([0, 3]), 3, numpy.int64(1), True, "auto"),
                       knn_op(p[0], torch.tensor([0, 3]), 3, 1, True, "auto"))
    assert dispatched == ["vn_leaky_relu", "vn_leaky_relu", "knn"]


def test_an_operator_without_a_derivative(dispatched):
    x = draw(3, 2).requires_grad_()
    with torch.no_grad():
        plain = knn_op(x, torch.tensor([0, 3]), 3, 1, True, "auto")
    assert not dispatched
    assert torch.equal(knn_op(x, torch.tensor([0, 3]), 3, 1, True, "auto"), plain) and dispatched == ["knn"]


def test_one_gradient_is_not_asked_for(dispatched):
    """With one differentiable input there is nothing to find out; with two each pass says which it wants."""
    x, y = draw(3, 4).requires_grad_(), draw(3, 4)
    z = sphere_product(x, y, table=TABLE)
    for _ in range(2):
        torch.autograd.grad(z.sum(), x, retain_graph=True)
    z.sum().backward()
    assert x.grad.shape == x.shape and not dispatched


def test_what_is_registered_has_the_name():
    assert segment_sum_bwd.name == "segment_sum_bwd"
    assert segment_sum_bwd.registered is torch.ops.ace_fast.segment_sum_bwd.default
