"""EquiformerV3's feed-forward layers on the sphere: SwiGLU-S2, and a perceptron over channels at every point."""

import warnings
from collections.abc import Sequence

import torch
from e3nn import o3
from torch import Tensor, nn
from torch.nn import functional as F

from .. import functional
from ..kernels.define import integer
from ..kernels.sphere_activation.reference import ACTIVATIONS, FUNCTIONS
from ..kernels.sphere_product import grids
from ..kernels.sphere_product.reference import components, joined
from .s2_activation import at_points, function_on_sphere
from .tensor_product import check_columns, check_options, no_script


class SwiGLUS2(nn.Module):
    r"""SwiGLU-S2: a gated product of two fields, and SwiGLU of scalars added to its degree 0.

    .. math:: y = \sigma(s_3)\, \mathrm{FromGrid}(\mathrm{ToGrid}(x_1)\, \mathrm{ToGrid}(x_2))
              + [l = 0]\, \mathrm{SiLU}(s_1)\, s_2

    The nonlinearity acts on scalars alone and the product is a polynomial, so a grid that integrates degree 3 L makes
    the layer equivariant to rounding. No parameters.

    Args:
        irreps_out: C x (0e + 1o + 2e + ...) or C x (0e + 1e + 2e + ...), degrees 0..L.
        grid: (rings, azimuths) of a Gauss-Legendre grid, "lebedev" (few points), or a `grids.Grid`; None takes the
            smallest exact one of Gauss-Legendre's.
        merge: whether the scalars have the part s_1, s_2 that is added; without, they are s_3 alone.
        layout: of inputs and result, "mul_ir" or "ir_mul" (EquiformerV3's [N, (L+1)^2, channels], flattened).
        backend: which implementation of the operator runs.

    Attributes:
        irreps_in: 2 C channels of the same irreps, x_1 in the first C. irreps_scalars: 3 C (or C) x 0e.

    Raises:
        ValueError: irreps that are no function on the sphere or whose scalars are odd, a grid too small.

    Derivatives of any order. Source: EquiformerV3 (Liao et al. 2026), its activation "sep-merge_gates2_swiglu".

    Example:
        >>> layer = ace_fast.nn.SwiGLUS2("8x0e+8x1o+8x2e")
        >>> layer(torch.randn(5, 16 * 9), torch.randn(5, 24)).shape
        torch.Size([5, 72])
    """

    def __init__(self, irreps_out, grid=None, *, merge: bool = True, layout="mul_ir",
                 backend="auto"):
        super().__init__()
        name = type(self).__name__
        check_options(name, backend=backend)
        field = _true_field(name, "irreps_out", irreps_out, layout)
        self.irreps_out = field.irreps
        self.irreps_in = o3.Irreps([(2 * mul, ir) for mul, ir in self.irreps_out])
        self.irreps_scalars = o3.Irreps([((3 if merge else 1) * field.channels, "0e")])
        self.merge, self.layout, self.backend = merge, layout, backend
        self._channels, self._in, self._scalars = field.channels, self.irreps_in.dim, self.irreps_scalars.dim
        self._width, self._degrees = field.width, len(field.irs)
        self.grid = _product_grid(name, field.lmax, field.lmax, grid)

    def extra_repr(self) -> str:
        return f"{self.irreps_in} -> {self.irreps_out}, {self.grid}, merge={self.merge}"

    def __prepare_scriptable__(self):
        no_script(self)

    def forward(self, inputs: Tensor, scalars: Tensor) -> Tensor:
        """inputs [..., irreps_in.dim], scalars [..., irreps_scalars.dim] -> [..., irreps_out.dim]."""
        name, C = type(self).__name__, self._channels
        check_columns(name, inputs=(inputs, self._in), scalars=(scalars, self._scalars))
        if inputs.shape[:-1] != scalars.shape[:-1]:
            raise ValueError(f"{name}: scalars must be {[*inputs.shape[:-1], self._scalars]}, "
                             f"got {list(scalars.shape)}")
        lead, rows = inputs.shape[:-1], inputs.shape[:-1].numel()
        x1, x2 = self._halves(inputs.reshape(rows, self._in))
        scalars = scalars.reshape(rows, self._scalars)
        gate = torch.sigmoid(scalars[:, self._scalars - C:])
        y = functional.sphere_activation(x1, self.grid, x2, gate, act="none", layout=self.layout, backend=self.backend)
        if self.merge:  # degree 0 comes first in both layouts
            y = torch.cat([y[:, :C] + F.silu(scalars[:, :C]) * scalars[:, C:2 * C], y[:, C:]], 1)
        return y.reshape(*lead, C * self._width)

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The first and the last C channels of rows with 2 C."""
        C = self._channels
        if self.layout == "ir_mul":
            x = x.reshape(x.shape[0], self._width, 2 * C)
            return x[..., :C].flatten(1), x[..., C:].flatten(1)
        pieces = x.split([C * (2 * n + 1) for n in range(self._degrees) for _ in range(2)], 1)
        return torch.cat(pieces[::2], 1), torch.cat(pieces[1::2], 1)


class S2MLP(nn.Module):
    r"""A perceptron over channels at every point of the sphere.

    .. math:: y = \mathrm{FromGrid}\bigl(W_2\, f(W_1\, \mathrm{ToGrid}(x) + b_1) + b_2\bigr)

    Linear maps of channels commute with both transforms: W_1 and W_2 act on the coefficients, which are fewer than
    points, and only f on the sphere, as one operator. With act "swiglu" the hidden layer is EquiformerV3's gated
    product, with 2 H channels of W_1 and gates from the scalars of x: sigma(W_g x_0 + b_g) u_1 u_2, equivariant to
    rounding.

    With several hidden layers (EquiformerV2's and UMA's grid MLP has two) the first and the last map still act on
    coefficients. Those between stand behind an f and before another, so they have to run at the points: plain torch,
    which keeps about 2 S (H_1 + H_2 + ...) numbers a row for the gradient, S points, one hidden layer (L + 1)^2 H.

    Args:
        irreps_in: C x (0e + 1o + ...) or C x (0e + 1e + ...), degrees 0..L.
        irreps_out: of the same parities, any multiplicity and highest degree.
        hidden: H, channels of the hidden layer, or a list of those of several (not for "swiglu").
        act: f, "silu", "relu", "gelu", "tanh", "sigmoid", "softplus", or "swiglu".
        grid: (rings, azimuths) of a Gauss-Legendre grid, "lebedev", or a `grids.Grid`; None takes one of
            Gauss-Legendre's that is exact for "swiglu", and otherwise to degree 4 L, (2 L + 1) x (4 L + 1) points.
        bias: b_1 and b_2, as numbers at the points.
        layout: of inputs and result, "mul_ir" or "ir_mul", which needs no copy.
        backend: which implementation of the operator runs.

    Parameters are those of EquiformerV3's grid MLP: `grid_linear_1`, `grid_linear_2`, and on; `gating_linear` with
    "swiglu".

    Raises:
        ValueError: irreps that are no functions on the sphere, of other parities or with odd scalars, an unknown act,
            hidden layers that are none or, with "swiglu", several, a grid too small.

    Derivatives of any order. Sources: Facet (Miklaucic et al. 2025); EquiformerV3 (Liao et al. 2026),
    GatedSwiGLUGridMLP.

    Example:
        >>> mlp = ace_fast.nn.S2MLP("8x0e+8x1o+8x2e", "4x0e+4x1o", 32)
        >>> mlp(torch.randn(5, 72)).shape
        torch.Size([5, 16])
    """

    def __init__(self, irreps_in, irreps_out, hidden: int | Sequence[int], act: str = "silu",
                 grid=None, bias: bool = True, *, layout="mul_ir", backend="auto"):
        super().__init__()
        name = type(self).__name__
        acts = ("swiglu", *(act for act in ACTIVATIONS if act != "none"))
        if act not in acts:
            raise ValueError(f"{name}: act must be one of {acts}, got {act!r}")
        check_options(name, backend=backend)
        sizes = _sizes(name, hidden, act)
        one, two = (_true_field(name, argument, irreps, layout)
                    for argument, irreps in (("irreps_in", irreps_in), ("irreps_out", irreps_out)))
        shared = min(len(one.irs), len(two.irs))
        if one.irs[:shared] != two.irs[:shared]:
            raise ValueError(f"{name}: irreps_out must have the parities of irreps_in ({one.irreps}), got {two.irreps}")
        self.irreps_in, self.irreps_out, self.act, self.hidden = one.irreps, two.irreps, act, hidden
        self.layout, self.backend = layout, backend
        self._in, self._width, self._out, self._layers = one.dim, one.width, two.dim, len(sizes)
        gated = act == "swiglu"
        inner, outer = [one.channels, *sizes], [2 * sizes[0] if gated else sizes[0], *sizes[1:], two.channels]
        for n, (i, o) in enumerate(zip(inner, outer, strict=True), 1):
            self.add_module(f"grid_linear_{n}", _linear(i, o, bias))
        self.gating_linear = _linear(one.channels, sizes[0], True) if gated else None
        self.grid = (_product_grid if gated else _activation_grid)(name, one.lmax, two.lmax, grid)
        into, back = self.grid.on(torch.device("cpu"))
        self._constant = 1 / float(into[0, 0]), float(back[:, 0].sum())  # of the function 1: coefficient, and back

    def extra_repr(self) -> str:
        return f"{self.irreps_in} -> {self.irreps_out}, hidden={self.hidden}, act={self.act!r}, {self.grid}"

    def __prepare_scriptable__(self):
        no_script(self)

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs [..., irreps_in.dim] -> [..., irreps_out.dim]."""
        check_columns(type(self).__name__, inputs=(inputs, self._in))
        lead, rows = inputs.shape[:-1], inputs.shape[:-1].numel()
        x = components(inputs.reshape(rows, self._in), self._width, self.layout == "ir_mul")  # [Z, d, C]
        y = self._at_one_layer(x) if self._layers == 1 else self._at_points(x)  # [Z, e, H]
        last = self.get_submodule(f"grid_linear_{self._layers + 1}")
        y = _affine(y, last.weight, last.bias, self._constant[1])
        return joined(y, self.layout == "ir_mul").reshape(*lead, self._out)

    def _at_one_layer(self, x: Tensor) -> Tensor:
        """The hidden layer as one operator."""
        weight, bias = self.grid_linear_1.weight, self.grid_linear_1.bias
        parts = weight.chunk(2) if self.act == "swiglu" else (weight,)
        biases = [None] * 2 if bias is None else bias.chunk(len(parts))
        u = [_affine(x, w, b, self._constant[0]).flatten(1) for w, b in zip(parts, biases, strict=False)]
        if self.act == "swiglu":
            gate = torch.sigmoid(self.gating_linear(x[:, 0]))
            u += [gate]
        f = "none" if self.act == "swiglu" else self.act
        y = functional.sphere_activation(u[0], self.grid, *u[1:], act=f, layout="ir_mul", backend=self.backend)
        return y.reshape(x.shape[0], (self.grid.lmax_out + 1) ** 2, self.grid_linear_2.in_features)

    def _at_points(self, x: Tensor) -> Tensor:
        """Several hidden layers, their values in memory."""
        f, inner = FUNCTIONS[self.act], [self.get_submodule(f"grid_linear_{n}") for n in range(2, self._layers + 1)]

        def hidden(values: Tensor) -> Tensor:
            values = f(values)
            for linear in inner:
                values = f(linear(values))
            return values

        first = self.grid_linear_1
        return at_points(_affine(x, first.weight, first.bias, self._constant[0]), self.grid, hidden)


