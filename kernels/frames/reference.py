"""Principal axes of point sets; frames of predicted vectors, and what they turn beside features: in plain PyTorch."""

import math

import torch
from e3nn import o3
from torch import Tensor

from ..philox import philox, uniform

FRAMES, CONCAT = 0, 1  # Philox's streams
ENOUGH = 0.5  # of a random axis across those before: one of three always has it


def owners(ptr: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """The set [rows] that owns each row, and whether one does."""
    row = torch.arange(rows, device=ptr.device)
    owner = torch.searchsorted(ptr[1:].contiguous(), row, right=True)
    known = owner < ptr.shape[0] - 1
    owner = owner.clamp(max=max(ptr.shape[0] - 2, 0))
    return owner, known & (row >= ptr[0])


def set_sums(x: Tensor, ptr: Tensor) -> Tensor:
    """x [..., N, C] -> [..., B, C], over the rows of each set."""
    owner, known = owners(ptr, x.shape[-2])
    slot = torch.where(known, owner, ptr.shape[0] - 1)
    return x.new_zeros(*x.shape[:-2], ptr.shape[0], x.shape[-1]).index_add(-2, slot, x)[..., :-1, :]


def random_axes(seed: Tensor, rows: int, stream: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Haar-distributed rotations [K, rows, 3, 3] from a random quaternion, and random signs [K, rows]."""
    words = philox(seed, rows, stream)
    u, v, w = (uniform(word, dtype) for word in words[:3])
    a, b = (1 - u).sqrt(), u.sqrt()
    x, y = a * (2 * math.pi * v).sin(), a * (2 * math.pi * v).cos()
    z, r = b * (2 * math.pi * w).sin(), b * (2 * math.pi * w).cos()
    turn = torch.stack([
        1 - 2 * (y * y + z * z), 2 * (x * y - z * r), 2 * (x * z + y * r),
        2 * (x * y + z * r), 1 - 2 * (x * x + z * z), 2 * (y * z - x * r),
        2 * (x * z - y * r), 2 * (y * z + x * r), 1 - 2 * (x * x + y * y)], -1).unflatten(-1, (3, 3))
    return turn, 1 - 2 * (words[3] >> 31).to(dtype)


# Principal axes.


def moments(pos: Tensor, weight: Tensor | None, ptr: Tensor, centred: bool) -> tuple[Tensor, Tensor]:
    """Centroids [B, 3], zeros unless centred, and second moments about them [B, 3, 3]; zero for sets without weight."""
    owner, _ = owners(ptr, pos.shape[0])
    weight = pos.new_ones(pos.shape[0], 1) if weight is None else weight[:, None]
    total = set_sums(weight, ptr)
    total = torch.where(total == 0, 1, total)
    centroid = set_sums(weight * pos, ptr) / total
    centroid = centroid if centred else torch.zeros_like(centroid)
    local = pos - centroid[owner] if len(centroid) else pos
    second = set_sums((weight * local)[:, :, None].mul(local[:, None]).flatten(1), ptr) / total
    return centroid, second.unflatten(1, (3, 3))


def _signed(axes: Tensor) -> Tensor:
    """Columns whose largest component is positive, but the third, which makes them right-handed."""
    largest = axes.abs().argmax(-2, keepdim=True)
    a, b, _ = (axes * axes.gather(-2, largest).sign()).unbind(-1)
    return torch.stack([a, b, torch.linalg.cross(a, b)], -1)


def forward(pos: Tensor, weight: Tensor | None, ptr: Tensor, seed: Tensor | None, centred: bool,
            tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """pos [N, 3], weight [N], ptr [B + 1], seed [1] -> centroid [B, 3], values [B, 3] ascending, axes [B, 3, 3].

    With a seed, the axes of values that differ by at most tolerance times the largest, or by what rounding leaves of n
    coincident points at c, ((n + 16) eps |c|)^2, are a random basis of theirs. Sets with a number that is not finite
    are NaN.
    """
    centroid, second = moments(pos, weight, ptr, centred)
    finite = second.isfinite().flatten(1).all(1)[:, None, None]
    values, axes = torch.linalg.eigh(torch.where(finite, second, 0))
    axes = _signed(axes)
    if seed is not None:
        one, two, three = values.unbind(1)
        part = torch.finfo(pos.dtype).eps * (ptr.diff().clamp(0, len(pos)) + 16)
        same = torch.maximum(tolerance * three, part**2 * centroid.square().sum(1))
        low, high = two - one <= same, three - two <= same
        turn, _ = random_axes(seed, len(values), FRAMES, pos.dtype)
        turn, angle = turn[0], 2 * math.pi * uniform(philox(seed, len(values), FRAMES)[0][0], pos.dtype)
        cos, sin, zero, unit = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
        first = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, unit], 1).unflatten(1, (3, 3))
        last = torch.stack([unit, zero, zero, zero, cos, -sin, zero, sin, cos], 1).unflatten(1, (3, 3))
        within = torch.where(low[:, None, None], first, last)
        within = torch.where((low & high)[:, None, None], turn, within)
        axes = torch.where((low | high)[:, None, None], axes @ within, axes)
    nan = torch.full_like(axes, torch.nan)
    return centroid, torch.where(finite[..., 0], values, nan[..., 0]), torch.where(finite, axes, nan)


# Frames of predicted vectors.


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1, keepdim=True)


def _length(x: Tensor) -> Tensor:
    return _dot(x, x).sqrt()


def _unit(x: Tensor) -> Tensor:
    return x / _length(x)


def _across(x: Tensor, axis: Tensor) -> Tensor:
    """The part of x [..., 3] across the unit vector; twice is enough."""
    for _ in range(2):
        x = x - _dot(x, axis) * axis
    return x


def _first(enough: Tensor) -> Tensor:
    """The number of the first that has enough [..., n]."""
    return enough.to(torch.uint8).argmax(-1)


def _take(candidates: Tensor, at: Tensor) -> Tensor:
    return candidates.gather(-2, at[..., None, None].expand(*at.shape, 1, 3))[..., 0, :]


def _choices(vectors: Tensor, seed: Tensor, improper: bool, tolerance: float):
    """The candidates [K, B, n + 3, 3] of `gram_schmidt`, the numbers [K, B] of the first and the second that it takes,
    on which side the third is, 1 or -1 [K, B], and which frames are finite."""
    count, draws = vectors.shape[1], seed.shape[0]
    turn, sign = random_axes(seed, len(vectors), CONCAT, vectors.dtype)
    if improper:
        turn = torch.cat([turn[..., :2], turn[..., 2:] * sign[..., None, None]], -1)
    candidates = torch.cat([vectors.expand(draws, *vectors.shape), turn.mT], 2)
    with torch.no_grad():
        lengths = candidates.square().sum(-1).sqrt()  # [K, B, n + 3]
        least = (tolerance * lengths[..., :count].amax(-1, keepdim=True).clamp(min=1)).expand_as(lengths[..., :count])
        least = torch.cat([least, torch.full_like(lengths[..., :3], ENOUGH)], -1)
        first = _first(lengths > least)
        one = _unit(_take(candidates, first))[..., None, :]
        second = _first(_across(candidates, one).square().sum(-1).sqrt() > least)
        two = _unit(_across(_take(candidates, second), one[..., 0, :]))
        off = (candidates * torch.linalg.cross(one[..., 0, :], two)[..., None, :]).sum(-1)
        side = off.gather(-1, _first(off.abs() > least)[..., None])[..., 0].sign()
    side = side if improper else torch.ones_like(side)
    return candidates, first, second, side, lengths.square().sum(-1).isfinite()


def gram_schmidt(candidates: Tensor, first: Tensor, second: Tensor, side: Tensor, finite: Tensor) -> Tensor:
    """`_choices` of vectors [B, n, 3] and seed [K] -> orthonormal columns [K, B, 3, 3], right-handed unless improper.

    Candidates are the vectors, then three random axes (improper: of either handedness). The first longer than the least
    length is axis 1, the first with more than that across it axis 2, and axis 3 is across both: improper, on the side
    of the first candidate with more than that off their plane, else right-handed. The least length is the tolerance
    times the longest vector, at least 1; of random axes it is `ENOUGH`.
    """
    one = _unit(_take(candidates, first))
    two = _unit(_across(_take(candidates, second), one))
    three = side[..., None] * torch.linalg.cross(one, two)
    return torch.where(finite[..., None, None], torch.stack([one, two, three], -1), torch.nan)


def gram_schmidt_backward(g: Tensor, candidates: Tensor, first: Tensor, second: Tensor, side: Tensor) -> Tensor:
    """g [K, B, 3, 3] of the columns -> the gradient of the vectors [B, n, 3] among the candidates."""
    a, b = _take(candidates, first), _take(candidates, second)
    one, off = _unit(a), _across(b, _unit(a))
    two = _unit(off)
    g_one, g_two, g_three = g.unbind(-1)
    g_three = side[..., None] * g_three
    g_one = g_one + torch.linalg.cross(two, g_three)
    g_off = _across(g_two + torch.linalg.cross(g_three, one), two) / _length(off)
    g_one = g_one - _dot(b, one) * g_off - _dot(g_off, one) * b
    g_a, g_b = _across(g_one, one) / _length(a), _across(g_off, one)
    found = torch.zeros_like(candidates)
    for at, part in ((first, g_a), (second, g_b)):
        found = found.scatter_add(2, at[..., None, None].expand(*at.shape, 1, 3), part[..., None, :])
    return found[:, :, :-3].sum(0)


def _embedding(l: int) -> Tensor:
    """[2l + 1, 3^l] float64, orthonormal rows: degree l in e3nn's basis as traceless symmetric tensors."""
    if l < 2:
        return torch.eye(2 * l + 1, dtype=torch.float64, device="cpu")
    couple = o3.wigner_3j(l - 1, 1, l, dtype=torch.float64, device="cpu") * math.sqrt(2 * l + 1)
    return torch.einsum("nam,nk->mka", couple, _embedding(l - 1)).flatten(1)


_EMBEDDING = [_embedding(l).tolist() for l in range(4)]


def _power(turn: Tensor, l: int) -> Tensor:
    """[..., 3^l, 3^l]: what turns tensors of rank l."""
    power = turn.new_ones(*turn.shape[:-2], 1, 1)
    for _ in range(l):
        power = torch.einsum("...ij,...ab->...iajb", turn, power).flatten(-4, -3).flatten(-2)
    return power


def _parts(channels: Tensor, side: Tensor, width: int):
    """Of each degree: l, its embedding, its channels' columns [P, 2l + 1], their factors of parity [K, B, P, 1].

    Other channels have the column `width`, which rows are padded by.
    """
    offset, degree, pseudo = channels.unbind(1)
    for l in range(4):
        own = (degree == l) & (offset >= 0) & (offset + 2 * l < width)
        columns = torch.where(own[:, None], offset[:, None] + torch.arange(2 * l + 1, device=own.device), width)
        flip = torch.where(pseudo == 1, side[..., None], torch.ones_like(side)[..., None])
        yield l, side.new_tensor(_EMBEDDING[l]), columns, flip[..., None]


def side_of(turn: Tensor) -> Tensor:
    """1 or -1 of each matrix of O(3), NaN where it is NaN."""
    side = torch.linalg.det(turn.detach())
    return torch.where(side < 0, -1, 1) + 0 * side


def turned(v: Tensor, turn: Tensor, channels: Tensor) -> Tensor:
    """v [B, D] or [K, B, D], turn [K, B, 3, 3] -> [K, B, D]; channels [P, 3]: offset, degree, pseudo."""
    width = v.shape[-1]
    v = torch.nn.functional.pad(v, (0, 1)).expand(*turn.shape[:2], -1)
    out = torch.zeros_like(v, memory_format=torch.contiguous_format)
    for l, e, columns, flip in _parts(channels, side_of(turn), width):
        part = flip * torch.einsum("kbij,kbpj->kbpi", e @ _power(turn, l) @ e.T, v[..., columns])
        out = out.index_add(2, columns.flatten(), part.flatten(2))
    return out[..., :width].contiguous()


def turned_backward(g: Tensor, v: Tensor, turn: Tensor, channels: Tensor) -> tuple[Tensor, Tensor]:
    """g [K, B, D] -> gradients of v [B, D] and of turn [K, B, 3, 3]."""
    g_turn = torch.zeros_like(turn)
    padded, g_padded = torch.nn.functional.pad(v, (0, 1)), torch.nn.functional.pad(g, (0, 1))
    for l, e, columns, flip in _parts(channels, side_of(turn), v.shape[-1]):
        if l:
            pairs = torch.einsum("kbpi,bpj->kbij", flip * g_padded[..., columns], padded[:, columns])
            pairs = (e.T @ pairs @ e).unflatten(-1, (3, -1)).unflatten(-3, (3, -1))  # [K, B, 3, 3^(l-1), 3, 3^(l-1)]
            g_turn = g_turn + l * torch.einsum("kbiJaA,kbJA->kbia", pairs, _power(turn, l - 1))
    return turned(g, turn.mT, channels).sum(0), g_turn


def concat(x: Tensor, v: Tensor, vectors: Tensor, ptr: Tensor, channels: Tensor, seed: Tensor, improper: bool,
           tolerance: float) -> tuple[Tensor, Tensor]:
    """x [N, C], v [B, D], vectors [B, n, 3] -> [K, N, C + D], D(R) v of its set beside each row, and R [K, B, 3, 3].

    Rows of no set have NaN beside them.
    """
    turn = gram_schmidt(*_choices(vectors, seed, improper, tolerance))
    own = turned(v, turn, channels)
    owner, known = owners(ptr, x.shape[0])
    beside = own[:, owner] if len(v) else own.new_zeros(len(seed), len(owner), v.shape[1])
    beside = torch.where(known[:, None], beside, torch.nan)
    return torch.cat([x.expand(len(seed), *x.shape), beside], 2), turn


def concat_backward(g: Tensor, g_frames: Tensor, v: Tensor, vectors: Tensor, ptr: Tensor, channels: Tensor,
                    seed: Tensor, improper: bool, tolerance: float, needs: list[bool]) -> tuple[Tensor, Tensor]:
    """g [K, N, D] of what stands beside the rows, g_frames [K, B, 3, 3] -> gradients of v [B, D], vectors [B, n, 3]."""
    choices = _choices(vectors, seed, improper, tolerance)
    g_v, g_turn = turned_backward(set_sums(g, ptr), v, gram_schmidt(*choices), channels)
    nothing = g.new_empty(0)
    if not needs[1]:
        return g_v, nothing
    return g_v if needs[0] else nothing, gram_schmidt_backward(g_frames + g_turn, *choices[:4])
