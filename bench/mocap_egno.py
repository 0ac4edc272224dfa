"""Workload `mocap_egno`: one optimiser step of ACE-EGNO on human motion; versions: bench/training.py.

The published setting: 128 channels, 6 layers, the last 5 of the 30 frames ahead, 2 modes, 31 joints with bones and
pairs two bones apart, relaxed; forward, mean squared error of the positions, backward, Adam, dual step. The run of the
CMU data where shared/data/mocap_run.npz is at hand, else a generated skeleton in motion, as batches of
ace_fast.data.mocap. The graph of all steps is made once before the step (`prepare_ms`).
"""

import time
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from ace_fast.data.mocap import MotionSamples, egno_inputs, motion_samples, target_frames
from ace_fast.data.mocap_files import FPS, Recordings, read_npz
from ace_fast.models import EGNO

from . import gate, molecules, steps, training
from .eager_egno import EagerEGNO
from .training import EXTRAS, GPU_EXTRAS, Data  # noqa: F401  a workload's names

CASES, GPU_CASES = ("batch12", "batch128"), ()
QUICK = "batch2"
TIMING = {"burst": 2, "warmup": 2, "budget_s": 120.0}
LAYERS, HIDDEN, STEPS, MODES, AHEAD = 6, 128, 5, 2, 30
JOINTS = 31
HIP = 17.0  # height of the generated skeleton's root


class FastEGNO(EGNO):
    """Called with the graph object, as eager is."""

    def forward(self, graph: SimpleNamespace) -> Tensor:
        return super().forward(graph.x, graph.h, graph.frames, graph.edge_attr, graph.v, graph.loc_mean)[0]


def motion(count: int) -> MotionSamples:
    """`count` moments of the run where the file is at hand, else of a generated skeleton in motion."""
    frames = target_frames(AHEAD, STEPS, "last")
    file = molecules.find_file("mocap_run.npz")
    if file is not None:
        recordings = read_npz(file)._replace(source="CMU run")
        samples = motion_samples(recordings, list(enumerate(recordings.starts)), frames)
        return samples.subset(np.random.RandomState(0).permutation(len(samples))[:count])
    g = np.random.RandomState(0)
    bones = np.array([(j, g.randint(max(0, j - 3), j)) for j in range(1, JOINTS)])
    rest, t = np.zeros((count, 1, JOINTS, 3)), np.arange(AHEAD + 1)[None, :, None, None]
    rest[:, :, 0, 1] = HIP
    for child, parent in bones:
        rest[:, :, child] = rest[:, :, parent] + g.normal(size=3)
    swing = g.normal(size=(count, 1, JOINTS, 3)) * np.sin(t / 15.0)
    pos = tuple(rest + swing + t * np.array([0.0, 0.0, 0.05]))
    names = tuple(map(str, range(count))), tuple(map(str, range(JOINTS)))
    recordings = Recordings(names[0], pos, names[1], bones, "generated", FPS, None)
    return motion_samples(recordings, [(k, np.array([0])) for k in range(count)], frames)


def load(case: str, device: str, dtype: torch.dtype) -> Data:
    """The case's batch and weights, the same in every process."""
    number = case.removeprefix("batch")
    if not case.startswith("batch") or not number.isdigit() or int(number) < 2:
        raise ValueError(f"mocap_egno: the case must be batchN with N >= 2 samples, as in {', '.join(CASES)}, "
                         f"got {case!r}")
    samples = motion(int(number))
    count = len(samples)
    start = time.perf_counter()
    batch = samples.batch(range(count))
    given = egno_inputs(batch.pos, batch.vel, batch.edge_index, batch.kind, JOINTS, batch.height / batch.height.max())
    graph = SimpleNamespace(x=batch.pos, v=batch.vel, h=given["h"], edge_attr=given["edge_fea"],
                            loc_mean=given["loc_mean"])
    graph = SimpleNamespace(**{name: t.to(device, dtype) for name, t in vars(graph).items()},
                            edge_index=batch.edge_index.flip(0).to(device))  # sums at row 0, as the original has it
    model = _model(FastEGNO)
    graph.frames = model.frames(graph.edge_index, batch.num_nodes)
    prepare_ms = 1e3 * (time.perf_counter() - start)
    target = batch.target.transpose(0, 1).flatten(0, 1)  # [T N, 3]
    sizes = {"samples": count, "nodes": STEPS * batch.num_nodes, "edges": STEPS * batch.edge_index.shape[1],
             "source": samples.source}
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
