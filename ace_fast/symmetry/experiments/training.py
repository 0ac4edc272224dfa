"""Training that ends with the weights of the best epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def train_best(model: nn.Module, config: Mapping[str, Any], batches: Callable[[int], Iterable],
               loss: Callable[[Any], Tensor], validate: Callable[[], tuple[float, str]],
               progress: Callable[[str], None]) -> None:
    """Trains with Adam; leaves the model as it was after the epoch whose validation was least.

    Args:
        model: changed in place.
        config: its "epochs" and "lr".
        batches: of epoch 1, 2, ...
        loss: of a batch.
        validate: what is to be least, and words on it for progress.
        progress: takes a line after every epoch.

    Raises:
        ValueError: no epoch has a validation that is finite.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=config["lr"])
    best, kept, found = float("inf"), None, float("nan")
    for epoch in range(1, config["epochs"] + 1):
        for batch in batches(epoch):
            optimizer.zero_grad()
            loss(batch).backward()
            optimizer.step()
        found, words = validate()
        if found < best:
            best, kept = found, {name: x.clone() for name, x in model.state_dict().items()}
        progress(f"epoch {epoch}/{config['epochs']}: {words}")
    if kept is None:
        raise ValueError(f"symmetry: the validation loss must be finite after one epoch at least, got {found} after "
                         f"all {config['epochs']}; lower --lr, which is {config['lr']}")
    model.load_state_dict(kept)
