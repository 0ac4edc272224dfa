"""The second derivative of an operator that is linear in each of its operands is a sum of calls to it and its gradient.

With f linear in each operand, `f_bwd(g, operands)` are the gradients of <g, f(operands)>. For a cotangent c of the
gradient of operand n, <c, f_bwd_n> = <g, f(operands with c for n)>: with respect to g its gradient is f there, with
respect to the other operands it is f_bwd there. So an operator and its gradient close on themselves at every order.
"""

from collections.abc import Callable, Sequence

from torch import Tensor


def second_derivative(operands: Sequence[Tensor], cotangents: Sequence[Tensor | None], needs: Sequence[bool],
                      product: Callable, gradients: Callable) -> list[Tensor | None]:
    """Gradients of sum_n <cotangents[n], f_bwd_n> with respect to (g, *operands).

    Args:
        operands: of f; cotangents: of the gradients of each, None where there is none.
        needs: which of (g, *operands) want a gradient; nothing else is computed.
        product: (n, operands) -> f(operands), where n is the operand that a cotangent replaces.
        gradients: (n, operands, wanted) -> f_bwd(g, operands), one tensor for each operand, used where wanted.
    """
    sums: list[Tensor | None] = [None] * (1 + len(operands))

    def add(slot: int, value: Tensor) -> None:
        sums[slot] = value if sums[slot] is None else sums[slot] + value

    for n, cotangent in enumerate(cotangents):
        if cotangent is None:
            continue
        replaced = [cotangent if i == n else x for i, x in enumerate(operands)]
        if needs[0]:
            add(0, product(n, replaced))
        wanted = [need and i != n for i, need in enumerate(needs[1:])]
        if any(wanted):
            for i, (want, x) in enumerate(zip(wanted, gradients(n, replaced, wanted), strict=True)):
                if want:
                    add(i + 1, x)
    return sums
