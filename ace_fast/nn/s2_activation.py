"""e3nn's S2Activation: a function of the field on the sphere, from coefficients to coefficients."""

import contextlib
from collections.abc import Callable

import e3nn.nn
import torch
from e3nn import o3
from torch import Tensor, nn

from .. import functional
from ..kernels.define import integer
from ..kernels.sphere_activation.op import BACKENDS
from ..kernels.sphere_product.reference import components, joined
from .fields import Fields, degrees_from_zero
from .gate import kind
from .tensor_product import check_columns, check_options, no_script, widened, without_autocast

NORMALIZATIONS = ("component", "norm", "integral")


class S2Activation(nn.Module):
    r"""Applies a nonlinearity to the function on the sphere, a drop-in for `e3nn.nn.S2Activation`.

    .. math:: y_{lm} = \int \phi\Bigl(\sum_{l'm'} x_{l'm'} Y_{l'm'}(r)\Bigr)\, Y_{lm}(r)\, dr

    Constructor, attributes, numbers and state_dict are e3nn's; its `to_s2` and `from_s2` are kept for these. SiLU,
    ReLU, GELU, tanh, sigmoid and softplus (functions or modules) run as one operator, which stores no value at a point;
    any other nonlinearity by the same tables in plain torch.

    Args:
        irreps: of degrees 0..L, each once, of one multiplicity (e3nn: 1) and parities p_val * p_arg^l.
        act: phi, normalised by e3nn's `normalize2mom`.
        res: of the grid: rings (even, at least 2 (L + 1)), or (rings, azimuths), these at least 2 L + 1, where L is the
            larger of both degrees. The finer, the more equivariant: kernels/sphere_activation/README.md has errors.
        normalization: "component", "norm" or "integral".
        lmax_out: highest degree of the result, L where None.
        random_rot: turns the grid at random in each call, by e3nn's matrices, at which torch.compile breaks the graph.
        layout: of features and result, "mul_ir" (e3nn's) or "ir_mul"; with one channel the same.
        backend: which implementation of the operator runs; plain torch where it has none of this name.

    Raises:
        ValueError: irreps that are no function on the sphere, a grid too small, an act that is neither even nor odd
            where the function changes sign under reflection, unknown options.

    Derivatives of any order that the nonlinearity has. Source: e3nn; Cohen et al. 2018, spherical CNNs.

    Example:
        >>> act = ace_fast.nn.S2Activation("1x0e+1x1o+1x2e", torch.nn.functional.silu, 12)
        >>> act(torch.randn(5, 9)).shape
        torch.Size([5, 9])
    """

    def __init__(self, irreps, act: Callable, res, normalization: str = "component", lmax_out: int | None = None,
                 random_rot: bool = False, *, layout="mul_ir", backend="auto"):
        super().__init__()
        name = type(self).__name__
        irreps = o3.Irreps(irreps)
        field, _ = function_on_sphere(name, "irreps", irreps.simplify() if irreps.dim else irreps, layout)
        if normalization not in NORMALIZATIONS:
            raise ValueError(f"{name}: normalization must be one of {NORMALIZATIONS}, got {normalization!r}")
        if not callable(act) or isinstance(act, type):
            raise ValueError(f"{name}: act must be a function or a module, got {act!r}; take torch.nn.functional.silu")
        lmax_out = None if lmax_out is None else integer(name, "lmax_out", lmax_out)
        res = _resolution(name, res, max(field.lmax, field.lmax if lmax_out is None else lmax_out))
        one = o3.Irreps([(1, (ir.l, ir.p)) for ir in field.irs])
        with torch.device("cpu"):  # e3nn computes with its tables, which a meta device has none of
            try:
                like = e3nn.nn.S2Activation(one, act, res, normalization, lmax_out, random_rot)
            except ValueError as error:  # its only one: the parity is violated
                raise ValueError(f"{name}: act must be even or odd where the scalars are odd ({field.irreps}), got "
                                 f"{act}; take torch.tanh or torch.abs") from error
            with _float64():  # its quadrature weights have the accuracy of the default dtype
                exact = (o3.ToS2Grid(field.lmax, res, normalization),
                         o3.FromS2Grid(res, like.from_s2.lmax, normalization, lmax_in=field.lmax))
        self._adopt(like, *exact, field.channels, layout, backend)

    def _adopt(self, like: e3nn.nn.S2Activation, to_s2: o3.ToS2Grid, from_s2: o3.FromS2Grid, channels: int, layout: str,
               backend: str) -> None:
        """Takes over everything of an e3nn module; its tables are those of `to_s2` and `from_s2`."""
        check_options(type(self).__name__, layout=layout, backend=backend)
        for key in ("to_s2", "from_s2", "act", "random_rot"):
            setattr(self, key, getattr(like, key))
        self.irreps_in, self.irreps_out = (o3.Irreps([(channels, ir) for _, ir in irreps])
                                           for irreps in (like.irreps_in, like.irreps_out))
        self.layout, self.backend, self._channels, self._dim = layout, backend, channels, self.irreps_in.dim
        found = spherical_kind(self.act.f)
        self._fused = found if backend in ("auto", *BACKENDS) else None
        gain = 1.0 if self.act._is_id or self._fused is None else float(self.act.cst)
        with torch.no_grad():
            into = torch.einsum("mbi,am->bai", to_s2.shb.double(), to_s2.sha.double()).flatten(0, 1)
            back = torch.einsum("mbi,am->bai", from_s2.shb.double(), from_s2.sha.double()).flatten(0, 1)
        self.grid = functional.SphereGrid(into, gain * back, to_s2.res_alpha)

    @classmethod
    def from_e3nn(cls, module: e3nn.nn.S2Activation, backend: str = "auto", layout: str = "mul_ir"):
        """This layer with the very tables and nonlinearity of an e3nn module."""
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        new._adopt(module, module.to_s2, module.from_s2, 1, layout, backend)
        return new.train(module.training)

    def __repr__(self) -> str:
        return f"{type(self).__name__} ({self.irreps_in} -> {self.irreps_out})"

    def __prepare_scriptable__(self):
        no_script(self)

    def forward(self, features: Tensor) -> Tensor:
        """features [..., irreps_in.dim] -> [..., irreps_out.dim]."""
        check_columns(type(self).__name__, features=(features, self._dim))
        dtype = features.dtype
        if self.random_rot:
            features = widened(features)
            angles = o3.rand_angles(dtype=features.dtype, device=features.device)
            features = self._turn(features, self.irreps_in, angles, False)
        rows = features.reshape(features.shape[:-1].numel(), self._dim)
        if self._fused is not None:
            out = functional.sphere_activation(rows, self.grid, act=self._fused, layout=self.layout,
                                               backend=self.backend)
        else:
            out = self._plain(rows)
        out = out.reshape(*features.shape[:-1], out.shape[1])
        return self._turn(out, self.irreps_out, angles, True).to(dtype) if self.random_rot else out

    def _plain(self, rows: Tensor) -> Tensor:
        """The same by the tables [S, d], every value in memory."""
        x = components(rows, (self.grid.lmax + 1) ** 2, self.layout == "ir_mul")
        return joined(at_points(x, self.grid, self.act), self.layout == "ir_mul")

    def _turn(self, x: Tensor, irreps: o3.Irreps, angles: tuple[Tensor, ...], back: bool) -> Tensor:
        """Coefficients in a turned frame, or out of it."""
        degrees = o3.Irreps([(1, ir) for _, ir in irreps])
        field = components(x.reshape(x.shape[:-1].numel(), x.shape[-1]), degrees.dim, self.layout == "ir_mul")
        with without_autocast(x):
            matrix = degrees.D_from_angles(*angles).to(x.dtype)  # e3nn has the default dtype in it
            turned = torch.einsum("ij,zjc->zic", matrix.mT if back else matrix, field)
        return joined(turned, self.layout == "ir_mul").reshape(x.shape)


