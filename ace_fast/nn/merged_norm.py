"""EquiformerV3's merged layer normalisation: one root mean square for all degrees."""

import torch
from torch import Tensor, nn

from ..kernels.sphere_product.reference import components, joined
from .fields import degrees_from_zero
from .tensor_product import check_columns, no_script, widened


class MergedLayerNorm(nn.Module):
    r"""Layer normalisation of irreps over channels and all degrees at once.

    .. math:: y_l = \gamma_l\, \frac{\bar x_l}{\sqrt{\frac{1}{L+1} \sum_{l'} \frac{1}{2l'+1}
              \langle |\bar x_{l'}|^2 \rangle_{channels} + \epsilon}} + [l = 0]\, \beta

    where :math:`\bar x` is x without the mean of its scalars over channels. Unlike a norm for each degree it keeps the
    proportions of degrees.

    Args:
        irreps: of degrees 0..L in order, each once, of one multiplicity C.
        eps: added to the mean square.
        affine: `affine_weight` [L + 1, C] and `affine_bias` [C], EquiformerV3's names; its checkpoints load.
        centering: takes off the mean of the scalars, and gives them a bias; False is a root-mean-square norm.
        layout: of features and result, "mul_ir" or "ir_mul".

    Raises:
        ValueError: other irreps, odd scalars with centering (which breaks reflections), features of another width.

    Derivatives of any order; bfloat16 is computed in float32 and rounded once. Source: EquiformerV3 (Liao et al. 2026),
    EquivariantMergeLayerNorm.

    Example:
        >>> ace_fast.nn.MergedLayerNorm("8x0e+8x1o+8x2e")(torch.randn(5, 72)).shape
        torch.Size([5, 72])
    """

    def __init__(self, irreps, eps: float = 1e-5, affine: bool = True, centering: bool = True, *, layout="mul_ir"):
        super().__init__()
        name = type(self).__name__
        field = degrees_from_zero(name, "irreps", irreps, layout)
        if centering and field.irs[0].p != 1:
            raise ValueError(f"{name}: irreps must have even scalars (0e) with centering, got {field.irreps}; pass "
                             "centering=False")
        if not eps >= 0:
            raise ValueError(f"{name}: eps must be 0 or more, got {eps}")
        self.irreps, self.eps, self.affine, self.centering, self.layout = field.irreps, eps, affine, centering, layout
        self._dim, self._width, self._degrees, C = field.dim, field.width, len(field.irs), field.channels
        self.register_parameter("affine_weight", nn.Parameter(torch.ones(self._degrees, C)) if affine else None)
        self.register_parameter("affine_bias", nn.Parameter(torch.zeros(C)) if affine and centering else None)

    def extra_repr(self) -> str:
        return f"{self.irreps}, eps={self.eps}, affine={self.affine}, centering={self.centering}"

    def __prepare_scriptable__(self):
        no_script(self)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for key in ("expand_index", "balance_degree_weight"):  # EquiformerV3's constants
            state_dict.pop(prefix + key, None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, features: Tensor) -> Tensor:
        """features [..., irreps.dim] -> [..., irreps.dim]."""
        check_columns(type(self).__name__, features=(features, self._dim))
        x = widened(features).reshape(features.shape[:-1].numel(), self._dim)
        x = components(x, self._width, self.layout == "ir_mul")
        blocks = list(x.split([2 * n + 1 for n in range(self._degrees)], 1))  # [Z, 2l+1, C]
        if self.centering:
            blocks[0] = blocks[0] - blocks[0].mean(2, keepdim=True)
        squares = [block.square().mean((1, 2)) for block in blocks]
        factor = (sum(squares[1:], squares[0]) / self._degrees + self.eps).rsqrt()[:, None, None]
        if self.affine:
            blocks = [block * (factor * weight) for block, weight in zip(blocks, self.affine_weight, strict=True)]
        else:
            blocks = [block * factor for block in blocks]
        if self.affine_bias is not None:
            blocks[0] = blocks[0] + self.affine_bias
        y = joined(torch.cat(blocks, 1), self.layout == "ir_mul").reshape(features.shape)
        return y.to(torch.promote_types(features.dtype, self.affine_weight.dtype) if self.affine else features.dtype)
