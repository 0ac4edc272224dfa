"""e3nn's NormActivation: each channel keeps its direction, and its norm goes through a nonlinearity."""

from collections.abc import Callable, Iterator

import e3nn.nn
import torch
from e3nn import o3
from torch import Tensor, nn

from .. import functional
from ..kernels.tensor_product import NormTable
from ..kernels.tensor_product.epilogue import BACKENDS
from .gate import kind
from .tensor_product import check_columns, check_options, no_script


class NormActivation(nn.Module):
    r"""Activation of norms, a drop-in for `e3nn.nn.NormActivation`.

    .. math:: y_u = f(n_u + b_u)\, x_u / n_u, \qquad n_u = \max(|x_u|, \varepsilon)

    Constructor, attributes, names of parameters and state_dict are e3nn's; its own `norm` and `scalar_multiplier` are
    kept for these. SiLU, sigmoid, tanh and ReLU (functions or modules) run as one operator; any other nonlinearity, and
    normalize=False, by the same formula in plain torch.

    Args:
        irreps_in: e3nn irreps, also those of the result.
        scalar_nonlinearity: f, of the norms [..., channels].
        normalize: whether x is divided by its norm; without, y_u = f(|x_u| + b_u) x_u. (e3nn 0.6 and earlier means this
            too, but its constructor stops with a TypeError.)
        epsilon: the least norm, 1e-8 where None; must be None without `normalize`.
        bias: learns b, one number a channel, zero at first.
        layout: of features and result, "mul_ir" (e3nn's) or "ir_mul".
        backend: which implementation of the operator runs; plain torch where it has none of this name.

    Raises:
        ValueError: an epsilon that is not positive, one without `normalize`, or an unknown layout or backend.

    Derivatives of any order that the nonlinearity has; none reaches a norm below epsilon. Source: Thomas et al. 2018,
    tensor field networks, section 4.1.3.

    Example:
        >>> ace_fast.nn.NormActivation("8x0e+8x1o", torch.sigmoid, bias=True)(torch.randn(5, 32)).shape
        torch.Size([5, 32])
    """

    def __init__(self, irreps_in, scalar_nonlinearity: Callable, normalize: bool = True, epsilon: float | None = None,
                 bias: bool = False, *, layout="mul_ir", backend="auto"):
        super().__init__()
        name, irreps = type(self).__name__, o3.Irreps(irreps_in)
        if epsilon is not None and not normalize:
            raise ValueError(f"{name}: epsilon must be None where normalize is False, got {epsilon}; leave it out")
        if epsilon is not None and not epsilon > 0:
            raise ValueError(f"{name}: epsilon must be strictly positive, got {epsilon}")
        like = e3nn.nn.NormActivation(irreps, scalar_nonlinearity, True, epsilon, bias)
        if not normalize:
            like.normalize, like.epsilon, like._eps_squared, like.norm = False, None, 0.0, o3.Norm(irreps)
        self._adopt(like, layout, backend)

    def _adopt(self, like: e3nn.nn.NormActivation, layout: str, backend: str) -> None:
        """Takes over everything of an e3nn module, its bias as the same Parameter."""
        check_options(type(self).__name__, layout=layout, backend=backend)
        for key in ("irreps_in", "irreps_out", "epsilon", "_eps_squared", "norm", "scalar_nonlinearity", "normalize",
                    "bias", *(["biases"] if like.bias else []), "scalar_multiplier"):
            setattr(self, key, getattr(like, key))
        self.layout, self.backend, self._dim = layout, backend, like.irreps_in.dim
        self.norm_table = self._fused()

    def _fused(self) -> NormTable | None:
        """What the operator needs to be this layer; None where it cannot be."""
        name = kind(self.scalar_nonlinearity)
        if name is None or not self.normalize or self.backend not in ("auto", *BACKENDS):
            return None
        return NormTable(tuple(v for mul, ir in self.irreps_in for v in (mul, ir.dim)), name, float(self.epsilon))

    @classmethod
    def from_e3nn(cls, module: e3nn.nn.NormActivation, backend: str = "auto", layout: str = "mul_ir"):
        """This layer with the very Parameter and nonlinearity of an e3nn module."""
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        new._adopt(module, layout, backend)
        return new.train(module.training)

    def __prepare_scriptable__(self):
        no_script(self)

    def _channels(self, features: Tensor) -> Iterator[Tensor]:
        """The slices [..., dim] as [..., mul, 2l+1]."""
        for (mul, ir), s in zip(self.irreps_in, self.irreps_in.slices(), strict=True):
            shape = (mul, ir.dim) if self.layout == "mul_ir" else (ir.dim, mul)
            x = features[..., s].unflatten(-1, shape)
            yield x if self.layout == "mul_ir" else x.mT

    def forward(self, features: Tensor) -> Tensor:
        """features [..., irreps_in.dim] -> [..., irreps_in.dim]."""
        check_columns(type(self).__name__, features=(features, self._dim))
        biases = self.biases if self.bias else None
        if self.norm_table is not None:
            return functional.norm_activation(features, self.norm_table, biases, layout=self.layout,
                                              backend=self.backend)
        nothing, channels = features[..., :0], list(self._channels(features))
        squares = torch.cat([nothing, *(x.square().sum(-1) for x in channels)], -1)
        if self.epsilon is None:
            norms = squares.relu().sqrt()  # relu: no gradient at zero
        else:
            norms = torch.where(squares < self._eps_squared, self._eps_squared, squares).sqrt()
        scalings = self.scalar_nonlinearity(norms if biases is None else norms + biases)
        if self.normalize:
            scalings = scalings / norms
        parts = [x * s.unsqueeze(-1) for x, s in zip(
            channels, scalings.split([mul for mul, _ in self.irreps_in], -1), strict=True)]
        return torch.cat([nothing, *((x if self.layout == "mul_ir" else x.mT).flatten(-2) for x in parts)], -1)
