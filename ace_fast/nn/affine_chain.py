"""Chains of linear maps and batch norms are affine in their input: one small map a block instead of H x H a row."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

NORMS = (nn.BatchNorm1d, nn.SyncBatchNorm)


class Moments(NamedTuple):
    """What batch norms of affine maps need to know of their input x [N, D]."""

    count: int | Tensor  # N, a tensor where it came from other devices
    mean: Tensor  # [D] float64
    covariance: Tensor  # [D, D] float64, biased


class AffineMaps(NamedTuple):
    """p_i = rows weights[i]^T + biases[i]: what `relaxed_linear` takes, with gate and base."""

    rows: Tensor  # [N, D], the input, centred where a norm takes the batch's statistics
    weights: list[Tensor]  # [H_i, D]
    biases: list[Tensor]  # [H_i]


def moments(x: Tensor) -> Moments:
    """Mean and biased covariance of x [N, D] in float64, the covariance from centred rows; differentiable."""
    count = x.shape[0]
    wide = x.double()
    mean = wide.sum(0) / max(count, 1)
    centred = wide - mean
    return Moments(count, mean, centred.t() @ centred / max(count, 1))


class _Sum(torch.autograd.Function):
    """The sum over processes, whose gradient is the sum of theirs; torch's own are deprecated or private."""

    @staticmethod
    def forward(ctx, x: Tensor, group: "dist.ProcessGroup | None") -> Tensor:
        ctx.group, x = group, x.clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx, g_x: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(g_x, ctx.group), None


def moments_of_all(own: Moments, group: "dist.ProcessGroup | None" = None) -> Moments:
    r"""The moments of the rows of all processes from those of each; one all-reduce, differentiable.

    .. math:: N = \sum_p n_p, \quad m = \sum_p \frac{n_p}{N} m_p, \quad
              S = \sum_p \frac{n_p}{N} (S_p + (m_p - m)(m_p - m)^T)

    Args:
        own: of this process; a process may have no rows.
        group: the processes; default: all. Each of them must call this.

    Returns:
        The same on every process. `count` is an int on the CPU; elsewhere a tensor, which nobody reads on the host.

    Each process fills one row of a table of zeros, so that the sum over processes gathers without rounding. The
    gradient of a process's rows is that of the sum of all losses, as for torch.nn.SyncBatchNorm. Source: Chan, Golub
    and LeVeque 1979, for more than two parts.
    """
    size = own.mean.shape[0]
    count, share, means, covariances = _gathered(own.count, own.mean, own.covariance.reshape(-1), group)
    mean = share @ means
    apart = means - mean
    covariance = (share @ covariances).view(size, size) + apart.t() @ (share[:, None] * apart)
    return Moments(count, mean, covariance)


def statistics_of_all(
    mean: Tensor, var: Tensor, count: int, group: "dist.ProcessGroup | None" = None
) -> tuple[Tensor, Tensor, int | Tensor]:
    """Mean, biased variance [C] and number of the values of all processes from those of each; as `moments_of_all`."""
    found, share, means, variances = _gathered(count, mean.double(), var.double(), group)
    whole = share @ means
    return whole.to(mean), (share @ (variances + (means - whole).square())).to(var), found


def _gathered(
    count: int, first: Tensor, second: Tensor, group: "dist.ProcessGroup | None"
) -> tuple[int | Tensor, Tensor, Tensor, Tensor]:
    """The number of rows of all, the share [P] of each process in it, and what each has, [P, F] and [P, S]."""
    row = torch.cat([first.new_full((1,), float(count)), first, second])
    place = dist.get_rank(group)
    below = dist.get_world_size(group) - 1 - place
    table = _Sum.apply(nn.functional.pad(row[None], (0, 0, place, below)), group)
    counts, size = table[:, 0].detach(), first.shape[0]
    found = counts.sum()
    share = counts / found.clamp(min=1)
    count = int(found) if found.device.type == "cpu" else found
    return count, share, table[:, 1:1 + size], table[:, 1 + size:]


