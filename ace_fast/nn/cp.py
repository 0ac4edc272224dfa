"""Factors of rank R for all Clebsch-Gordan paths at once: fitted once, kept on disk, with the errors that they imply.

The coefficients of all paths of x (d1 components) and y (d2) to z (d3) are one tensor M_ijk. With
`M_ijk ~ sum_r B_ri C_rj A_kr` the product is `z = A ((B x) * (C y))`: R (d1 + d2 + d3) operations a channel.
"""

import hashlib
import json
import os
from functools import cache as memo
from math import sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from e3nn import o3
from torch import Tensor

from ..kernels.constant import plainly
from ..kernels.define import integer
from .fields import KINDS, Factors, Fields, factors, paths, variances

_FORMAT = 1  # of the files
_SWEEPS = {True: 150, False: 1000}  # of alternating least squares: where Gauss-Newton follows, and alone
_SMALL = 4096  # coefficients up to which Gauss-Newton solves for all of them (L = 3)
_STEPS, _WINDOW = 100, 10  # of Gauss-Newton at most; those over which the residual must fall by a tenth
_EXACT = 1e-13  # relative error at which a fit ends
_DAMPING = 1e-1, 1e-10  # of alternating least squares, relative, from the first sweep to the last


class Fit(NamedTuple):
    """Factors with what they cost in accuracy.

    Attributes:
        factors: A [d3, R], B [R, d1], C [R, d2], float64.
        error: ||M' - M|| / ||M||, of the coefficients; 0 where `exact`, whose paths have strengths of their own.
        equivariance_error: root mean square of ||f(gx, gy) - g f(x, y)|| / ||f(x, y)|| over rotations g (and
            reflections) and normal x, y: from what of M' is no combination of paths.
        exact: whether the factors are those of `exact`.
    """

    factors: Factors
    error: float
    equivariance_error: float
    exact: bool

    @property
    def rank(self) -> int:
        """R."""
        return self.factors.rank


def fields_of(who: str, irreps_in1, irreps_in2=None, irreps_out=None) -> tuple[Fields, Fields, Fields]:
    """The irreps of a fit, one channel each; in2 and out are in1 where None, an int L is 0e+1e+...+Le.

    Raises:
        ValueError: no irreps, a degree twice, irreps that no path couples.
    """
    found = []
    for argument, irreps in (("irreps_in1", irreps_in1), ("irreps_in2", irreps_in2), ("irreps_out", irreps_out)):
        irreps = irreps_in1 if irreps is None else irreps
        if isinstance(irreps, int):
            irreps = o3.Irreps([(1, (n, 1)) for n in range(integer(who, argument, irreps) + 1)])
        irreps = o3.Irreps([(1, ir) for _, ir in o3.Irreps(irreps)])
        if not irreps:
            raise ValueError(f"{who}: {argument} must hold an irrep or more, got none")
        if len({ir.l for _, ir in irreps}) < len(irreps):
            raise ValueError(f"{who}: {argument} must hold each degree once, got {irreps}; fit true and pseudo irreps "
                             "apart")
        found.append(Fields(who, argument, irreps))
    if not allowed(found):
        raise ValueError(f"{who}: irreps_out must be reachable from {found[0].irreps} x {found[1].irreps}, got "
                         f"{found[2].irreps}")
    return tuple(found)


def allowed(fields: tuple[Fields, Fields, Fields]) -> list[tuple[int, int, int]]:
    """All Clebsch-Gordan paths (slot of in1, of in2, of out)."""
    return [path for kind in KINDS for path in paths(fields, kind)]


def symbols(fields: tuple[Fields, Fields, Fields]) -> list[tuple[tuple[slice, slice, slice], Tensor]]:
    """Where the coefficients of every path are in M, and e3nn's 3j symbols."""
    found = []
    for path in allowed(fields):
        irs = [f.irs[n] for f, n in zip(fields, path, strict=True)]
        at = tuple(slice(f.starts[n], f.starts[n] + ir.dim) for f, n, ir in zip(fields, path, irs, strict=True))
        found.append((at, o3.wigner_3j(*(ir.l for ir in irs), dtype=torch.float64, device="cpu")))
    return found


def target(fields: tuple[Fields, Fields, Fields]) -> Tensor:
    """M [d1, d2, d3]: every path with the same weight, so that components of the result have unit variance."""
    found = torch.zeros([f.width for f in fields], dtype=torch.float64, device="cpu")
    for at, path in symbols(fields):
        found[at] = path
    norms = found.square().sum((0, 1))
    return found * norms.clamp(min=1e-30).rsqrt()


def equivariance_error(fields: tuple[Fields, Fields, Fields], tensor: Tensor) -> float:
    """That of the bilinear map with these coefficients [d1, d2, d3].

    Averaged over the group, what is orthogonal to all paths meets its turned self with mean 0: the mean square of the
    difference is twice its square.
    """
    rest = tensor.clone()
    for at, path in symbols(fields):
        rest[at] -= (rest[at] * path).sum() * path
    return sqrt(2) * float(rest.norm() / tensor.norm())