def at_points(x: Tensor, grid: functional.SphereGrid, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Fields [Z, d, C] through a function of their values [Z, S, C] -> [Z, S, C'], to coefficients [Z, e, C'].

    Plain torch with every value in memory; the transforms keep float32 for bfloat16 and under autocast.
    """
    into, back = grid.on(x.device)
    with without_autocast(x):
        wide = widened(x)
        values = torch.einsum("si,zic->zsc", into.to(wide.dtype), wide).to(x.dtype)
    values = function(values)
    with without_autocast(x):
        wide = widened(values)
        return torch.einsum("si,zsc->zic", back.to(wide.dtype), wide).to(values.dtype)


@contextlib.contextmanager
def _float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def spherical_kind(activation) -> str | None:
    """Which nonlinearity of `sphere_activation` a function or module is, if any."""
    plain = {"gelu": nn.functional.gelu, "softplus": nn.functional.softplus}
    for name, function in plain.items():
        if activation is function:
            return name
    if type(activation) is nn.GELU and activation.approximate == "none":
        return "gelu"
    if type(activation) is nn.Softplus and (activation.beta, activation.threshold) == (1, 20):
        return "softplus"
    return kind(activation)


def function_on_sphere(who: str, argument: str, irreps, layout: str) -> tuple[Fields, tuple[int, int]]:
    """Irreps of degrees 0..L as C functions on the sphere, f(r) -> p_val f(p_arg r) under reflection: (p_val, p_arg).

    Raises:
        ValueError: degrees that are missing or out of order, several multiplicities, parities of no function.
    """
    field = degrees_from_zero(who, argument, irreps, layout)
    p_val = field.irs[0].p
    for p_arg in (1, -1):
        if all(ir.p == p_val * p_arg**ir.l for ir in field.irs):
            return field, (p_val, p_arg)
    raise ValueError(f"{who}: {argument} must be of one parity or of alternating ones (0e+1o+2e), got {field.irreps}; "
                     "no function on the sphere has these, put an ace_fast.nn.Linear before that selects")


def _resolution(who: str, res, lmax: int) -> int | tuple[int, int]:
    """e3nn's `res`, checked: its own assertions say nothing."""
    pair = isinstance(res, tuple | list) and len(res) == 2
    rings, azimuths = res if pair else (res, 2 * lmax + 1)
    if not all(isinstance(n, int) for n in (rings, azimuths)):
        raise ValueError(f"{who}: res must be an int or a pair of ints, got {res!r}")
    if rings % 2 or rings < 2 * (lmax + 1) or azimuths < 2 * lmax + 1:
        raise ValueError(f"{who}: res must have at least {2 * (lmax + 1)} rings, an even number, and {2 * lmax + 1} "
                         f"azimuths for degree {lmax}, got {res}")
    return (rings, azimuths) if pair else rings
