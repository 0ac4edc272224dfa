"""Instance normalisation of irreps over the nodes of each graph, and e3nn's batch normalisation."""

import torch
from e3nn import o3

# e3nn's own: same formula, same state, and two of them per layer are not what a training step spends its time on
from e3nn.nn import BatchNorm
from torch import Tensor, nn

from .. import functional
from ..graph import Segments, check_range, sorted_segments

__all__ = ["BatchNorm", "InstanceNorm"]


class InstanceNorm(nn.Module):
    r"""Normalises each irrep by its norm over the nodes of its graph; scalars are centred first.

    .. math:: y = w\, \frac{x - \bar x [l = 0]}{\sqrt{\langle |x - \bar x|^2 \rangle + \epsilon}} + b\, [0e]

    Parameters, their order and the numbers are the SEGNN code's. One difference: odd scalars (0o) have no bias, which
    would break reflections.

    Args:
        irreps: of the features.
        eps: added to the mean square.
        affine: weight [number of irreps] and bias [number of even scalars].
        reduce: "mean" or "max" of the squared norms over a graph's nodes.
        normalization: "component" (mean over the 2l+1 components) or "norm" (sum).
        backend: which implementation of segment_sum runs.

    Raises:
        ValueError: an unknown option, features of another width, a wrong batch.

    Derivatives of any order.
    """

    def __init__(self, irreps, eps=1e-5, affine=True, reduce="mean", normalization="component", *, backend="auto"):
        super().__init__()
        for name, value, choices in (("reduce", reduce, ("mean", "max")),
                                     ("normalization", normalization, ("norm", "component"))):
            if value not in choices:
                raise ValueError(f"InstanceNorm: {name} must be one of {choices}, got {value!r}")
        self.irreps = o3.Irreps(irreps)
        self.eps, self.affine, self.backend = eps, affine, backend
        self.reduce, self.normalization = reduce, normalization
        # plain integers (offset, multiplicity, 2l+1, has a bias): torch.compile cannot guard on e3nn's irreps
        self._dim = self.irreps.dim
        self._slices = [(s.start, mul, ir.dim, ir == o3.Irrep("0e"))
                        for s, (mul, ir) in zip(self.irreps.slices(), self.irreps, strict=True)]
        self.register_parameter("weight", nn.Parameter(torch.ones(self.irreps.num_irreps)) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(self.irreps.count("0e"))) if affine else None)

    def extra_repr(self) -> str:
        return f"{self.irreps}, eps={self.eps}, reduce={self.reduce!r}, normalization={self.normalization!r}"

    def forward(self, input: Tensor, batch: Tensor | Segments | None) -> Tensor:
        """input [N, irreps.dim]; batch [N] graph of each node (a host synchronisation), prebuilt Segments, or None."""
        if input.dim() != 2 or input.shape[1] != self._dim:
            raise ValueError(f"InstanceNorm: input must be [N, {self._dim}] ({self.irreps}), "
                             f"got {list(input.shape)}")
        batch = graph_segments(batch, input.shape[0], input.device)
        count = (batch.ptr[1:] - batch.ptr[:-1]).clamp(min=1).to(input.dtype)[:, None]  # [G, 1]
        fields = self._centred(input, batch, count)
        squares = [f.square().sum(2) if self.normalization == "norm" else f.square().mean(2) for f in fields]
        squares = torch.cat(squares, 1)  # [N, irreps]
        if self.reduce == "mean":
            level = functional.segment_sum(squares, batch, backend=self.backend) / count  # [G, irreps]
        else:
            index = batch.index[:, None].expand_as(squares)
            level = squares.new_zeros(count.shape[0], squares.shape[1])
            level = level.scatter_reduce(0, index, squares, "amax", include_self=False)
        factor = (level + self.eps).rsqrt()
        if self.affine:
            factor = factor * self.weight
        factor = functional.gather(factor, batch, backend=self.backend)[:, :, None]  # [N, irreps, 1]
        out, start, bias = [], 0, 0
        for field, (_, mul, _, biased) in zip(fields, self._slices, strict=True):
            field = (field * factor[:, start:start + mul]).flatten(1)
            if self.affine and biased:
                field = field + self.bias[bias:bias + mul]
                bias += mul
            out.append(field)
            start += mul
        return torch.cat(out, 1)

    def _centred(self, input: Tensor, batch: Segments, count: Tensor) -> list[Tensor]:
        """Each slice as [N, mul, 2l+1], scalars without their mean over the graph."""
        n = input.shape[0]
        fields = [input[:, start:start + mul * d].reshape(n, mul, d) for start, mul, d, _ in self._slices]
        scalars = [i for i, (_, _, d, _) in enumerate(self._slices) if d == 1]
        if scalars:
            x = torch.cat([fields[i].squeeze(2) for i in scalars], 1)  # [N, scalars]
            mean = functional.segment_sum(x, batch, backend=self.backend) / count
            x = x - functional.gather(mean, batch, backend=self.backend)
            for i, field in zip(scalars, x.split([self._slices[i][1] for i in scalars], 1), strict=True):
                fields[i] = field[:, :, None]
        return fields


def graph_segments(batch: Tensor | Segments | None, num_nodes: int, device, num_graphs: int | None = None) -> Segments:
    """Segments of the graphs' nodes; the smallest and the largest index are read from the device, once."""
    if isinstance(batch, Segments):
        if batch.index.shape[0] != num_nodes:
            raise ValueError(f"batch: Segments must cover {num_nodes} nodes, got {batch.index.shape[0]}")
        return batch
    if batch is None:
        return sorted_segments(torch.zeros(num_nodes, dtype=torch.int64, device=device), 1)
    if not isinstance(batch, Tensor):
        raise ValueError(f"batch: must be int64 [{num_nodes}], the graph of each node, got {type(batch).__name__}; "
                         "use torch.as_tensor(...)")
    if batch.dim() != 1 or batch.shape[0] != num_nodes or batch.dtype != torch.int64:
        raise ValueError(f"batch: must be int64 [{num_nodes}], the graph of each node, "
                         f"got {batch.dtype} {list(batch.shape)}")
    found = check_range("batch", "the graph of each node", batch, num_graphs, "count the graphs from 0")
    return sorted_segments(batch, found if num_graphs is None else num_graphs)
