"""`python -m bench.snapped`: what a step of ACE-SEGNN costs with its branches switched off, and what ACE itself costs.

Training steps of workload `nbody_segnn` (forward, backward, Adam, ACE with the spectral bound), in turn:

strict    the model built without branches, without ACE; timed twice, which shows the noise
snapped   the relaxed model with all branches switched off by ACE
relaxed   all branches on, nothing measured
measured  the same, the ratios measured and looked at in every step (by default in one of 20)
tried     all branches off under resilient constraints, and tried in every step (by default in one of 20)

and ace.step() alone: `ace` without the bound, `ace_bound` with it. Before anything is timed, strict and snapped must
give the same output from the same weights.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from ace_fast.models import SEGNN
from ace_fast.relaxation import ACE

from . import machine, nbody_segnn, results, steps, timing, workloads
from .training import Data

TASK = nbody_segnn.TASK
BURST = 4  # calls a turn, of which the first does not count
EVERY = 20  # steps between two looks, ACE's default: what a measured or tried step costs more is divided by it
VERSIONS: dict[str, dict] = {  # ACE's options
    "strict": {}, "snapped": {"snap": True}, "relaxed": {}, "measured": {"snap": True},
    "tried": {"snap": True, "mode": "resilient"},
}


def model_of(data: Data, relaxed: bool, device: str) -> SEGNN:
    """The workload's model with its weights."""
    def make() -> SEGNN:
        attributes = nbody_segnn.ATTRIBUTES
        return SEGNN("2x1o+1x0e", nbody_segnn.HIDDEN, "1x1o", attributes, attributes, nbody_segnn.LAYERS, task="node",
                     additional_message_irreps="2x0e", relaxed=relaxed)

    model = steps.build(make, data.target.dtype, device=device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(data.state[name])
    return model


def version(name: str, data: Data, device: str) -> tuple[SEGNN, ACE | None, Callable[[], object]]:
    """Model, owner of its gammas and a training step."""
    model, ace = model_of(data, name != "strict", device), None
    if name != "strict":
        off = name in ("snapped", "tried")
        # a multiplier that no gradient beats keeps the tried branches off
        ace = ACE(model, **VERSIONS[name] | {"bound": "spectral", "lr": 0.0 if off else TASK.lr, "dual_lr": 0.0,
                                             "tolerance": 1e9 if off else 1e-9, "patience": 1, "look_every": 1})
        ace.multipliers = torch.full_like(ace.multipliers, 1e9 if off else 0.0)
    loss_of = lambda call: TASK.loss(call(data.graph), data.graph, data.target)  # noqa: E731
    adam = lambda parameters: torch.optim.Adam(parameters, lr=0.0, fused=True)  # noqa: E731
    step = steps.fast_step(model, loss_of, adam, ace)
    for _ in range(3):  # the branches are off after the second
        step()
    return model, ace, step


def run(case: str, device: str, repeats: int) -> dict:
    """One row: milliseconds of each version's step and of ace.step(), operator calls, ratios to the strict step."""
    data = nbody_segnn.load(case, device, torch.float32)
    made = {name: version(name, data, device) for name in VERSIONS}
    with torch.no_grad():
        outputs = [made[name][0](data.graph) for name in ("strict", "snapped")]
    if not torch.equal(*outputs) or not all(made["snapped"][1].snapped):
        raise ValueError("bench: the snapped model must be the strict one, got another output")
    row = {"workload": "snapped", "case": case, "device": device, "dtype": "float32"} | data.sizes
    row |= {f"{name}_calls": workloads.calls(step) for name, (_, _, step) in made.items()}

    turns = {name: step for name, (_, _, step) in made.items()} | {"again": made["strict"][2]}
    for name, bound in (("ace", "none"), ("ace_bound", "spectral")):
        turns[name] = _alone(ACE(model_of(data, True, device), bound=bound))
    found = timing.interleaved(turns, device, repeats, warmup=1, burst=BURST)
    row |= {f"{name}_ms": found[name].median for name in turns}
    row |= {f"{name}_over_strict": row[f"{name}_ms"] / row["strict_ms"] for name in VERSIONS}
    row["measuring_share"] = (row["measured_ms"] / row["relaxed_ms"] - 1) / EVERY
    row["trying_share"] = (row["tried_ms"] / row["strict_ms"] - 1) / EVERY
    return row | {"noise": timing.noise(found["strict"], found["again"]), "rounds": repeats} | machine.describe(device)


def _alone(ace: ACE) -> Callable[[], object]:
    """ace.step() with gradients that are there."""
    gammas = ace.model.get_gammas()
    ones = [torch.ones_like(gamma) for gamma in gammas]

    def step() -> None:
        for gamma, one in zip(gammas, ones, strict=True):
            gamma.grad = one
        ace.step()

    return step


def main(argv: list[str] | None = None) -> int:
    """Measures, prints and, with --json, writes the row."""
    parser = argparse.ArgumentParser("bench.snapped", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="batch100", help="batchN with N graphs (default: batch100)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default=machine.devices()[-1])
    parser.add_argument("--repeats", type=int, default=15, help=f"rounds of {BURST} steps each (default: 15)")
    parser.add_argument("--json", metavar="FILE", help="write the row to this run file")
    a = parser.parse_args(argv)
    row = run(a.case, a.device, a.repeats)
    for name in VERSIONS:
        print(f"{name:10s} {row[f'{name}_ms']:8.3f} ms  {row[f'{name}_over_strict']:.3f} x strict  "
              f"{row[f'{name}_calls']} operator calls")
    print(f"noise {row['noise']:.1%}; ace.step() {1e3 * row['ace_ms']:.0f} us, {1e3 * row['ace_bound_ms']:.0f} us with "
          f"the spectral bound; once in {EVERY} steps measuring is {row['measuring_share']:.2%} of the relaxed step, "
          f"trying {row['trying_share']:.2%} of the strict one")
    if a.json:
        results.write(Path(a.json), [row])
    return 0


if __name__ == "__main__":
    sys.exit(main())
