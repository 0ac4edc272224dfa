"""e3nn's ready-made tensor products: fully connected, full, elementwise, square."""

from e3nn import o3
from torch import Tensor

from .tensor_product import TensorProduct


class FullyConnectedTensorProduct(TensorProduct):
    """All allowed paths with weights, a drop-in for `e3nn.o3.FullyConnectedTensorProduct`.

    Args:
        irreps_in1, irreps_in2, irreps_out: e3nn irreps.
        irrep_normalization, path_normalization, **kwargs: as in `TensorProduct`.

    Example:
        >>> tp = ace_fast.nn.FullyConnectedTensorProduct("8x0e + 8x1o", "1x0e + 1x1o", "8x0e + 8x1o")
        >>> tp.weight_numel
        256
    """

    def __init__(self, irreps_in1, irreps_in2, irreps_out, irrep_normalization=None, path_normalization=None, **kwargs):
        in1, in2, out = (o3.Irreps(i) for i in (irreps_in1, irreps_in2, irreps_out))
        instructions = [
            (i, j, k, "uvw", True, 1.0)
            for i, (_, a) in enumerate(in1)
            for j, (_, b) in enumerate(in2)
            for k, (_, c) in enumerate(out)
            if c in a * b
        ]
        super().__init__(in1, in2, out, instructions, irrep_normalization=irrep_normalization,
                         path_normalization=path_normalization, **kwargs)


class FullTensorProduct(TensorProduct):
    r"""Every channel of x with every channel of y, a drop-in for `e3nn.o3.FullTensorProduct`.

    .. math:: z_{uv} = x_u \otimes y_v

    Args:
        irreps_in1, irreps_in2: e3nn irreps; they are simplified. irreps_out follows from them.
        filter_ir_out: the irreps of the output to keep; all where None.
        irrep_normalization, **kwargs: as in `TensorProduct`.

    Example:
        >>> ace_fast.nn.FullTensorProduct("2x1o", "3x1o", filter_ir_out=["0e"]).irreps_out
        6x0e
    """

    def __init__(self, irreps_in1, irreps_in2, filter_ir_out=None, irrep_normalization=None, **kwargs):
        self._build(o3.FullTensorProduct, irreps_in1, irreps_in2, filter_ir_out,
                    irrep_normalization=irrep_normalization, **kwargs)


class ElementwiseTensorProduct(TensorProduct):
    r"""Channel u of x with channel u of y, a drop-in for `e3nn.o3.ElementwiseTensorProduct`.

    .. math:: z_u = x_u \otimes y_u

    Args:
        irreps_in1, irreps_in2: e3nn irreps with the same number of channels; they are simplified and cut to each other.
        filter_ir_out: the irreps of the output to keep; all where None.
        irrep_normalization, **kwargs: as in `TensorProduct`.

    Raises:
        ValueError: irreps_in1 and irreps_in2 have different numbers of channels.

    Example:
        >>> ace_fast.nn.ElementwiseTensorProduct("5x1o + 5x1e", "10x1e", ["0e", "0o"]).irreps_out
        5x0o+5x0e
    """

    def __init__(self, irreps_in1, irreps_in2, filter_ir_out=None, irrep_normalization=None, **kwargs):
        counts = [o3.Irreps(i).num_irreps for i in (irreps_in1, irreps_in2)]
        if counts[0] != counts[1]:
            raise ValueError(f"{type(self).__name__}: irreps_in2 must have the {counts[0]} channels of irreps_in1, got "
                             f"{counts[1]}")
        self._build(o3.ElementwiseTensorProduct, irreps_in1, irreps_in2, filter_ir_out,
                    irrep_normalization=irrep_normalization, **kwargs)


class TensorSquare(TensorProduct):
    """The product of x with itself, each pair of channels once, a drop-in for `e3nn.o3.TensorSquare`.

    Args:
        irreps_in: e3nn irreps; they are simplified.
        irreps_out: fully connected with weights to these; where None every product is kept and there are no weights.
        filter_ir_out: the irreps of the output to keep, without irreps_out.
        irrep_normalization, **kwargs: as in `TensorProduct`.

    Raises:
        ValueError: both irreps_out and filter_ir_out.

    Example:
        >>> ace_fast.nn.TensorSquare("2x1o").irreps_out
        1x0e+2x0e+1x1e+1x2e+2x2e
    """

    def __init__(self, irreps_in, irreps_out=None, filter_ir_out=None, irrep_normalization=None, **kwargs):
        self._build(o3.TensorSquare, irreps_in, irreps_out, filter_ir_out, irrep_normalization=irrep_normalization,
                    **kwargs)

    def _adopt(self, like: o3.TensorSquare, *args) -> None:
        self.irreps_in = like.irreps_in
        super()._adopt(like, *args)

    def _shown(self) -> str:
        return str(self.irreps_in)

    def forward(self, x: Tensor, weight: Tensor | list[Tensor] | None = None) -> Tensor:
        """x [..., irreps_in.dim] -> [..., irreps_out.dim]; weight unless internal or none."""
        return super().forward(x, x, weight)
