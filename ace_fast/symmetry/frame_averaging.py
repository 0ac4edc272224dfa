"""Frame averaging: any model made equivariant by evaluating it in the frames that its input itself defines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from e3nn import o3
from torch import Tensor, nn

from ..functional import frames, segment_sum
from ..graph import Segments
from ..kernels.define import longest_segment
from ..kernels.philox import philox
from .groups import Element, Group, group
from .layouts import Layout, act, layout

_SIGNS = torch.cartesian_prod(*[torch.tensor([1.0, -1.0])] * 3)  # [8, 3]
_DRAW = 2  # Philox's stream: which frame
_OVER = ("node", "edge", "graph")
_KINDS = ("scalar", "vector", "position", "irreps")
_WHAT = ('"position", "vector", "scalar" or irreps, with "edge" or "graph" before it where rows are not nodes; "index" '
         'of nodes, "batch", "ptr", or None')


class _Argument(NamedTuple):
    """How an argument or result transforms and what its rows are; without a layout "batch", "ptr", or as it is ("")."""

    over: str
    layout: Layout | None


class _Sets(NamedTuple):
    """The B sets of a call: how many rows there are and which set owns each; `ptr` and `batch` of the N nodes."""

    count: int
    nodes: int
    batch: Tensor | None  # [N]; None where axis 0 of every array runs over sets of equal size
    ptr: Tensor  # [B + 1]
    edges: Tensor | None  # [E]

    def owner(self, over: str, device: torch.device) -> Tensor:
        found = {"node": self.batch, "edge": self.edges}.get(over)
        return torch.arange(self.count, device=device) if found is None else found


def _argument(declared: str | o3.Irreps | Layout | None) -> _Argument:
    if declared is None or declared in ("batch", "ptr"):
        return _Argument(declared or "", None)
    over = "node"
    if isinstance(declared, str) and declared.split(" ", 1)[0] in _OVER:
        over, declared = declared.split(" ", 1)
    found = layout(declared)
    if found.kind not in (*_KINDS, "index"):
        raise ValueError(f"FrameAveraging: a layout must be {_WHAT}, got {declared!r}")
    return _Argument(over, found)


class FrameAveraging(nn.Module):
    r"""A model averaged over the frames of its input: equivariant whatever the model does.

    .. math:: \langle f \rangle(x) = \frac{1}{|F(x)|} \sum_{g \in F(x)} g\, f(g^{-1} x)

    Frames are the principal axes of the positions about their centroid with every choice of signs: 4 right-handed ones
    for SO(3) and SE(3), 8 for O(3) and E(3), where the moments differ. They are found by one call of the operator
    `frames`, and the model is called once, on all frames as one batch.

    Where moments are the same (within the tolerance) the frames are infinitely many, g S with S the symmetries of those
    axes, and the mean over them an integral. Each call then draws one uniform element of S for every set and takes the
    signs around it: the mean of the result is the integral exactly, the result itself is equivariant in distribution,
    and repeated calls average it. With `stochastic`, one frame is drawn for every set in every case: as cheap as the
    model, equivariant in expectation. Axes are not differentiated, as in the original; centroids are.

    Args:
        model: any module; graphs are given as node arrays [N, ...] with a "batch" or "ptr" argument, or as
            arrays [B, n, ...] of sets of equal size.
        group: "SO(3)", "O(3)", "SE(3)", "E(3)" or such a `Group`. The first two turn about the origin, and moments are
            taken about it.
        inputs: what each argument is, in order: "position", "vector", "scalar", irreps such as "8x0e + 4x1o", or a
            `Layout`; of nodes, or with a word before it of edges or graphs ("edge vector", "graph scalar"); "index",
            numbers of nodes such as edge_index; "batch", the set of each node, ascending; "ptr", the sets' first nodes;
            None, passed as it is. The first position (without one, the first vector) gives the frames.
        outputs: what the results are, in the same words: one for a tensor, several for a tuple.
        stochastic: one frame a set, drawn anew at every call.
        generator: of the CPU, of all that is drawn; None for torch's own. One must be given, here or in the call, where
            torch.use_deterministic_algorithms is on: sets whose moments are the same draw without `stochastic` too.
        tolerance: moments are the same whose difference is at most this part of the largest; see `frames`.
        backend: of `frames`.

    Raises:
        ValueError: another group, layouts that are none, inputs without position and vector; at a call, arguments that
            do not fit.

    Source: Puny et al., "Frame Averaging for Invariant and Equivariant Network Design" (2022); one frame: Duval et al.,
        "FAENet" (2023).

    Example:
        >>> model = FrameAveraging(torch.nn.Linear(3, 3), "E(3)", ["position"], "position")
        >>> model(torch.randn(2, 5, 3)).shape
        torch.Size([2, 5, 3])
    """

    def __init__(self, model: nn.Module, group_: str | Group, inputs: Sequence, outputs, *, stochastic: bool = False,
                 generator: torch.Generator | None = None, tolerance: float | None = None, backend: str = "auto"):
        super().__init__()
        self.group = group(group_) if isinstance(group_, str) else group_
        if not self.group.rotations or self.group.nodes is not None or self.group.table is not None:
            raise ValueError(f"FrameAveraging: group must be SO(3), O(3), SE(3) or E(3), got {self.group.name}; what "
                             "moves nodes or images has no frame of principal axes")
        self.model = model
        self.single = outputs is None or isinstance(outputs, str | o3.Irreps | Layout)
        self.inputs = tuple(_argument(x) for x in inputs)
        self.outputs = tuple(_argument(x) for x in ([outputs] if self.single else outputs))
        if any(x.layout is None or x.layout.kind == "index" for x in self.outputs):
            raise ValueError(f"FrameAveraging: outputs must be positions, vectors, scalars or irreps, got {outputs!r}")
        kinds = [x.layout.kind if x.layout is not None and x.over == "node" else "" for x in self.inputs]
        kind = "position" if "position" in kinds else "vector"
        if kind not in kinds:
            raise ValueError("FrameAveraging: inputs must have a position or a vector of the nodes, whose moments give "
                             f"the frames, got {list(inputs)}")
        self.source = kinds.index(kind)
        self.stochastic, self.generator, self.tolerance, self.backend = stochastic, generator, tolerance, backend

    @property
    def frames(self) -> int:
        """How often the model sees each set: 1, 4 or 8."""
        return 1 if self.stochastic else 8 if self.group.rotations == "O(3)" else 4

    def extra_repr(self) -> str:
        return f"group={self.group.name}, frames={self.frames}"

    def forward(self, *args, num_graphs: int | None = None, generator: torch.Generator | None = None):
        """The model's result, equivariant.

        Args:
            args: the model's, as `inputs` says.
            num_graphs: B, where the last graphs of a "batch" argument may be empty, or so that nothing is read from the
                device: then "batch" or "ptr" are right, and nothing checks them.
            generator: of this call.

        Raises:
            ValueError: another number of arguments, rows that do not fit, a batch or ptr that does not ascend, no
                generator in deterministic mode.
        """
        generator = self.generator if generator is None else generator
        if generator is None and torch.are_deterministic_algorithms_enabled():
            raise ValueError("FrameAveraging: generator must be a torch.Generator in deterministic mode "
                             "(torch.use_deterministic_algorithms), got None; pass torch.Generator().manual_seed(0)")
        if len(args) != len(self.inputs):
            raise ValueError(f"FrameAveraging: arguments must be {len(self.inputs)}, as inputs says, got {len(args)}")
        sets = self._sets(args, num_graphs)
        element, centroid = self._elements(args[self.source], sets, generator)
        back = element._replace(matrix=element.matrix.mT)
        copies = [self._copies(n, x, sets, back, centroid) for n, x in enumerate(args)]
        found = self.model(*copies)
        results = [found] if self.single else list(found)
        if len(results) != len(self.outputs):
            raise ValueError(f"FrameAveraging: the model's results must be {len(self.outputs)}, as outputs says, got "
                             f"{len(results)}")
        results = [self._mean(n, y, sets, element, centroid) for n, y in enumerate(results)]
        return results[0] if self.single else tuple(results)

    def _sets(self, args: tuple, num_graphs: int | None) -> _Sets:
        x = args[self.source]
        given = {x.over: value for x, value in zip(self.inputs, args, strict=True) if x.layout is None and x.over}
        index = [value for x, value in zip(self.inputs, args, strict=True)
                 if x.layout is not None and x.layout.kind == "index"]
        if x.dim() > 2 and not given and not index and self.inputs[self.source].layout.kind == "position":
            count, size = x.shape[:2]
            return _Sets(count, size, None, torch.arange(count + 1, device=x.device) * size, None)
        nodes = len(x)
        if "ptr" in given:
            ptr = given["ptr"]
            if num_graphs is None:
                longest_segment("FrameAveraging", ptr, nodes)
            count = len(ptr) - 1
            batch = torch.repeat_interleave(ptr.diff(), output_size=nodes)
        elif "batch" in given:
            batch = given["batch"]
            count = _graphs(batch, nodes, num_graphs)
            ptr = torch.searchsorted(batch, torch.arange(count + 1, device=x.device))
        else:
            count, batch = 1, torch.zeros(nodes, dtype=torch.int64, device=x.device)
            ptr = torch.arange(2, device=x.device) * nodes
        edges = None
        if index:
            edges = batch[index[0].flatten(0, -2)[0] if index[0].dim() > 1 else index[0]]
        return _Sets(count, nodes, batch, ptr, edges)

    def _elements(self, x: Tensor, sets: _Sets, generator: torch.Generator | None) -> tuple[Element, Tensor | None]:
        """The frames [F B, 3, 3] as elements of the group, and the centroids [B, 3] of a group with translations."""
        own = self.inputs[self.source].layout
        x = x.movedim(own.dim, -1)
        centred = self.group.translations and own.kind == "position"
        each = x[0].numel() // 3 if sets.batch is not None and len(x) else 1  # of several vectors of a node
        points = x.reshape(-1, 3)
        seed = torch.randint(2**62, (1,), generator=generator).to(x.device)
        ptr = sets.ptr * each
        centroid, _, axes = frames(points.detach(), ptr, seed=seed, centred=centred, tolerance=self.tolerance,
                                   validate=False, backend=self.backend)
        signs = _SIGNS if self.group.rotations == "O(3)" else _SIGNS[_SIGNS.prod(1) > 0]
        signs = signs.to(axes)
        if self.stochastic:
            signs = signs[philox(seed, sets.count, _DRAW)[0][0] % len(signs)][None]  # [1, B, 3]
        else:
            signs = signs[:, None]
        if not centred:
            centroid = None
        elif points.requires_grad:
            centroid = _mean(points, ptr)
        return Element((axes * signs[:, :, None]).flatten(0, 1)), centroid

    def _copies(self, n: int, x, sets: _Sets, back: Element, centroid: Tensor | None):
        """Argument n for all frames, one after the other along its rows."""
        over, own = self.inputs[n]
        shift = torch.arange(self.frames, device=x.device) if isinstance(x, Tensor) else None
        if over == "batch":
            return (x + sets.count * shift[:, None]).flatten()
        if over == "ptr":
            return torch.cat([x[:1], (x[1:] + sets.nodes * shift[:, None]).flatten()])
        if own is None:
            return x
        if own.kind == "index":
            return (x[..., None, :] + sets.nodes * shift[:, None]).flatten(-2)
        owner = sets.owner(over, x.device)
        if len(x) != len(owner):
            raise ValueError(f"FrameAveraging: argument {n} must have a row for each of {len(owner)} "
                             f"{over if sets.batch is not None else 'set'}s, got {list(x.shape)}; "
                             'write "edge" or "graph" before its layout where it has theirs')
        if own.kind == "position" and centroid is not None:
            x = act(self.group, Element(shift=-centroid), x, own, owner)
        return act(self.group, back, x.repeat(self.frames, *[1] * (x.dim() - 1)), own, self._repeated(owner, sets))

    def _repeated(self, owner: Tensor, sets: _Sets) -> Tensor:
        return (owner + sets.count * torch.arange(self.frames, device=owner.device)[:, None]).flatten()

    def _mean(self, n: int, y: Tensor, sets: _Sets, element: Element, centroid: Tensor | None) -> Tensor:
        """Result n, turned out of its frames, as their mean."""
        over, own = self.outputs[n]
        owner = sets.owner(over, y.device)
        if len(y) != self.frames * len(owner):
            raise ValueError(f"FrameAveraging: result {n} must have {self.frames} x {len(owner)} rows, one for each "
                             f"frame and {over}, got {list(y.shape)}; "
                             'write "graph" before its layout where it has those of graphs')
        y = act(self.group, element, y, own, self._repeated(owner, sets))
        y = y.unflatten(0, (self.frames, len(owner))).mean(0)
        if own.kind == "position" and centroid is not None:
            y = act(self.group, Element(shift=centroid), y, own, owner)
        return y


def _graphs(batch: Tensor, nodes: int, num_graphs: int | None) -> int:
    """The number of graphs; read from the device where it is not given, and the batch is then checked."""
    if batch.dtype != torch.int64 or batch.shape != (nodes,):
        raise ValueError(f"FrameAveraging: batch must be int64 [{nodes}], one for each node, got {batch.dtype} "
                         f"{list(batch.shape)}")
    if num_graphs is not None or not nodes:
        return num_graphs or 0
    ascending, first, last = torch.stack([(batch.diff() >= 0).all(), batch[0], batch[-1]]).tolist()
    if not ascending or first < 0:
        raise ValueError("FrameAveraging: batch must ascend from 0 or more, got a descent; sort the nodes by graph")
    return last + 1


def _mean(points: Tensor, ptr: Tensor) -> Tensor:
    """[B, 3], with derivatives; zeros for sets without points."""
    rows = torch.arange(len(points), device=ptr.device)
    owner = torch.searchsorted(ptr[1:].contiguous(), rows, right=True)
    return segment_sum(points, Segments(owner, rows, ptr)) / ptr.diff().clamp(min=1)[:, None]
