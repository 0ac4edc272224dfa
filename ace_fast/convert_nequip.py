"""NequIP's gather, tensor product and sum (`TensorProductScatter`), recognised by structure, replaced by one operator.

NequIP's InteractionBlock before 0.12 does gather and sum in its own forward: there convert_e3nn replaces its product,
Linears and self-connection, and the block stays.
"""

import torch
from e3nn import o3
from torch import Tensor, nn

from . import convert_e3nn
from .nn import TensorProductConv

# what NequIP's module is known to hold besides its product
_KNOWN = ("feature_irreps_in", "irreps_edge_attr", "irreps_mid", "instructions", "model_dtype")
_PLAIN = frozenset(vars(nn.Module()))


class TensorProductScatter(nn.Module):
    """NequIP's module of this name on `tensor_product_conv`: no edge features are formed.

    Attributes:
        tp: the product with its paths, under NequIP's name, so that checkpoints fit.
    """

    def __init__(self, like: nn.Module, backend: str):
        super().__init__()
        for key in _KNOWN:
            if key in vars(like):
                setattr(self, key, getattr(like, key))
        self.tp = TensorProductConv.from_e3nn(like.tp, backend)
        self.train(like.training)

    def forward(self, x: Tensor, edge_attr: Tensor, edge_weight: Tensor, edge_dst: Tensor, edge_src: Tensor) -> Tensor:
        """x [N, feature_irreps_in.dim], edge_attr [E, ...], edge_weight [E, n] -> [N, irreps_mid.dim]."""
        return self.tp(x, edge_attr, edge_weight, torch.stack([edge_src, edge_dst]))


def of_interest(module: nn.Module) -> bool:
    """Whether it bears the name and has the product of NequIP's module, or is ours."""
    return type(module).__name__ == "TensorProductScatter" and "tp" in module._modules


def is_ours(module: nn.Module) -> bool:
    return type(module) is TensorProductScatter


def way(module: nn.Module) -> str:
    """What to do with a model that is itself such a module."""
    return "put it into a torch.nn.Sequential"


def describe(module: nn.Module) -> str:
    """Name and irreps."""
    irreps = [getattr(module.tp, f"irreps_{slot}", "?") for slot in ("in1", "in2", "out")]
    return f"{type(module).__name__} {irreps[0]} x {irreps[1]} -> {irreps[2]}"


def why_not(module: nn.Module) -> str:
    """Why this module stays as it is; empty where it can be replaced."""
    if is_ours(module):
        return "it is converted already"
    usual = _PLAIN | {*_KNOWN, "tp"}
    if lost := convert_e3nn.would_be_lost(module, usual):
        return lost
    if type(module.tp) is not o3.TensorProduct:
        return f"its tp is {type(module.tp).__name__}; it must be e3nn.o3.TensorProduct"
    if module.tp.shared_weights:
        return "its tp must have shared_weights=False"
    why = convert_e3nn.why_not(module.tp)
    return f"its tp: {why}" if why else ""


def replacement(module: nn.Module, backend: str) -> nn.Module:
    """Ours in place of `module`."""
    return TensorProductScatter(module, backend)


def changed_since(new: nn.Module) -> str:
    """What of a replacement its original would not have; else empty."""
    return convert_e3nn.would_be_lost(new, _PLAIN | {*_KNOWN, "tp", "_converted_from"})


def put_back(new: nn.Module, old: nn.Module) -> None:
    """Gives `old` the present buffers of its replacement, and the training flag."""
    convert_e3nn.put_back(new.tp, old.tp)
    old.train(new.training)
