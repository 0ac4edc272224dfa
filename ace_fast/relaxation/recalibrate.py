"""Batch-norm statistics for the strict model: what training collected with the branches on does not describe it."""

import contextlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

_SWITCHES = ("relaxed", "disable_equivariance")  # the flags of our layers and of SEGNN's


@contextlib.contextmanager
def _attributes(changes: list[tuple[nn.Module, str, object]]):
    """Sets attributes and puts the former values back."""
    before = [(module, name, getattr(module, name)) for module, name, _ in changes]
    try:
        for module, name, value in changes:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def _norms(model: nn.Module) -> list[nn.Module]:
    """torch's and e3nn's batch norms that keep running statistics."""
    return [m for m in model.modules()
            if isinstance(getattr(m, "running_mean", None), Tensor) and isinstance(m.running_var, Tensor)
            and hasattr(m, "momentum")]


def recalibrate(model: nn.Module, batches: Iterable) -> int:
    r"""Recomputes the running statistics of all batch norms with the unconstrained branches off, at gamma = 0.

    .. math:: \bar m = \frac{1}{n} \sum_{b=1}^{n} m_b

    Training collects mean and variance with the branches on; the strict model is evaluated with them off, where the
    features are others. This runs `batches` through the strict model and averages their statistics, each batch the
    same. All else is as in evaluation (no dropout) and no gradients are formed. Parameters, training flags, momenta,
    the branches' switches and the statistics of norms inside branches are afterwards what they were; on an error all
    statistics are.

    Args:
        model: any model; its branches are those of ace_fast's layers, switched by `relaxed` (vector neurons,
            RelaxedLinear) or `disable_equivariance` (SEGNN, SchNet, EGNO).
        batches: what the model takes: a tuple or list is unpacked into its arguments.

    Returns:
        The number of batches.

    Raises:
        ValueError: no batches, or a model without batch norm that keeps statistics and runs with the branches off
            (SchNet, EGNO).

    Source: as for the averaged weights of Izmailov et al. 2018 (stochastic weight averaging), section 3.

    Example:
        >>> ace_fast.relaxation.recalibrate(model, (points for points, label in loader))  # doctest: +SKIP
    """
    norms = _norms(model)
    if not norms:
        raise ValueError(f"recalibrate: model must have batch norms with running statistics, got "
                         f"{type(model).__name__} without; there is nothing to recalibrate")
    changes = [(m, "training", m in norms) for m in model.modules()]
    changes += [(m, "momentum", m.momentum) for m in norms]
    changes += [(m, name, False) for m in model.modules() for name in _SWITCHES if getattr(m, name, False) is True]
    saved = [(id(norm), buffer, buffer.clone()) for norm in norms for buffer in norm.buffers(recurse=False)]
    count, idle = 0, {id(norm) for norm in norms}  # idle: to be put back
    try:
        with torch.no_grad(), _attributes(changes):
            for norm in norms:
                for name, value in (("running_mean", 0), ("running_var", 1), ("num_batches_tracked", 0)):
                    if isinstance(getattr(norm, name, None), Tensor):
                        getattr(norm, name).fill_(value)
            for batch in batches:
                count += 1
                for norm in norms:
                    norm.momentum = 1.0 / count  # of the newest batch: the cumulative average
                model(*batch) if isinstance(batch, (tuple, list)) else model(batch)
        if not count:
            raise ValueError("recalibrate: batches must hold at least one batch, got none")
        idle = {id(norm) for norm in norms if not _ran(norm)}
        if len(idle) == len(norms):
            raise ValueError(f"recalibrate: model must have batch norms that run with the branches off, got "
                             f"{type(model).__name__}, whose norms are all in its branches; there is nothing to "
                             "recalibrate")
    except BaseException:
        idle = {id(norm) for norm in norms}
        raise
    finally:
        with torch.no_grad():
            for norm, buffer, value in saved:
                if norm in idle:
                    buffer.copy_(value)
    return count


def _ran(norm: nn.Module) -> bool:
    """Whether a norm has seen a batch since its count was cleared; e3nn's, which do not count, always run."""
    seen = getattr(norm, "num_batches_tracked", None)
    return seen is None or bool(seen)