def exact(irreps_in1, irreps_in2=None, irreps_out=None) -> Fit:
    """Exactly equivariant factors with every path, from grids on the sphere; each path has its own strength.

    The rank is the number of points of an exact grid for the paths with l1 + l2 + l3 even, and twice that of another
    one for the odd ones (by the Poisson bracket): about (3L + 1)^2 together. Where d1 d2 is less, as for L = 1, it is
    that: a product for every pair of components, and paths of equal strength.

    Args:
        irreps_in1, irreps_in2, irreps_out: as in `fit`.

    Raises:
        ValueError: irreps that no path couples, a degree twice.
    """
    with torch.device("cpu"):
        return _exact(fields_of("cp.exact", irreps_in1, irreps_in2, irreps_out))


def _exact(fields: tuple[Fields, Fields, Fields]) -> Fit:
    found = [factors(fields, kind) for kind in KINDS if paths(fields, kind)]
    d1, d2, d3 = (f.width for f in fields)
    if sum(tables.rank for tables in found) > d1 * d2:
        rows = [torch.eye(d, dtype=torch.float64, device="cpu") for d in (d1, d2)]
        pairs = Factors(target(fields).reshape(d1 * d2, d3).T.contiguous(), rows[0].repeat_interleave(d2, 0),
                        rows[1].repeat(d1, 1))
        return Fit(pairs, 0.0, 0.0, True)
    A, B, C = (torch.cat(tables, dim) for tables, dim in zip(zip(*found, strict=True), (1, 0, 0), strict=True))
    gains = sum(variances(fields, kind) for kind in KINDS).clamp(min=1e-30).rsqrt()
    A = A * fields[2].spread(gains)[:, None]
    return Fit(Factors(A, B, C), 0.0, equivariance_error(fields, Factors(A, B, C).tensor()), True)


def fit(irreps_in1, irreps_in2=None, irreps_out=None, rank: int | str | None = None, *, seed: int = 0,
        cache: str | os.PathLike | None = None) -> Fit:
    """Factors of all Clebsch-Gordan paths with equal weights; the same for the same seed.

    Alternating least squares, to degree 3 followed by Gauss-Newton, which finds exact factors (to 1e-13) where the rank
    suffices: 8 for L = 1, 30 for L = 2 and 96 for L = 3 (of 0e+1e+...; d^2 is 16, 81 and 256). It takes seconds for
    L = 2 and minutes for L = 6, once: the factors are kept on disk.

    Args:
        irreps_in1, irreps_in2, irreps_out: irreps of one channel, each degree once (multiplicities are ignored); in2
            and out are in1 where None; an int L is 0e+1e+...+Le, rotations without parity.
        rank: R; None for 7 L^2 (TDN's choice, 7 for L = 0 too); "exact" for `exact`, factors that need no fit.
        seed: of the first factors.
        cache: the folder of fits; by default $ACE_FAST_DATA or else ~/.cache/ace_fast.

    Raises:
        ValueError: a rank outside 1..d1 d2 (with which any map is exact) or a seed that is no integer from 0 on, irreps
            that no path couples, a degree twice, no irreps.

    Source: Lin et al. 2025 (TDN), which fits by gradient descent.

    Example:
        >>> ace_fast.nn.cp.fit(1, rank=8).error < 1e-12
        True
    """
    with torch.device("cpu"):  # e3nn's symbols are made on the default device
        return _fit(fields_of("cp.fit", irreps_in1, irreps_in2, irreps_out), rank, seed, cache)


def _fit(fields: tuple[Fields, Fields, Fields], rank: int | str | None, seed: int, cache: str | os.PathLike | None
         ) -> Fit:
    if rank == "exact":
        return _exact(fields)
    if rank is None:
        rank = min(max(7, 7 * max(f.lmax for f in fields) ** 2), fields[0].width * fields[1].width)
    most = fields[0].width * fields[1].width
    rank = integer("cp.fit", "rank", rank, 1, most, f"with {most} every map is exact; 'exact' needs no fit")
    seed = integer("cp.fit", "seed", seed)
    folder = Path(cache or os.environ.get("ACE_FAST_DATA") or Path.home() / ".cache" / "ace_fast")
    kept = _fitted(tuple(str(f.irreps) for f in fields), rank, seed, folder)
    found = Factors(*(table.clone() for table in kept))  # the caller may write to them
    wanted = target(fields)
    made = found.tensor()
    return Fit(found, float((made - wanted).norm() / wanted.norm()), equivariance_error(fields, made), False)


