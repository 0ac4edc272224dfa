"""Products at points: every input goes to the points by its matrix, they are multiplied there, and the result returns.

z = M_0^T prod_n (M_n x_n)^p_n is the gradient, with respect to slot 0, of the form
<1, (M_0 g) prod_n (M_n x_n)^p_n>; the gradients of the inputs are those with respect to theirs. With weights w of
degrees and channels, (w x)_lmc = w_lc x_lmc, the form has w_0 g and w_n x_n in place of g and x_n.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from ..constant import Constant, plainly
from .tables import MIRRORS, MOST, Points, Slot, parities, unpack


@cache
def _signs(degree: int, parts: int, twist: int) -> Constant:
    """Of every component at every image of a point, [parts, images, d]."""
    with plainly(), torch.device("cpu"):
        image, signs = torch.arange(MIRRORS), []
        for part in range(parts):
            odd = torch.tensor(parities(degree)) ^ (twist >> 3 * part & 7)
            common = image[:, None] & odd  # a sign for each mirror that the image and the component share
            signs.append(1 - 2 * ((common ^ common >> 1 ^ common >> 2) & 1))
        return Constant(torch.stack(signs).double())


def matrix(table: Tensor, points: Points, slot: Slot) -> Tensor:
    """A slot's matrix to all points, [parts, S, d]."""
    kept = table[slot.offset:slot.offset + points.numel(slot)]
    if points.form == 3:
        component, value = kept.view(2, -1)
        return torch.nn.functional.one_hot(component.long(), slot.dim)[None] * value[:, None]
    if points.form == 2:
        polar, around = kept.split([slot.parts * points.rings * slot.dim,
                                    slot.parts * points.ring_size * (2 * slot.degree + 1)])
        m = torch.cat([torch.arange(-n, n + 1, device=table.device) for n in range(slot.degree + 1)]) + slot.degree
        around = around.view(slot.parts, 1, points.ring_size, -1)[..., m]
        kept = polar.view(slot.parts, points.rings, 1, -1) * around
    kept = kept.reshape(slot.parts, points.size, slot.dim)
    if points.form == 0:
        return kept
    signs = _signs(slot.degree, slot.parts, slot.twist).on(table.device).to(table.dtype)
    return (signs[:, :, None] * kept[:, None]).flatten(1, 2)


def components(x: Tensor, d: int, ir_mul: bool) -> Tensor:
    """Rows [Z, d C] of degrees 0..L, d = (L+1)^2, in either layout as [Z, d, C]."""
    rows, channels = x.shape[0], x.shape[1] // d
    if ir_mul or channels == 1:
        return x.reshape(rows, d, channels)
    degrees = [2 * n + 1 for n in range(int(d**0.5))]
    blocks = x.split([channels * n for n in degrees], 1)
    return torch.cat([b.reshape(rows, channels, n).mT for b, n in zip(blocks, degrees, strict=True)], 1)


def joined(x: Tensor, ir_mul: bool) -> Tensor:
    """The way back of `components`."""
    if ir_mul:
        return x.flatten(1)
    blocks = x.split([2 * n + 1 for n in range(int(x.shape[1]**0.5))], 1)
    return torch.cat([b.mT.flatten(1) for b in blocks], 1)


def contract(k: int, tensors: list[Tensor | None], channels: int, table: Tensor, points: Points, slots: list[Slot],
             ir_mul: bool) -> Tensor:
    """The gradient of the form with respect to slot k, for all rows and channels: [Z, channels d_k].

    Args:
        tensors: of every slot; that of slot 0 is g, None where k is 0.
        channels: C, that of the widest tensor.
    """
    like = next(x for x in tensors if x is not None)
    dtype = torch.float32 if like.dtype in (torch.bfloat16, torch.float16) else like.dtype
    product = torch.ones((), dtype=dtype, device=like.device)
    for n, (x, slot) in enumerate(zip(tensors, slots, strict=True)):
        power = slot.power - (n == k)
        if power and x is not None:
            m = matrix(table, points, slot).to(dtype)
            product = product * torch.einsum("ksi,zic->kszc", m, components(x.to(dtype), slot.dim, ir_mul)) ** power
    m, slot = matrix(table, points, slots[k]).to(dtype), slots[k]
    z = max(x.shape[0] for x in tensors if x is not None) if min(x.shape[0] for x in tensors if x is not None) else 0
    product = product.expand(max(points.parts, 1), m.shape[1], z, channels)
    y = torch.einsum("ksi,kszc->zic", m, product.sum(0, True) if slot.parts < points.parts else product)
    return joined(slot.power * y, ir_mul).to(like.dtype)


def reduce(y: Tensor, shape: tuple[int, int], d: int, ir_mul: bool) -> Tensor:
    """[Z, C d] summed over the rows and channels that an input of `shape` shares."""
    if shape[0] != y.shape[0]:
        y = y.sum(0, True)
    if shape[1] != y.shape[1]:
        y = components(y, d, ir_mul).sum(2)
    return y


