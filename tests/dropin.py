"""What the tests of the drop-in layers share: e3nn's tolerances, comparison of values and gradients, layouts."""

import copy
import io
import pickle

import torch
from e3nn import o3

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}  # e3nn's own tests'
TIGHT = {torch.float32: 2e-6, torch.float64: 1e-13}  # relative to the largest value


class Slope(torch.nn.Module):
    """A nonlinearity with a parameter."""

    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return torch.tanh(self.slope * x)


def tolerance() -> float:
    """e3nn's tolerance for the present default dtype."""
    return TOLERANCE[torch.get_default_dtype()]


def assert_close(mine: torch.Tensor, theirs: torch.Tensor, factor: float = 1.0) -> None:
    """Same shape and dtype, equal to rounding."""
    assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
    if mine.numel():
        scale = theirs.detach().abs().max().clamp(min=1.0)
        assert (mine - theirs).abs().max() <= factor * TIGHT[mine.dtype] * scale


def assert_same(mine, theirs, inputs, factor: float = 4.0) -> None:
    """Values and the gradients of inputs and of parameters, which both modules hold under the same names."""
    got, want = mine(*inputs), theirs(*inputs)
    assert_close(got, want, factor)
    cotangent = torch.randn_like(want)
    leaves = [x for x in inputs if isinstance(x, torch.Tensor) and x.requires_grad]
    held = [{n.removeprefix("_orig_mod."): p for n, p in m.named_parameters() if p.numel()} for m in (mine, theirs)]
    both = [leaves + [named[name] for name in held[0]] for named in held]
    if both[0] and want.requires_grad:
        for a, b in zip(torch.autograd.grad(got, both[0], cotangent), torch.autograd.grad(want, both[1], cotangent),
                        strict=True):
            assert_close(a, b, 4 * factor)


def rows(irreps, *lead: int) -> torch.Tensor:
    return torch.randn(*lead, o3.Irreps(irreps).dim, requires_grad=True)


def copies(layer) -> list:
    """The layer after deepcopy, after pickle and after torch.save."""
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    return [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(buffer, weights_only=False)]


def assert_takes_bfloat16(layer, inputs, exact: bool = True) -> None:
    """A layer on the reference backend: parameters and inputs in bfloat16, and under autocast, where it runs in float32
    if it is `exact`, without linear maps of torch."""
    layer.float().backend = "reference"
    low = [t.detach().bfloat16().requires_grad_() for t in inputs]
    wide = [t.float() for t in low]

    def run(layer, inputs, cast: bool = False) -> torch.Tensor:
        torch.manual_seed(0)  # of a grid that is turned at random
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            return layer(*inputs)

    want, own = run(layer, wide), run(copy.deepcopy(layer).bfloat16(), low)
    assert own.dtype == torch.bfloat16
    for y, bound in ((own, 1e-2), (run(layer, low, True), 1e-2), (run(layer, wide, True), 1e-6 if exact else 1e-2)):
        assert (y.float() - want).norm() < bound * want.norm()
    for g, exactly in zip(*(torch.autograd.grad(y.float().square().sum(), low) for y in (own, want)), strict=True):
        assert g.dtype == torch.bfloat16 and (g - exactly).norm() < 3e-2 * exactly.norm()


def relaid(x: torch.Tensor, irreps, to: str) -> torch.Tensor:
    """x [..., irreps.dim] in the other layout, "ir_mul" or "mul_ir"."""
    parts = []
    for s, (mul, ir) in zip(o3.Irreps(irreps).slices(), o3.Irreps(irreps), strict=True):
        shape = (mul, ir.dim) if to == "ir_mul" else (ir.dim, mul)
        parts.append(x[..., s].unflatten(-1, shape).mT.flatten(-2))
    return torch.cat(parts, -1) if parts else x
