"""Steps of a GPU as replays of CUDA graphs: what is timed is kernels, not their launches, the same for all versions."""

import contextlib
from collections.abc import Callable

import torch

from .steps import graphed


def replays(steps: dict[str, Callable[[], object]], device: str | torch.device
            ) -> tuple[dict[str, Callable[[], object]], str]:
    """The steps captured, and "". On a CPU, or where one of them cannot be captured, all as they are, and why.

    The captures share their memory, so no result may be read. A step that stands under two names is captured once.
    """
    if torch.device(device).type != "cuda":
        return steps, "a CPU has no graphs"
    pool, made = torch.cuda.graph_pool_handle(), {}
    for name, step in steps.items():
        if step in made:
            continue
        try:
            made[step] = _capture(step, pool)
        except Exception as error:  # whatever the version does that a capture forbids
            _abandon(pool)
            return steps, f"{name}: {said(error)}"
    return {name: made[step] for name, step in steps.items()}, ""


def said(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {''.join(str(error).strip().splitlines()[:1])}"[:300]


def _abandon(pool: tuple[int, int]) -> None:
    """A capture that failed leaves its memory open, and torch frees none from then on."""
    with contextlib.suppress(RuntimeError):
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)


def _capture(step: Callable[[], object], pool: tuple[int, int]) -> Callable[[], object]:
    def alone() -> None:  # the result would keep its memory from the next capture
        step()

    return graphed(alone, pool=pool)
