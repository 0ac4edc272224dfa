"""Graph auto-encoder on Erdős-Rényi graphs: nodes that are alike must get codes that differ, or no graph comes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data import Batch, FlatDataset
from ...nn import EGNN_Layer
from ...train.options import SEED, Option, Options
from ..breaking import SymPE
from ..refinement import refined_scores
from .training import train_best

HELP = "EGNN auto-encoder of random graphs, with symmetries broken or kept"
DESCRIPTION = ("Trains an EGNN that encodes the nodes of Erdős-Rényi graphs and decodes their edges from differences "
               "of codes: without symmetry breaking, with Gaussian noise as node features, and with SymPE.")
METHODS = ("none", "noise", "sympe")
MEASURES = {"bce": ("cross-entropy", ".4f"), "error": ("wrong pairs", ".2%"), "f1": ("F1 of edges", ".3f"),
            "parameters": ("parameters", "d"), "seconds": ("training, s", ".0f")}

OPTIONS: Options = {
    "num_train": Option("data", 5_000, "training graphs", least=1),
    "num_valid": Option("data", 500, "validation graphs, which choose the epoch", least=1),
    "num_test": Option("data", 500, "test graphs", least=1),
    "least_nodes": Option("data", 7, "nodes of the smallest graphs", least=1),
    "most_nodes": Option("data", 16, "nodes of the largest graphs", least=1),
    "edge_probability": Option("data", 0.25, "probability of each edge", least=0, most=1),
    "data_seed": Option("data", 0, "seed of the graphs", least=0, most=SEED),
    "layers": Option("model", 4, "layers of the EGNN", least=1),
    "hidden": Option("model", 64, "width of its networks", least=1),
    "code": Option("model", 8, "numbers that a node is encoded in", least=1),
    "channels": Option("model", 16, "features of a node from noise or SymPE", least=1),
    "epochs": Option("optimisation", 50, "passes over the training graphs", least=1),
    "batch_size": Option("optimisation", 25, "graphs per step", least=1),
    "lr": Option("optimisation", 1e-3, "step size of Adam", above=0),
    "threads": Option("run", 0, "threads of the CPU kernels; 0: as torch chooses", least=0, most=1024),
}


def check(config: Mapping[str, Any]) -> None:
    """Raises ValueError where settings do not fit together."""
    if config["least_nodes"] > config["most_nodes"]:
        raise ValueError(f"symmetry: --least-nodes must be at most --most-nodes, {config['most_nodes']}, got "
                         f"{config['least_nodes']}")


def erdos_renyi(count: int, least: int, most: int, probability: float, generator: torch.Generator) -> FlatDataset:
    """`count` graphs of `least` to `most` nodes, each pair an edge (both ways) with this probability."""
    sizes = torch.randint(least, most + 1, (count,), generator=generator)
    pairs = torch.rand(count, most, most, generator=generator) < probability
    inside = torch.arange(most) < sizes[:, None]
    edges = pairs.triu(1) & inside[:, :, None] & inside[:, None]
    b, target, source = (edges | edges.mT).nonzero(as_tuple=True)  # sorted by graph, then target
    offsets = [torch.cat([n.new_zeros(1), n.cumsum(0)]) for n in (sizes, b.bincount(minlength=count))]
    node = {"one": torch.ones(int(sizes.sum()), 1)}
    return FlatDataset(node, offsets[0], torch.stack([source, target]), offsets[1], symmetric=True)


def pairs_of(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """All pairs i < j of nodes of one graph, i [P] and j [P], and whether they are edges [P], 0 or 1."""
    sizes = batch.ptr.diff()
    most = int(sizes.max())
    place = torch.arange(most)
    inside = place < sizes[:, None]
    b, i, j = (inside[:, :, None] & inside[:, None] & (place[:, None] < place)).nonzero(as_tuple=True)
    i, j = batch.ptr[b] + i, batch.ptr[b] + j
    source, target = batch.edge_index
    return i, j, torch.isin(i * batch.num_nodes + j, source * batch.num_nodes + target).float()


class Prepared:
    """A batch with all that depends on the graphs alone.

    Attributes:
        batch, graph: the graphs; longest: nodes of the largest.
        scores: [N] float64, what orders the nodes for SymPE.
        pairs: i and j [P]; edges: [P], 0 or 1.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch, self.graph = batch, batch.graph()
        self.longest = int(batch.ptr.diff().max())
        self.scores = refined_scores(self.graph)
        *self.pairs, self.edges = pairs_of(batch)


