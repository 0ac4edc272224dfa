"""Tensors that belong to no module and are needed where inputs are."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def plainly() -> Iterator[None]:
    """Tensors made within outlive the modes in which they are made: inference, transforms of torch.func."""
    with torch.inference_mode(False), torch._C._DisableFuncTorch():
        yield


class Constant:
    """A tensor that is made on the CPU and needed where inputs are: no buffer, untouched by `.to(dtype)`."""

    def __init__(self, value: Tensor):
        self._on = {"cpu": value}

    def on(self, device: torch.device) -> Tensor:
        """The tensor, moved once per device."""
        key = str(device)
        if key not in self._on:
            with plainly():
                self._on[key] = self._on["cpu"].to(device)
        return self._on[key]

    def __getstate__(self):
        return {"_on": {"cpu": self._on["cpu"]}}
