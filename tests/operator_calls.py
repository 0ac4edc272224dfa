"""Which operators run."""

from torch.utils._python_dispatch import TorchDispatchMode


class Calls(TorchDispatchMode):
    """What runs within, forward and backward.

    Attributes:
        names: of every operator, with its overload: "aten.add.Tensor".
        own: (name, arguments) of every operator of ace_fast, without namespace and overload.
    """

    def __init__(self):
        super().__init__()
        self.names, self.own = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        if func.namespace == "ace_fast":
            self.own.append((func.__name__.split(".")[0], args))
        return func(*args, **kwargs or {})
