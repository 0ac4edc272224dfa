"""Small relaxed models of every kind with their inputs, for the tests of gates that are switched off."""

from types import SimpleNamespace

import torch

from ace_fast.models import EGNO, SEGNN, VNDGCNN, SchNet
from ace_fast.models.segnn import nbody_graph

NAMES = ("segnn", "schnet", "vn_dgcnn", "egno")


def pairs(nodes):
    """All directed edges of `nodes` nodes, [2, E]."""
    found = torch.combinations(torch.arange(nodes)).T
    return torch.cat([found, found.flip(0)], 1)


def make(name, relaxed=True, **options):
    """The model, in training mode; the same weights for the same name."""
    torch.manual_seed(0)
    if name == "segnn":
        attr = "1x0e+1x1o"
        return SEGNN("2x1o+1x0e", "4x0e+4x1o", "1x1o", attr, attr, 2, None, "avg", "node", "2x0e", relaxed=relaxed,
                     **options)
    if name == "schnet":
        return SchNet(8, 6, 2, 7, 5.0, relaxed=relaxed, **options)
    if name == "vn_dgcnn":
        return VNDGCNN(num_class=3, n_knn=3, dropout=0.0, relaxed=relaxed, **options)
    return EGNO(2, 3, 2, 8, with_v=True, num_timesteps=3, time_emb_dim=4, relaxed=relaxed, **options)


def inputs(name, seed=1):
    """What the model takes, as a tuple."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.get_default_dtype())  # noqa: E731
    if name == "segnn":
        bodies = {"pos": draw(10, 3), "vel": draw(10, 3), "charges": draw(10, 1).sign()}
        return (nbody_graph(SimpleNamespace(edge_index=torch.cat([pairs(5), pairs(5) + 5], 1), **bodies)),)
    if name == "schnet":
        z = torch.randint(1, 9, (8,), generator=g)
        return z, draw(8, 3), torch.arange(2).repeat_interleave(4), torch.cat([pairs(4), pairs(4) + 4], 1)
    if name == "vn_dgcnn":
        return (draw(4, 3, 8),)
    return draw(4, 3), draw(4, 3), pairs(4), draw(12, 2), draw(4, 3)


def output(model, arguments):
    """One tensor that depends on every output."""
    found = model(*arguments)
    return found if isinstance(found, torch.Tensor) else torch.cat([y.flatten() for y in found])
