"""Workload `mocap_egno`: one optimiser step of ACE-EGNO on human motion; versions: bench/training.py.

The published setting: 128 channels, 6 layers, 5 time steps up to 30 frames on, 2 modes, 31 joints with bones and
pairs two bones apart, relaxed; forward, mean squared error of the positions, backward, Adam, dual step. The run of the
CMU data where shared/data/mocap_run.npz is at hand, else a generated skeleton in motion. The graph of all steps is
made once before the step (`prepare_ms`).
"""

import time
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from ace_fast.models import EGNO

from . import gate, molecules, steps, training
from .eager_egno import EagerEGNO
from .training import EXTRAS, GPU_EXTRAS, Data  # noqa: F401  a workload's names

CASES, GPU_CASES = ("batch12", "batch128"), ()
TIMING = {"burst": 2, "warmup": 2, "budget_s": 120.0}
LAYERS, HIDDEN, STEPS, MODES, AHEAD = 6, 128, 5, 2, 30
JOINTS = 31


class FastEGNO(EGNO):
    """Called with the graph object, as eager is."""

    def forward(self, graph: SimpleNamespace) -> Tensor:
        return super().forward(graph.x, graph.h, graph.frames, graph.edge_attr, graph.v, graph.loc_mean)[0]


def motion(count: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Frames 0, 1 and AHEAD / STEPS apart of `count` samples, [count, STEPS + 2, JOINTS, 3], bones [JOINTS - 1, 2]."""
    offsets = np.array([0, 1, *(AHEAD // STEPS * np.arange(1, STEPS + 1))])
    file = molecules.find_file("mocap_run.npz")
    if file is not None:
        with np.load(file) as data:
            starts = (data["offsets"][:-1, None] + data["start_frames"]).flatten()
            starts = starts[np.random.RandomState(0).permutation(len(starts))[:count]]
            return data["pos"][starts[:, None] + offsets].astype(np.float64), data["edges"].astype(np.int64), "CMU run"
    g = np.random.RandomState(0)
    bones = np.array([(j, g.randint(max(0, j - 3), j)) for j in range(1, JOINTS)])
    rest = np.zeros((count, 1, JOINTS, 3))
    for child, parent in bones:
        rest[:, :, child] = rest[:, :, parent] + g.normal(size=3)
    swing = g.normal(size=(count, 1, JOINTS, 3)) * np.sin(offsets / 15.0)[None, :, None, None]
    return rest + swing + offsets[None, :, None, None] * np.array([0.0, 0.0, 0.05]), bones, "generated"


def load(case: str, device: str, dtype: torch.dtype) -> Data:
    """The case's batch and weights, the same in every process."""
    number = case.removeprefix("batch")
    if not case.startswith("batch") or not number.isdigit() or int(number) < 2:
        raise ValueError(f"mocap_egno: the case must be batchN with N >= 2 samples, as in {', '.join(CASES)}, "
                         f"got {case!r}")
    frames, bones, source = motion(int(number))
    count = len(frames)
    near = np.zeros((JOINTS, JOINTS))
    near[bones[:, 0], bones[:, 1]] = near[bones[:, 1], bones[:, 0]] = 1
    hops = np.where(near > 0, 1, np.where((near @ near > 0) & ~np.eye(JOINTS, dtype=bool), 2, 0))
    pairs = torch.from_numpy(np.stack(hops.nonzero()))  # [2, 130] for the CMU skeleton
    start = time.perf_counter()
    edges = (pairs[:, None] + JOINTS * torch.arange(count)[None, :, None]).flatten(1)
    x, v = (torch.from_numpy(a).flatten(0, 1) for a in (frames[:, 0], frames[:, 1] - frames[:, 0]))
    kind = torch.from_numpy(hops)[pairs[0], pairs[1]].double().repeat(count)[:, None]
    length = (x[edges[0]] - x[edges[1]]).norm(dim=1, keepdim=True)
    graph = SimpleNamespace(
        x=x, v=v, h=torch.cat([v.norm(dim=1, keepdim=True), x[:, 1:2] / 10], 1), edge_attr=torch.cat([kind, length], 1),
        loc_mean=x.view(count, JOINTS, 3).mean(1, keepdim=True).expand(-1, JOINTS, -1).flatten(0, 1))
    graph = SimpleNamespace(**{name: t.to(device, dtype) for name, t in vars(graph).items()},
                            edge_index=edges.to(device))
    model = _model(FastEGNO)
    graph.frames = model.frames(graph.edge_index, count * JOINTS)
    prepare_ms = 1e3 * (time.perf_counter() - start)
    target = torch.from_numpy(frames[:, 2:]).transpose(0, 1).flatten(0, 2)  # [T N, 3]
    sizes = {"samples": count, "nodes": STEPS * count * JOINTS, "edges": STEPS * edges.shape[1], "source": source}
    state = steps.state_of(lambda: _model(FastEGNO))
    torch.manual_seed(0)
    drawn = {n: b for n, b in _model(FastEGNO).named_buffers() if n.endswith(("._u", "._v"))}
    return Data(graph, target.to(device, dtype), state, prepare_ms, sizes, drawn)


def _model(kind: type) -> torch.nn.Module:
    options = {"with_v": True} if kind is FastEGNO else {}
    return kind(LAYERS, 2, 2, HIDDEN, num_modes=MODES, num_timesteps=STEPS, relaxed=True, **options)


def _loss(output: Tensor, graph: SimpleNamespace, target: Tensor) -> tuple[Tensor, Tensor]:
    return output, torch.nn.functional.mse_loss(output, target)


# batch norms take off what the maps before them add
TASK = training.Task(FastEGNO, EagerEGNO, _model, _loss, lambda name: 3 if "gammas_x" in name else HIDDEN, lr=5e-4,
                     dual_lr=2e-4, cancels=("pos_linear_h.bias", "pos_linear_x.bias"))


def variant(name: str, data: Data) -> steps.Variant:
    """"eager", "compiled", "fast" or one of EXTRAS and GPU_EXTRAS."""
    return training.variant(TASK, name, data)


def judge(data: Data, eager: gate.Numbers) -> gate.Judge:
    """Eager in float64 on the timed tensors and weights."""
    return training.judge(TASK, data, eager)