def _sizes(who: str, hidden, act: str) -> tuple[int, ...]:
    """The channels of every hidden layer, checked."""
    sizes = tuple(integer(who, "hidden", n) for n in (hidden if isinstance(hidden, list | tuple) else [hidden]))
    if not sizes:
        raise ValueError(f"{who}: hidden must be a number of channels or a list of some, got {hidden!r}")
    if len(sizes) > 1 and act == "swiglu":
        raise ValueError(f"{who}: hidden must be one number with act 'swiglu', got {hidden!r}; put layers one behind "
                         "the other")
    return sizes


def _linear(inner: int, outer: int, bias: bool) -> nn.Linear:
    """torch's, which warns of maps from or to no channels."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")
        return nn.Linear(inner, outer, bias)


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None, constant: float) -> Tensor:
    """[Z, d, C] -> [Z, d, O]: channels mapped, `constant` times the bias added to degree 0."""
    y = F.linear(x, weight)
    return y if bias is None else torch.cat([y[:, :1] + constant * bias, y[:, 1:]], 1)


def _true_field(who: str, argument: str, irreps, layout: str):
    field, (p_val, _) = function_on_sphere(who, argument, irreps, layout)
    if p_val != 1:
        raise ValueError(f"{who}: {argument} must have even scalars (0e), got {field.irreps}; functions of a field "
                         "that changes sign under reflection break parity")
    return field


def _product_grid(who: str, lmax: int, lmax_out: int, grid) -> functional.SphereGrid:
    """Exact for the product of two fields."""
    points = _points(who, grid, grids.product_degree((lmax, lmax), lmax_out))
    grids.check(points, (lmax, lmax), lmax_out)
    return functional.SphereGrid.of(points, lmax, lmax_out)


def _activation_grid(who: str, lmax: int, lmax_out: int, grid) -> functional.SphereGrid:
    """As given, at least exact for a linear function."""
    points = _points(who, grid, 4 * max(lmax, lmax_out))
    grids.check(points, (lmax,), lmax_out)
    return functional.SphereGrid.of(points, lmax, lmax_out)


def _points(who: str, grid, degree: int) -> grids.Grid:
    """The grid that is given; of a kind, by default Gauss-Legendre's, the smallest that is exact to the degree."""
    found = grids.given(who, "gauss" if grid is None else grid)
    return grids.exact(degree, found) if isinstance(found, str) else found
