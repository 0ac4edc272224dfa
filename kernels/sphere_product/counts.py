"""Operations of products at points and of their gradients; see kernels/counts.py."""

from typing import Any

from .tables import MIRRORS, MOST, Points, Slot, unpack

MIRRORING = 24  # additions for the eight images of a point: three rounds of eight


def transform(points: Points, slot: Slot) -> int:
    """A column to the points or back: one matrix, or one along theta and one along phi; and the images. A term's
    coefficient is one product, of the result alone."""
    if points.form == 3:
        return 0
    products = points.size * slot.dim if points.form < 2 else (
        points.rings * slot.dim + 2 * points.rings * points.ring_size * (2 * slot.degree + 1))
    return slot.parts * (2 * products + MIRRORING * points.size * (points.images == MIRRORS))


def _read(inputs: dict[str, Any]) -> tuple[Points, list[Slot], list[int], int]:
    """Points, slots, columns of every input, and of the result."""
    points, slots = Points(*inputs["grid"]), unpack(inputs["slots"])
    xs = [x for n in range(1, MOST + 1) if (x := inputs.get(f"x{n}")) is not None]
    own = [x.numel() // slot.dim for x, slot in zip(xs, slots[1:], strict=True)]
    channels = [x.shape[1] // slot.dim for x, slot in zip(xs, slots[1:], strict=True)]
    return points, slots, own, xs[0].shape[0] * (max(channels) if min(channels) else 0)


def forward(inputs: dict[str, Any]) -> int:
    """Every input to the points, a product for each factor but one, sums over parts, and back; of a term two products
    and a sum."""
    points, slots, own, columns = _read(inputs)
    total = points.parts * points.size * points.images
    factors = sum(slot.power for slot in slots[1:])
    each = total * (factors - 1 + 2 * (points.form == 3)) + (total - total // points.parts) * (slots[0].parts == 1)
    to = sum(n * transform(points, slot) for n, slot in zip(own, slots[1:], strict=True))
    return to + columns * (each + transform(points, slots[0]))


def _needed(wanted: list[int], slots: list[Slot]) -> list[int]:
    """The inputs at the points that some gradient is made of."""
    return [n for n, slot in enumerate(slots[1:]) if wanted != [n] or slot.power > 1]


def backward(inputs: dict[str, Any]) -> int:
    """g and the inputs to the points; for each gradient wanted as many products as forward, and back."""
    points, slots, own, columns = _read(inputs)
    total = points.parts * points.size * points.images
    factors = sum(slot.power for slot in slots[1:])
    wanted = [n for n, need in enumerate(inputs["needs"][:len(own)]) if need]
    if not wanted:
        return 0
    read = _needed(wanted, slots)
    to = columns * transform(points, slots[0]) + sum(own[n] * transform(points, slots[1 + n]) for n in read)
    each = total * (factors - 1 + 2 * (points.form == 3))
    return to + sum(columns * each + own[n] * transform(points, slots[1 + n]) for n in wanted)


def weighted_forward(inputs: dict[str, Any]) -> int:
    """Every component of every slot times its weight too."""
    _, slots, own, columns = _read(inputs)
    return forward(inputs) + sum(n * slot.dim for n, slot in zip([columns, *own], slots, strict=True))


def weighted_backward(inputs: dict[str, Any]) -> int:
    """g, the inputs and what returns times their weights; for the gradient of these every slot's return, multiplied
    by what is given and summed."""
    points, slots, own, columns = _read(inputs)
    *needs, of_weights = inputs["needs"]
    values = [n * slot.dim for n, slot in zip([columns, *own], slots, strict=True)]
    wanted = [n for n, need in enumerate(needs[:len(own)]) if need]
    if not of_weights:
        factors = values[:1] + [values[1 + n] for n in (*_needed(wanted, slots), *wanted)]
        return backward(inputs) + (sum(factors) if wanted else 0)
    total = backward(inputs | {"needs": [True] * len(own)}) + forward(inputs)
    total -= sum(n * transform(points, slot) for n, slot in zip(own, slots[1:], strict=True))  # they are there already
    return total + sum(values) + sum(values[1 + n] for n in wanted) + 2 * sum(values)


FLOPS = {"sphere_product": forward, "sphere_product_bwd": backward, "weighted_sphere_product": weighted_forward,
         "weighted_sphere_product_bwd": weighted_backward}
NEEDS = {"sphere_product": tuple(f"x{n}" for n in range(1, MOST + 1))}
NEEDS["weighted_sphere_product"] = *NEEDS["sphere_product"], "weights"
