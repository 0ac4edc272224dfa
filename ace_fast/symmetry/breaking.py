"""SymPE: symmetry breaking by positional encodings that are drawn with the symmetry of the input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import breakers, groups
from .groups import Group

TIES = ("uniform", "straight_through")


class SymPE(nn.Module):
    r"""Symmetry breaking by a learned vector that a random group element turns, beside the features.

    .. math:: \tilde g \sim h_\phi(x) \cdot \mathrm{Uniform}(\mathrm{Stab}(x)), \qquad
              y = x \oplus \rho_V(\tilde g)\, v

    An equivariant network maps an input that a symmetry leaves as it is to an output with the same symmetry. Given y,
    it is equivariant in distribution, and maps the two ends of a molecule, or the vacant sites of a crystal, to
    different outputs. Inputs without symmetry give the same y every time.

    ===================  ==========================================  ==============================================
    group                representation, v                           canonicalizer gives
    ===================  ==========================================  ==============================================
    S_n                  (most nodes T, channels C): table [T, C]     scores [N]; equal ones are ordered at random.
                                                                     Or `GraphSymmetries`: exact automorphisms
    SO(3), O(3), SE(3),  irreps that leave no turn open              2 (O(3): 3) polar vectors or more [B, n, 3];
    E(3)                                                             what they leave open is drawn
    C_n, D_n             (C, H, H): an image; C: numbers of each      activations [B, |G|]; the largest wins, equals
                         element [C, |G|]; or irreps                 at random
    p4, p4m              (C, H, H): an image with rolls              activations [B, 4 or 8, H, H] of pixels
    products, "O(3) x    a tuple with one for each factor            a tuple with one for each factor; each sees what
    S_n"                                                             those before have added
    ===================  ==========================================  ==============================================

    Args:
        group: a name, or an `ace_fast.symmetry.Group`; translations must be gone (relative or centred positions).
        representation: of v, see the table. v is a parameter, drawn from a normal distribution.
        canonicalizer: a module or function of the input, equivariant; None where forward is given its result. Gradients
            pass through vectors, and through activations where tie says so; ranks have none.
        tie: "uniform"; or "straight_through": the gradient of the choice is that of the mean under softmax (finite
            groups).
        tolerance: below which scores and activations are equal, and vectors dependent; in the scores' unit, for vectors
            relative to the longest one (1e-4 there by default, elsewhere 0). What a network computes of parts that are
            alike differs by rounding: give it a tolerance above that.
        generator: of all draws; None for torch's own of the device. One must be given, here or in the call, where
            torch.use_deterministic_algorithms is on.

    Raises:
        ValueError: an unknown group or tie, a representation that the group cannot act on, or not freely.

    Source: Lawrence, Portilheiro, Zhang, Kaba: "Improving Equivariant Networks with Probabilistic Symmetry Breaking",
        ICLR 2025, Algorithm 1.

    Example:
        >>> pe = SymPE("S_n", (8, 4), nn.Linear(3, 1))
        >>> h = torch.ones(5, 3)  # a triangle and a pair, all nodes alike
        >>> y = pe(h, torch.tensor([0, 3, 5]))
        >>> y.shape, len(y[:3].unique(dim=0))
        (torch.Size([5, 7]), 3)
    """

    def __init__(self, group: str | Group, representation: Any, canonicalizer: Callable | Sequence | None = None,
                 tie: str = "uniform", tolerance: float | None = None,
                 generator: torch.Generator | None = None) -> None:
        super().__init__()
        if tie not in TIES:
            raise ValueError(f"SymPE: tie must be one of {', '.join(TIES)}, got {tie!r}")
        if tolerance is not None and not 0 <= tolerance < float("inf"):
            raise ValueError(f"SymPE: tolerance must be 0 or more, and finite, got {tolerance}")
        own = groups.group(group) if isinstance(group, str) else group
        factors = own.factors or (own,)
        many = len(factors) > 1
        representations = _each(representation, factors, "representation") if many else [representation]
        canonicalizers = _each(canonicalizer, factors, "canonicalizer") if many else [canonicalizer]
        self.name = own.name
        self.generator = generator
        self.parts = nn.ModuleList()
        for factor, v in zip(factors, representations, strict=True):
            usual = 1e-4 if factor.rotations else 0.0
            # in a product, "straight_through" is for those that it means something to
            how = tie if factor.table is not None or not many else "uniform"
            self.parts.append(breakers.make(factor, v, how, usual if tolerance is None else tolerance))
        self.canonicalizers = nn.ModuleList(c if isinstance(c, nn.Module) else _Function(c) for c in canonicalizers)

    def forward(self, x: Tensor, ptr: Tensor | None = None, inputs: Any = None, *, samples: int | None = None,
                longest: int | None = None, generator: torch.Generator | None = None,
                return_element: bool = False) -> Tensor | tuple[Tensor, Any]:
        """x and the turned vectors beside it.

        Args:
            x: [N, F], rows of all graphs or sets; [B, F, H, H] or [B, F, |G|] beside images or numbers of elements.
            ptr: [B + 1] int64, graph b has the rows ptr[b] to ptr[b + 1] - 1; None for one graph (S_n), for a set of
                each row (all others). Graphs may be empty. It is read on the host, see `longest`.
            inputs: what the canonicalizer takes in place of x; without a canonicalizer what it would give. A tuple, one
                for each factor, under a product.
            samples: K independent draws, in a new first dimension; None for one.
            longest: the nodes of the largest graph where they are known; then ptr is right, and nothing reads it.
            generator: in place of the layer's own.
            return_element: the element too: ranks [K, N], frames [K, B, 3, 3], or numbers of activations [K, B] (an
                `Element` by `parts[0].element`); K = 1 without samples. Under a product a list, of each draw.

        Returns:
            [N, F + C], with samples [K, N, F + C]; F + C in dimension 1 of images. Rows whose scores, activations or
            vectors are NaN have NaN.

        Raises:
            ValueError: shapes that do not fit, more nodes than the table has rows, no generator in deterministic mode.
        """
        generator = self.generator if generator is None else generator
        if generator is None and torch.are_deterministic_algorithms_enabled():
            raise ValueError("SymPE: generator must be a torch.Generator in deterministic mode "
                             "(torch.use_deterministic_algorithms), got None; pass torch.Generator().manual_seed(0)")
        if samples is not None and samples < 1:
            raise ValueError(f"SymPE: samples must be 1 or more, or None, got {samples}")
        if len(self.parts) > 1:
            return self._product(x, ptr, inputs, samples, longest, generator, return_element)
        predicted = self.canonicalizers[0](x if inputs is None else inputs)
        y, element = self.parts[0](x, predicted, ptr, 1 if samples is None else samples, longest, generator)
        y = y[0] if samples is None else y
        return (y, element) if return_element else y

    def _product(self, x: Tensor, ptr: Tensor | None, inputs: Sequence | None, samples: int | None,
                 longest: int | None, generator: torch.Generator | None,
                 return_element: bool) -> Tensor | tuple[Tensor, list]:
        """Factor after factor, draw after draw: what one breaks, the next one's canonicalizer sees."""
        inputs = [None] * len(self.parts) if inputs is None else inputs
        if len(inputs) != len(self.parts):
            raise ValueError(f"SymPE: inputs must be {len(self.parts)}, one for each factor of {self.name}, got "
                             f"{len(inputs)}")
        drawn, elements = [], []
        for _ in range(1 if samples is None else samples):
            y, own = x, []
            for part, canonicalizer, given in zip(self.parts, self.canonicalizers, inputs, strict=True):
                y, element = part(y, canonicalizer(y if given is None else given), ptr, 1, longest, generator)
                y = y[0]
                own.append(element)
            drawn.append(y)
            elements.append(own)
        y = drawn[0] if samples is None else torch.stack(drawn)
        elements = elements[0] if samples is None else elements
        return (y, elements) if return_element else y

    def extra_repr(self) -> str:
        return f"{self.name}"


class _Function(nn.Module):
    """A canonicalizer that is no module; None gives what it takes."""

    def __init__(self, function: Callable | None) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return x if self.function is None else self.function(x)


def _each(given: Any, factors: Sequence[Group], name: str) -> Sequence:
    if given is None:
        return [None] * len(factors)
    if not isinstance(given, tuple | list) or len(given) != len(factors):
        got = len(given) if isinstance(given, tuple | list) else type(given).__name__
        raise ValueError(f"SymPE: {name} must be a tuple of {len(factors)}, one for each factor, got {got}")
    return given
