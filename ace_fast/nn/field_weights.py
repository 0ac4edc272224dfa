"""Weights of slots and channels as `functional.sphere_product` takes them, of degrees."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import functional
from ..kernels.constant import Constant, plainly
from .fields import Fields, present


class FieldWeights:
    """The weights of one product of fields, times constants.

    Args:
        fields: of the inputs and of the result.
        signs: of every field, the factors of its slots in the product; 0 where a slot is no part of it.
        degrees: L of every field in the product.
        scales: of every field, constants of its slots.

    Attributes:
        exist: whether the weights can be the product's own. Where slots of the same degree add up they cannot, nor of a
            result without slots.
    """

    @plainly()
    def __init__(self, fields: Sequence[Fields], signs: Sequence[tuple[float, ...]], degrees: Sequence[int],
                 scales: Sequence[Sequence[float]]):
        self._fields, self._there, self._degrees = fields, [present(sign) for sign in signs], degrees
        self.exist, first, index, constants = True, 0, [], []
        for field, sign, lmax, scale in zip(fields, signs, degrees, scales, strict=True):
            C, slots = field.channels, {ir.l: n for n, ir in enumerate(field.irs) if sign[n]}
            self.exist &= bool(slots) and len(slots) == sum(map(bool, sign))
            for n in range(lmax + 1):
                at = slots.get(n)
                index += range(first + C * (at or 0), first + C * (at or 0) + C)
                constants += [0.0 if at is None else sign[at] * scale[at]] * C
            first += C * len(field.irs)
        self._ones = set(constants) <= {1.0}
        self._constants = Constant(torch.tensor(constants, dtype=torch.float64, device="cpu"))
        self._index = None  # of the weights as they are
        if index != [*range(first)]:
            self._index = Constant(torch.tensor(index, dtype=torch.int64, device="cpu"))

    def of(self, weight: Tensor | None, like: Tensor) -> Tensor | None:
        """The operator's weights, [sum of (L + 1) C], from those of every slot and channel of the fields one after the
        other, [slots C]; None stands for ones."""
        if weight is not None and self._index is not None:
            weight = weight.index_select(0, self._index.on(weight.device))
        if self._ones:
            return weight
        constants = self._constants.on(like.device).to(like.dtype)
        return constants if weight is None else weight * constants

    def product(self, xs: Sequence[Tensor], weight: Tensor | None, **options) -> tuple[Tensor, tuple[float, ...]]:
        """The product of rows with these weights in the operator, and which slots of the result it has.

        Args:
            xs: [Z, irreps.dim] of every input, of one dtype.
            weight: as of `of`.
            options: of `functional.sphere_product`.
        """
        *there, back = self._there
        rows = [f.field(x, slots, lmax) for f, x, slots, lmax in
                zip(self._fields, xs, there, self._degrees, strict=False)]
        return functional.sphere_product(*rows, weights=self.of(weight, xs[0]), **options), back