@memo
@plainly()
def _fitted(irreps: tuple[str, str, str], rank: int, seed: int, folder: Path) -> Factors:
    """The factors from the cache, or fitted and put there."""
    from ..data.store import Store, Words  # the data package imports much

    settings = {"irreps": list(irreps), "rank": rank, "seed": seed}
    stem = "cp-" + hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    store = Store(folder, stem, {"format": _FORMAT, "settings": settings}, Words("cp.fit", "factors", "fitted"))
    wanted = target(fields_of("cp.fit", *irreps))
    shapes = {"A": (wanted.shape[2], rank), "B": (rank, wanted.shape[0]), "C": (rank, wanted.shape[1])}

    def check(found, arrays):
        for name, shape in shapes.items():
            if arrays[name].shape != shape or arrays[name].dtype != np.float64:
                raise ValueError(f"{name} must be float64 {shape}, got {arrays[name].dtype} {arrays[name].shape}")
        return Factors(*(torch.from_numpy(np.array(arrays[name])) for name in shapes)), []

    kept = store.read(list(shapes), check)
    if kept is None:
        kept = _solve(wanted, rank, seed)
        store.write({name: table.numpy() for name, table in zip(shapes, kept, strict=True)})
    return kept


def _solve(wanted: Tensor, rank: int, seed: int) -> Factors:
    """The factors of a tensor [d1, d2, d3]."""
    small = wanted.numel() <= _SMALL
    tables = _least_squares(wanted, rank, seed, _SWEEPS[small])
    one, two, out = _gauss_newton(wanted, tables) if small else tables
    return Factors(out.T.contiguous(), one, two)


def _least_squares(wanted: Tensor, rank: int, seed: int, sweeps: int) -> list[Tensor]:
    """Alternating least squares with damping towards the last factors, which falls from sweep to sweep: [R, d] each."""
    generator = torch.Generator("cpu").manual_seed(seed)
    tables = [torch.randn(rank, n, generator=generator, dtype=torch.float64, device="cpu") for n in wanted.shape]
    unfolded = [wanted.movedim(k, 0).flatten(1) for k in range(3)]
    one = torch.eye(rank, dtype=torch.float64, device="cpu")
    for sweep in range(sweeps):
        damping = _DAMPING[0] * (_DAMPING[1] / _DAMPING[0]) ** (sweep / sweeps)
        for k in range(3):
            a, b = (tables[n] for n in range(3) if n != k)
            gram = (a @ a.T) * (b @ b.T)
            pull = damping * gram.diagonal().mean()
            pairs = (a[:, :, None] * b[:, None]).flatten(1)  # [R, d d]
            tables[k] = torch.linalg.solve(gram + pull * one, pairs @ unfolded[k].T + pull * tables[k])
        norms = [table.norm(dim=1, keepdim=True).clamp(min=1e-30) for table in tables]
        size = (norms[0] * norms[1] * norms[2]) ** (1 / 3)
        tables = [table / norm * size for table, norm in zip(tables, norms, strict=True)]
    return tables


def _gauss_newton(wanted: Tensor, tables: list[Tensor]) -> list[Tensor]:
    """Damped Gauss-Newton (Levenberg, Marquardt) from these factors, in the space of the d1 d2 d3 residuals: the
    smaller one at ranks that allow exact factors (L = 3: 4096 residuals, 4608 unknowns at rank 96)."""
    most, damping = wanted.norm(), 1e-2
    one = torch.eye(wanted.numel(), dtype=torch.float64, device="cpu")
    rest = wanted - _product(*tables)
    norms = [float("inf")] * _WINDOW + [float(rest.norm())]
    while norms[-1] > _EXACT * most and len(norms) < _STEPS + _WINDOW and norms[-1] < 0.9 * norms[-1 - _WINDOW]:
        matrix = _normal_matrix(tables)
        for _ in range(10):
            a, b, c = tables
            dual = torch.cholesky_solve(rest.reshape(-1, 1), torch.linalg.cholesky(matrix + damping * one))
            dual = dual.reshape(rest.shape)
            moved = [a + torch.einsum("ijk,rj,rk->ri", dual, b, c), b + torch.einsum("ijk,ri,rk->rj", dual, a, c),
                     c + torch.einsum("ijk,ri,rj->rk", dual, a, b)]
            left = wanted - _product(*moved)
            if left.norm() < norms[-1]:
                tables, rest, damping = moved, left, max(damping / 5, 1e-14)
                break
            damping *= 4
        norms.append(float(rest.norm()))
    return tables


def _product(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.einsum("ri,rj,rk->ijk", a, b, c)


def _normal_matrix(tables: list[Tensor]) -> Tensor:
    """J J^T of the residuals' derivatives with respect to all factors, [d1 d2 d3, d1 d2 d3]."""
    shape = [table.shape[1] for table in tables]
    found = torch.zeros(*shape, *shape, dtype=torch.float64, device="cpu")
    for k in range(3):
        a, b = (tables[n] for n in range(3) if n != k)
        pairs = (a[:, :, None] * b[:, None]).flatten(1)
        block = (pairs.T @ pairs).reshape(a.shape[1], b.shape[1], a.shape[1], b.shape[1])
        found.diagonal(0, k, k + 3).add_(block[..., None])
    return found.flatten(3).flatten(0, 2)
