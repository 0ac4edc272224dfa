"""`python -m bench.sympe`: what SymPE adds to a forward pass of EGNN, as the auto-encoder of random graphs has it.

Encoder and decoder of `ace-fast symmetry autoencoder` on one batch of Erdős-Rényi graphs, without gradients, in turn:

none      without symmetry breaking; timed twice, which shows the noise
noise     with Gaussian noise as node features
sympe     with SymPE on scores that are known of the graphs
scored    the same, the scores of colour refinement found anew in every pass
"""

import argparse
import sys
from collections.abc import Callable

import torch

from ace_fast.symmetry import refined_scores
from ace_fast.symmetry.experiments import autoencoder

from . import machine, timing, workloads

BURST = 4  # calls a turn, of which the first does not count


def versions(graphs: int) -> dict[str, Callable[[], torch.Tensor]]:
    """A forward pass of each version, on the CPU."""
    config = {name: option.default for name, option in autoencoder.OPTIONS.items()}
    generator = torch.Generator().manual_seed(0)
    data = autoencoder.erdos_renyi(graphs, config["least_nodes"], config["most_nodes"], config["edge_probability"],
                                   generator)
    batch = autoencoder.Prepared(data.batch(range(graphs)))
    models = {}
    for method in autoencoder.METHODS:
        torch.manual_seed(0)
        models[method] = autoencoder.AutoEncoder(method, config, generator)
    found = {method: lambda model=model: model(batch) for method, model in models.items()}

    def scored() -> torch.Tensor:
        batch.scores = refined_scores(batch.graph)
        return models["sympe"](batch)

    return found | {"scored": scored}


@torch.no_grad()
def run(graphs: int, repeats: int) -> dict:
    """Milliseconds of each version, operator calls, ratios to the version without breaking."""
    made = versions(graphs)
    for function in made.values():
        function()  # what graphs find out once, they find out here
    row = {"workload": "sympe", "case": f"graphs{graphs}", "device": "cpu", "dtype": "float32"}
    row |= {f"{name}_calls": workloads.calls(function) for name, function in made.items()}
    found = timing.interleaved(made | {"again": made["none"]}, "cpu", repeats, warmup=1, burst=BURST)
    row |= {f"{name}_ms": found[name].median for name in made}
    row |= {f"{name}_over_none": row[f"{name}_ms"] / row["none_ms"] for name in made}
    return row | {"noise": timing.noise(found["none"], found["again"]), "rounds": repeats} | machine.describe("cpu")


def main(argv: list[str] | None = None) -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser("bench.sympe", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=int, default=100, help="graphs of the batch (default: 100)")
    parser.add_argument("--repeats", type=int, default=15, help=f"rounds of {BURST} passes each (default: 15)")
    a = parser.parse_args(argv)
    row = run(a.graphs, a.repeats)
    for name in ("none", "noise", "sympe", "scored"):
        print(f"{name:8s} {row[f'{name}_ms']:8.3f} ms  {row[f'{name}_over_none']:.3f} x none  "
              f"{row[f'{name}_calls']} operator calls")
    print(f"noise of the measurement {row['noise']:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
