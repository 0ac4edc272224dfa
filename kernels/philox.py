"""Random numbers that depend on a seed and a counter alone, the same on every backend: Philox4x32-10, in plain PyTorch.

Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (2011). In C++ it is `philox.h`, in Triton
`tl.philox`.
"""

import operator

import torch
from torch import Tensor

from .define import fail

_WORD = 0xFFFFFFFF
_MULTIPLY, _GROW = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)


def _product(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low word of the product of two words; int64 holds 63 bits, so in halves."""
    low, high = a * (b & 0xFFFF), a * (b >> 16)
    middle = (low >> 16) + high
    return middle >> 16, (middle & 0xFFFF) << 16 | low & 0xFFFF


def philox(seed: Tensor, rows: int, stream: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words of 32 bits for every seed and row.

    Args:
        seed: [K] int64, the key.
        rows: the counters 0..rows - 1, words 0 and 1.
        stream: word 2 of the counter; what is drawn for two purposes takes two of them.

    Returns:
        Four tensors [K, rows] int64 in 0..2^32 - 1.
    """
    row = torch.arange(rows, device=seed.device).expand(seed.shape[0], rows)
    c0, c1 = row & _WORD, row >> 32
    c2, c3 = torch.full_like(c0, stream), torch.zeros_like(c0)
    k0, k1 = seed[:, None] & _WORD, seed[:, None] >> 32 & _WORD
    for _ in range(10):
        (high0, low0), (high1, low1) = _product(_MULTIPLY[0], c0), _product(_MULTIPLY[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + _GROW[0] & _WORD, k1 + _GROW[1] & _WORD
    return c0, c1, c2, c3


def uniform(word: Tensor, dtype: torch.dtype) -> Tensor:
    """Words of `philox` as multiples of 2^-24 in [0, 1), exact in float32 and float64 alike."""
    return (word >> 8).to(dtype) * 2.0**-24


def seeds(op: str, seed: int | Tensor, device: torch.device) -> Tensor:
    """[K] int64 on `device`, of a number or of a tensor [] or [K].

    Raises:
        ValueError: anything else.
    """
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.dim() > 1:
            fail(op, "seed", "a whole number, or int64 [K]", f"{seed.dtype} {list(seed.shape)}")
        return seed.to(device).reshape(-1)
    if isinstance(seed, bool) or not hasattr(seed, "__index__") or not -(2**63) <= operator.index(seed) < 2**63:
        fail(op, "seed", "a whole number of 64 bits, or int64 [K]", repr(seed))
    return torch.full((1,), operator.index(seed), dtype=torch.int64, device=device)