class AutoEncoder(nn.Module):
    """EGNN from features that are alike, to codes z [N, D]; an edge has the logit w . (z_i - z_j)^2 + b.

    Positions are all zero: messages see features and the graph alone. Source: Satorras, Hoogeboom, Welling, "E(n)
    Equivariant Graph Neural Networks" (2021), section 5.2; symmetry breaking at the input: Lawrence et al. (2025).
    """

    def __init__(self, method: str, config: Mapping[str, Any], generator: torch.Generator) -> None:
        super().__init__()
        self.method, self.channels, self.generator = method, config["channels"], generator
        extra = 0 if method == "none" else self.channels
        self.breaking = (SymPE("S_n", (config["most_nodes"], self.channels), generator=generator) if method == "sympe"
                         else None)
        self.embedding = nn.Linear(1 + extra, config["hidden"])
        self.layers = nn.ModuleList(EGNN_Layer(0, config["hidden"]) for _ in range(config["layers"]))
        self.code = nn.Linear(config["hidden"], config["code"])
        self.decoder = nn.Linear(config["code"], 1)

    def encode(self, prepared: Prepared) -> Tensor:
        """Codes [N, D]; scores order the nodes for SymPE. Layers add to the features, as in the original."""
        batch = prepared.batch
        h = batch.one
        if self.method == "noise":
            h = torch.cat([h, torch.randn(len(h), self.channels, generator=self.generator)], 1)
        elif self.method == "sympe":
            h = self.breaking(h, batch.ptr, prepared.scores, longest=prepared.longest)
        x, h = h.new_zeros(len(h), 1), self.embedding(h)
        for layer in self.layers:
            h = h + layer(x, h, prepared.graph)[2]
        return self.code(h)

    def forward(self, prepared: Prepared) -> Tensor:
        """Logits [P] of the pairs of nodes."""
        z, (i, j) = self.encode(prepared), prepared.pairs
        return self.decoder((z[i] - z[j]).square())[:, 0]


def _prepared(data: FlatDataset, size: int, order: Tensor | None = None) -> list[Prepared]:
    order = torch.arange(len(data)) if order is None else order
    return [Prepared(data.batch(part)) for part in order.split(size)]


@torch.no_grad()
def measure(model: AutoEncoder, batches: list[Prepared]) -> dict[str, float]:
    """Mean cross-entropy of pairs, share of wrong ones, F1 of edges; one draw of noise or ranks, of a fixed seed."""
    model.generator.manual_seed(7)
    logits = torch.cat([model(b) for b in batches])
    edges = torch.cat([b.edges for b in batches])
    found = (logits > 0).float()
    hits = float((found * edges).sum())
    return {"bce": float(F.binary_cross_entropy_with_logits(logits, edges)),
            "error": float((found != edges).float().mean()),
            "f1": 2 * hits / max(1.0, float(found.sum() + edges.sum()))}


def run(method: str, seed: int, config: Mapping[str, Any], progress: Callable[[str], None]) -> dict[str, float]:
    """Trains one auto-encoder; its measures on the test graphs, at the epoch that is best on the validation graphs."""
    draw = torch.Generator().manual_seed(config["data_seed"])
    splits = [erdos_renyi(config[f"num_{split}"], config["least_nodes"], config["most_nodes"],
                          config["edge_probability"], draw) for split in ("train", "valid", "test")]
    train, size = splits[0], config["batch_size"]
    valid, test = (_prepared(data, 500) for data in splits[1:])
    torch.manual_seed(seed)
    shuffle, own = (torch.Generator().manual_seed(seed + n) for n in (1, 2))
    model = AutoEncoder(method, config, own)

    def batches(epoch: int) -> list[Prepared]:
        own.manual_seed(seed + 1000 * epoch)  # `measure` has drawn from it
        return _prepared(train, size, torch.randperm(len(train), generator=shuffle))

    def validate() -> tuple[float, str]:
        found = measure(model, valid)
        return found["bce"], f"validation cross-entropy {found['bce']:.4f}, wrong {found['error']:.2%}"

    train_best(model, config, batches, lambda b: F.binary_cross_entropy_with_logits(model(b), b.edges), validate,
               progress)
    return measure(model, test) | {"parameters": sum(p.numel() for p in model.parameters())}
