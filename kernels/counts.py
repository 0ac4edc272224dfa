"""What the rooms' counts.py share: what elementary functions cost.

A room declares in its counts.py what one call costs at least, as functions of its arguments by name:

    FLOPS   operator -> function of the arguments: floating-point operations
    NEEDS   operator -> the arguments that the flags `needs` of its gradient stand for, in order
    UNREAD  operator -> arguments that it only hands to its gradient

One multiply-add is two operations. The work is that of the exact algorithm with the fewest operations, so a kernel that
does more work scores lower, not higher. Bytes are not declared: they are the least that memory must see, every argument
read once and every result written once, and follow from the tensors themselves (bench/counts.py).
"""

SILU = 5  # negation, exponential, sum, quotient, product
SIGMOID = 4
TANH = 1
GELU = 5  # scaling, error function, sum, two products
GELU_DERIVATIVE = 9
