"""How a registered operator is called from Python: straight, wherever the dispatcher would only pass the call on.

Through the dispatcher a call goes from Python to C++ and back for each of its keys, and all arguments are converted
each time: for autograd, for the implementation, and both again for the gradient.
"""

import operator
from collections.abc import Callable

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch.autograd import forward_ad, profiler
from torch.compiler import is_compiling

# an argument's type in a schema -> what the dispatcher hands on as it is
_TYPES = {"Tensor": (Tensor, torch.nn.Parameter), "int": (int,), "float": (float,), "bool": (bool,), "str": (str,),
          "List[int]": (tuple, list), "List[bool]": (tuple, list)}
_ELEMENTS = {"List[int]": int, "List[bool]": bool}
_form = operator.attrgetter("shape", "dtype")
_keys_of, _any_requires_grad = torch._C._dispatch_keys, torch._C._any_requires_grad
_included, _excluded = torch._C._dispatch_tls_local_include_set, torch._C._dispatch_tls_local_exclude_set
_function_mode = torch._C._is_torch_function_mode_enabled


MOST = 256  # kinds of arguments that an operator remembers


def _remember(where: dict, key, value) -> None:
    if len(where) >= MOST:
        where.clear()
    where[key] = value


def _bits(*keys: DispatchKey) -> int:
    bits = 0
    for key in keys:
        bits |= torch._C.DispatchKeySet(key).raw_repr()
    return bits


_PASSED = _bits(DispatchKey.BackendSelect, DispatchKey.ADInplaceOrView)  # keys for which our operators have no kernel
_AUTOGRAD = {_bits(DispatchKey.CPU, DispatchKey.AutogradCPU), _bits(DispatchKey.CUDA, DispatchKey.AutogradCUDA)}
_BELOW = {_bits(DispatchKey.CPU), _bits(DispatchKey.CUDA)}  # autograd is excluded: inference mode, within an operator
_PLAIN = _AUTOGRAD | _BELOW
_ON_CUDA = {_bits(DispatchKey.CUDA, DispatchKey.AutogradCUDA), _bits(DispatchKey.CUDA)}


class Operator:
    """A registered operator, called from Python like the function that torch.library makes of it, to the same effect.

    The dispatcher looks at keys: those of the tensors, with what the thread adds and excludes. Where these say autograd
    and dense tensors on the CPU or on CUDA, and nothing else, it would run the operator's rule and its implementation,
    and they are called from here. What wants to see a call or to change it has a key of its own (dispatch modes, fake
    tensors, transforms of torch.func, autocast, tracing, ...) and finds the call in the dispatcher. So does what no key
    tells of: Dynamo, `__torch_function__` of subclasses and modes, forward-mode derivatives, the profiler, and
    arguments that the dispatcher would convert or refuse.

    Attributes:
        name: the one in the schema, without the namespace.
        registered: the operator in torch.ops, for what takes nothing else, such as torch.library.opcheck.
    """

    def __init__(self, registered: torch._ops.OpOverload, choose: Callable, rule: Callable | None = None):
        """`choose` as in `define`; `rule(run, arguments)` is run(arguments) with its derivative, where it has one."""
        schema = registered._schema
        self.registered, self.name = registered, schema.name.split("::")[1]
        self._choose, self._several, self._rule = choose, len(schema.returns) > 1, rule
        kinds = [str(a.type) for a in schema.arguments]
        # an operator that writes to an argument, or takes a list of tensors, is left to the dispatcher
        self._takes = [() if a.alias_info else _takes(kind) for a, kind in zip(schema.arguments, kinds, strict=True)]
        self._known: set[tuple[type, ...]] = set()  # types of arguments that were taken
        self._runs: dict[tuple, Callable] = {}  # what `choose` found, by all that it may read
        self._tensors = [i for i, kind in enumerate(kinds) if kind in ("Tensor", "Optional[Tensor]")]
        # with the tuples that were there: tables are made once
        self._lists = [(i, _ELEMENTS[kind], {}) for i, kind in enumerate(kinds) if kind in _ELEMENTS]
        self._others = [i for i, kind in enumerate(kinds) if i not in self._tensors and kind not in _ELEMENTS]

    def __call__(self, *arguments, **named):
        if (is_compiling() or named or _function_mode() or profiler._is_profiler_enabled
                or forward_ad._current_level >= 0 or not self._fits(arguments)):
            return self.registered(*arguments, **named)
        keys, read = _included().raw_repr(), []
        for i in self._tensors:
            if (x := arguments[i]) is None:
                read.append(None)
            else:
                keys |= _keys_of(x).raw_repr()
                read.append(_form(x))
        keys &= ~(_excluded().raw_repr() | _PASSED)
        read.append(requires_grad := _any_requires_grad(*arguments))
        recorded = requires_grad and keys in _AUTOGRAD and torch.is_grad_enabled()
        if keys not in _PLAIN or recorded and self._rule is None:
            return self.registered(*arguments)
        if keys in _ON_CUDA:
            read += [x.device for x in arguments if isinstance(x, Tensor)]
        run = self._run(read, arguments)
        return self._rule(run, arguments) if recorded else run(arguments)

    def _run(self, read: list, arguments: tuple) -> Callable:
        """What `choose` finds for arguments whose tensors are as `read` says; asked for once."""
        for i in self._others:
            read.append(arguments[i])
        for i, _, _ in self._lists:
            read.append(tuple(arguments[i]))
        run = self._runs.get(key := tuple(read))
        if run is None:
            compute, several = self._choose(*arguments), self._several

            def run(arguments):
                found = compute(*arguments[:-1])
                return tuple(found) if several else found

            _remember(self._runs, key, run)
        return run

    def _fits(self, arguments: tuple) -> bool:
        """The dispatcher would hand on all arguments as they are."""
        types = tuple(map(type, arguments))
        if types not in self._known:
            if len(types) != len(self._takes) or not all(map(tuple.__contains__, self._takes, types)):
                return False
            self._known.add(types)
        for i, kind, seen in self._lists:
            values = arguments[i]
            if seen.get(id(values)) is not values:
                if list(map(type, values)).count(kind) != len(values):
                    return False
                if type(values) is tuple:
                    _remember(seen, id(values), values)
        return True


def _takes(kind: str) -> tuple[type, ...]:
    if kind.startswith("Optional["):
        return *_takes(kind[len("Optional["):-1]), type(None)
    return _TYPES.get(kind, ())
