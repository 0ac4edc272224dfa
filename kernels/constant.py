"""Tensors that belong to no module and are needed where inputs are."""

import torch
from torch import Tensor


class Constant:
    """A tensor that is made on the CPU and needed where inputs are: no buffer, untouched by `.to(dtype)`."""

    def __init__(self, value: Tensor):
        self._on = {"cpu": value}

    def on(self, device: torch.device) -> Tensor:
        """The tensor, moved once per device."""
        key = str(device)
        if key not in self._on:
            with torch.inference_mode(False):
                self._on[key] = self._on["cpu"].to(device)
        return self._on[key]

    def __getstate__(self):
        return {"_on": {"cpu": self._on["cpu"]}}