def affine_chain(x: Tensor, first: nn.Linear, blocks: Iterable, *, weights: Sequence[Tensor] | None = None,
                 of_batch: Moments | None = None) -> AffineMaps:
    r"""The maps of x to every output of a chain of batch norms and linear maps.

    .. math:: p_0 = A_0 x + c_0, \quad p_i = W_i\, \mathrm{BN}_i(p_{i-1}) + b_i = A_i (x - m) + d_i

    With mean m and covariance S of x over the batch, BN_i sees mean d and variance a^T S a of each channel, so that
    A_i and d_i follow from the parameters, m and S alone. Running statistics are updated as the norms themselves do
    (mean, unbiased variance, momentum or the cumulative average, num_batches_tracked); norms in evaluation mode take
    theirs. Weights of parametrised maps (spectral norm) are evaluated once a call. Hooks of the modules do not run.

    In training, blocks with torch.nn.SyncBatchNorm (what its convert_sync_batchnorm makes of a model) take the moments
    of all processes, one all-reduce a call; BatchNorm1d those of its own process, with DistributedDataParallel too.

    Args:
        x: [N, D]; half precision is taken to the parameters' dtype, autocast is off inside.
        first: the linear map D -> H_0.
        blocks: pairs (BatchNorm1d(H_{i-1}) or SyncBatchNorm, Linear(H_{i-1}, H_i)), for instance nn.Sequential of both.
        weights: of the blocks' linear maps, where they are formed already (`spectral_weights`); default: read here.
        of_batch: `moments` of a batch that is more than x; default: x's own, or with SyncBatchNorm `moments_of_all`.

    Returns:
        Rows, and for each block weight [H_i, D] and bias [H_i]: p_i = rows weight^T + bias.

    Raises:
        ValueError: wrong shapes or modules; norms that take the statistics of different processes; one row where a norm
            takes the batch's statistics, as torch does.

    Derivatives of any order in x and the parameters. Variances are formed in float64 from the covariance of centred
    rows, so that float32 is as good as in the plain chain. Source: the branches of the ACE code's SchNet and EGNO
    (Manolache et al. 2025); docs/algebra.md.

    Example:
        >>> first = torch.nn.Linear(3, 8)
        >>> blocks = [(torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 8)) for _ in range(2)]
        >>> maps = ace_fast.nn.affine_chain(torch.randn(5, 3), first, blocks)
        >>> [torch.nn.functional.linear(maps.rows, *p).shape for p in zip(maps.weights, maps.biases)]
        [torch.Size([5, 8]), torch.Size([5, 8])]
    """
    pairs = _checked(x, first, blocks)
    if weights is not None and len(weights) != len(pairs):
        raise ValueError(f"affine_chain: weights must be {len(pairs)} matrices, one for each block, got {len(weights)}")
    batch = None
    with torch.autocast(x.device.type, enabled=False):
        rows = x = x.to(first.weight.dtype)
        weight, bias = _affine(first, first.weight)
        if any(_takes_batch(norm) for norm, _ in pairs):
            batch = _moments(x, pairs) if of_batch is None else of_batch
            if isinstance(batch.count, int) and batch.count == 1:
                raise ValueError("Expected more than 1 value per channel when training, got input size "
                                 f"{torch.Size([1, first.out_features])}")
            rows = (x - batch.mean).to(x.dtype)
            bias = bias + weight @ batch.mean
        found = AffineMaps(rows, [], [])
        for i, (norm, linear) in enumerate(pairs):
            weight, bias = _normed(norm, weight, bias, batch)
            turn, shift = _affine(linear, linear.weight if weights is None else weights[i])
            weight, bias = turn @ weight, torch.addmv(shift, turn, bias)
            found.weights.append(weight.to(x.dtype))
            found.biases.append(bias.to(x.dtype))
    return found


def _checked(x, first, blocks) -> list[tuple[nn.Module, nn.Linear]]:
    """The pairs of the chain, whose widths fit."""
    if not isinstance(first, nn.Linear):
        raise ValueError(f"affine_chain: first must be a Linear, got {type(first).__name__}")
    if not isinstance(x, Tensor) or x.dim() != 2 or x.shape[1] != first.in_features:
        got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"affine_chain: x must be [N, {first.in_features}], got {got}")
    pairs, width = [], first.out_features
    for i, block in enumerate(blocks):
        block = tuple(block)
        names = [type(module).__name__ for module in block]
        if len(block) != 2 or not isinstance(block[0], NORMS) or not isinstance(block[1], nn.Linear):
            raise ValueError(f"affine_chain: blocks[{i}] must be (BatchNorm1d, Linear), got {names}")
        norm, linear = block
        if (norm.num_features, linear.in_features) != (width, width):
            raise ValueError(f"affine_chain: blocks[{i}] must take {width} channels, got {norm.num_features} and "
                             f"{linear.in_features}")
        width = linear.out_features
        pairs.append(block)
    return pairs


def _affine(linear: nn.Linear, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias, zeros where there is none, in float64: norms cancel what they scale and shift."""
    weight = weight.double()
    return weight, weight.new_zeros(weight.shape[0]) if linear.bias is None else linear.bias.double()


def _takes_batch(norm: nn.Module) -> bool:
    return norm.training or norm.running_mean is None


def group_of(norm: nn.Module) -> "dist.ProcessGroup | None":
    """The processes whose rows the norm sees; None: its own alone."""
    if not isinstance(norm, nn.SyncBatchNorm) or not (norm.training and dist.is_available() and dist.is_initialized()):
        return None
    group = norm.process_group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def _moments(x: Tensor, pairs: list) -> Moments:
    """Of the rows that the norms see."""
    groups = [group_of(norm) for norm, _ in pairs if _takes_batch(norm)]
    group = groups[0]
    if any(other is not group for other in groups):
        raise ValueError("affine_chain: blocks must have norms that take the statistics of the same processes, got "
                         f"{[type(norm).__name__ for norm, _ in pairs]}; use convert_sync_batchnorm on the whole model")
    return moments(x) if group is None else moments_of_all(moments(x), group)


def _normed(norm: nn.Module, weight: Tensor, bias: Tensor, batch: Moments | None) -> tuple[Tensor, Tensor]:
    """The map after the norm. On centred rows the bias is the mean over the batch, which the norm removes."""
    if _takes_batch(norm):
        var = ((weight @ batch.covariance) * weight).sum(1)
        track(norm, bias, var, batch.count)
        centred = 0 * bias  # its gradient is zero, not missing: optimisers and DistributedDataParallel see to it
    else:
        var, centred = norm.running_var, bias - norm.running_mean
    scale = (var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = centred * scale if norm.bias is None else torch.addcmul(norm.bias, centred, scale)
    return weight * scale[:, None], shift


@torch.no_grad()
def track(norm: nn.Module, mean: Tensor, var: Tensor, count: int | Tensor) -> None:
    """Running statistics, as torch's norms: an empty batch counts and changes nothing else."""
    if not (norm.training and norm.track_running_stats) or norm.running_mean is None:
        return
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    if isinstance(count, int) and count == 0:
        return
    share = norm.momentum if norm.momentum is not None else 1 / norm.num_batches_tracked.double()
    for running, value in ((norm.running_mean, mean), (norm.running_var, var * (count / (count - 1)))):
        running.copy_((1 - share) * running + share * value)