def channels_of(xs: list[Tensor], slots: list[Slot]) -> int:
    """C, that of the widest input; 0 where one has none."""
    each = [x.shape[1] // slot.dim for x, slot in zip(xs, slots, strict=True)]
    return max(each) if min(each) else 0


def forward(x1, x2, x3, x4, x5, x6, table, grid, slots, ir_mul) -> Tensor:
    """Inputs [Z or 1, C or 1 channels of d_n], None from the last on -> z [Z, C d_0]."""
    xs, slots = [x for x in (x1, x2, x3, x4, x5, x6) if x is not None], unpack(slots)
    channels = channels_of(xs, slots[1:])
    return contract(0, [None, *xs], channels, table, Points(*grid), slots, ir_mul).contiguous()


def backward(g, x1, x2, x3, x4, x5, x6, table, grid, slots, ir_mul, needs) -> tuple[Tensor, ...]:
    """g [Z, C d_0] -> gradients of the six inputs, empty [0] where not in `needs`."""
    xs, slots = [x for x in (x1, x2, x3, x4, x5, x6) if x is not None], unpack(slots)
    found = [g.new_zeros(0) for _ in range(MOST)]
    for n, x in enumerate(xs):
        if needs[n]:
            y = contract(n + 1, [g, *xs], g.shape[1] // slots[0].dim, table, Points(*grid), slots, ir_mul)
            found[n] = reduce(y, x.shape, slots[n + 1].dim, ir_mul).contiguous()
    return tuple(found)


def weight_counts(xs: Sequence[Tensor], slots: Sequence[Slot], channels: int) -> list[int]:
    """How many weights every slot has, L + 1 degrees by its channels: each input in order, and then the result."""
    each = [*(x.shape[1] // slot.dim for x, slot in zip(xs, slots[1:], strict=True)), channels]
    return [(slot.degree + 1) * c for slot, c in zip([*slots[1:], slots[0]], each, strict=True)]


def _factors(xs: list[Tensor], weights: Tensor, slots: Sequence[Slot], channels: int, ir_mul: bool) -> list[Tensor]:
    """The weights of every input and of the result as factors of a row, [1, C d]."""
    found = []
    for w, slot in zip(weights.split(weight_counts(xs, slots, channels)), [*slots[1:], slots[0]], strict=True):
        degrees = w.view(slot.degree + 1, w.numel() // (slot.degree + 1)).split(1)
        found.append(joined(torch.cat([one.expand(2 * n + 1, -1) for n, one in enumerate(degrees)])[None], ir_mul))
    return found


def _degree_sums(x: Tensor, slot: Slot, ir_mul: bool) -> Tensor:
    """Rows [Z, C d] summed over rows and over the components of a degree, [(L + 1) C]."""
    degrees = components(x.sum(0, True), slot.dim, ir_mul)[0].split([2 * n + 1 for n in range(slot.degree + 1)])
    return torch.cat([part.sum(0) for part in degrees])


def weighted_forward(x1, x2, x3, x4, x5, x6, weights, table, grid, slots, ir_mul, *, product=forward) -> Tensor:
    """`forward` of the inputs times their weights, times those of the result.

    Args:
        weights: `weight_counts` of them.
        product: a backend's `forward`.
    """
    xs, read = [x for x in (x1, x2, x3, x4, x5, x6) if x is not None], unpack(slots)
    *before, last = _factors(xs, weights, read, channels_of(xs, read[1:]), ir_mul)
    scaled = [x * w for x, w in zip(xs, before, strict=True)]
    return product(*scaled, *[None] * (MOST - len(xs)), table, grid, slots, ir_mul) * last


def weighted_backward(g, x1, x2, x3, x4, x5, x6, weights, table, grid, slots, ir_mul, needs, *, product=forward,
                      gradient=backward) -> tuple[Tensor, ...]:
    """g [Z, C d_0] -> gradients of the six inputs and of the weights, empty [0] where not in `needs`."""
    xs, read = [x for x in (x1, x2, x3, x4, x5, x6) if x is not None], unpack(slots)
    *before, last = _factors(xs, weights, read, g.shape[1] // read[0].dim, ir_mul)
    static = *[x * w for x, w in zip(xs, before, strict=True)], *[None] * (MOST - len(xs)), table, grid, slots, ir_mul
    inner = gradient(g * last, *static, [(need or needs[MOST]) and n < len(xs) for n, need in enumerate(needs[:MOST])])
    found = [g.new_empty(0) for _ in range(MOST + 1)]
    for n, w in enumerate(before):
        if needs[n]:
            found[n] = inner[n] * w
    if needs[MOST]:
        pairs = [*zip(xs, inner, read[1:], strict=False), (g, product(*static), read[0])]
        found[MOST] = torch.cat([_degree_sums(x * y, slot, ir_mul) for x, y, slot in pairs])
    return tuple(found)
