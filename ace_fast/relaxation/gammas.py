"""Whose gammas they are: where they are found, that one owner has each, and checks that owners share."""

import math
import numbers
import weakref
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from .gate_networks import is_gamma

live: "weakref.WeakSet" = weakref.WeakSet()  # the owners of gammas there are; each has `_held()`


def check_free(held: Mapping[str, object], owner: str = "ACE") -> None:
    """Raises ValueError where another owner holds a gamma, or a network that computes gates; `held` by name."""
    for other in list(live):
        theirs = {id(thing) for thing in other._held()}
        for name, thing in held.items():
            if id(thing) in theirs:
                raise ValueError(f"{owner}: gamma {name!r} must belong to one {type(other).__name__}, got a second "
                                 "one; step the first, or call its release() before making another")


def in_range(value: object, least: float = -math.inf, above: float = -math.inf, below: float = math.inf) -> bool:
    """Whether it is a number, and finite, at least `least`, more than `above` and less than `below`."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not math.isfinite(value):
        return False
    return value >= least and above < value < below


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([x.reshape(-1) for x in tensors])


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"ACE: {name} must be one of {list(allowed)}, got {value!r}")


def same_keys(name: str, got: dict, own: dict, owner: str = "ACE") -> None:
    if not isinstance(got, dict):
        raise ValueError(f"{owner}: {name} must be a dict, got {type(got).__name__}; give what ace.state_dict() "
                         "returned")
    for what, wrong in (("none of", [key for key in own if key not in got]),
                        ("the unknown", [key for key in got if key not in own])):
        if wrong:
            raise ValueError(f"{owner}: {name} must have the keys {list(own)}, got {what} {wrong}; "
                             "give what ace.state_dict() returned")


def shaped(name: str, value: Tensor, like: Tensor) -> Tensor:
    if value.shape != like.shape:
        raise ValueError(f"ACE: {name} must be {list(like.shape)}, got {list(value.shape)}")
    return value


def find_gammas(model: nn.Module, given: Iterable[nn.Parameter] | None = None,
                owner: str = "ACE") -> dict[str, nn.Parameter]:
    """{name: parameter}: `given`, the model's own list, or scalars whose name says gamma in its last two parts."""
    parameters = dict(model.named_parameters())
    if given is None and hasattr(model, "get_gammas"):
        given = model.get_gammas()
    if given is None:
        found = {name: p for name, p in parameters.items() if is_gamma(name, p)}
    else:
        names = {id(p): name for name, p in parameters.items()}
        found = {}
        for gamma in given:
            if id(gamma) not in names:
                raise ValueError(f"{owner}: gammas must be parameters of the model, got a {type(gamma).__name__} "
                                 f"{list(gamma.shape)} that is none; register it in the model first")
            found[names[id(gamma)]] = gamma
    if not found:
        raise ValueError(f"{owner}: model must have gammas, got none; build it with relaxed=True, or pass gammas=[...]")
    first = next(iter(found.values()))
    for name, gamma in found.items():
        if gamma.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{owner}: gamma {name!r} must be float32 or float64, got {gamma.dtype}; autocast the "
                             "model instead of casting it")
        if gamma.dtype != first.dtype or gamma.device != first.device:
            raise ValueError(f"{owner}: gamma {name!r} must be {first.dtype} on {first.device} like the others, got "
                             f"{gamma.dtype} on {gamma.device}; move the model as a whole")
    return found
