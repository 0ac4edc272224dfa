"""FrameAveraging: equivariance of any model, cost, degenerate spectra, ragged batches, layouts, errors."""

import functools

import pytest
import torch
from operator_calls import Calls
from torch import nn

from ace_fast.symmetry import FrameAveraging, act, group, layout

framed = functools.partial(FrameAveraging, generator=torch.default_generator)  # deterministic mode asks for one
GROUPS = ("SO(3)", "O(3)", "SE(3)", "E(3)")
SIZES = [5, 1, 0, 7, 2, 4]  # few points too: what a set of one or two leaves open is drawn


class Ragged(nn.Module):
    """A graph network without any symmetry but permutations: positions, vectors, irreps and scalars in and out."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3 + 3 + 8 + 2 + 1, 16)
        self.outer = nn.Linear(16, 3 + 3 + 8 + 2)

    def forward(self, pos, velocity, irreps, scalar, edge_index, length, batch):
        h = torch.cat([pos, velocity, irreps, scalar], 1)
        source, target = edge_index
        message = torch.tanh(self.inner(torch.cat([h[source], length], 1)))
        node = self.outer(h.new_zeros(len(h), 16).index_add(0, target, message))
        place, turn, features, rest = node.split([3, 3, 8, 2], 1)
        sums = rest.new_zeros(COUNT * self.copies, 2).index_add(0, batch, torch.tanh(rest))
        return pos + place, turn, features, sums


COUNT = len(SIZES)
IRREPS = "1x0e+1x0o+1x1e+1x1o"
INPUTS = ("position", "vector", IRREPS, "scalar", "index", "edge scalar", "batch")
OUTPUTS = ("position", "vector", IRREPS, "graph scalar")


def ragged(sizes=tuple(SIZES)) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    pairs = (batch[:, None] == batch).nonzero().T
    n = len(batch)
    return [normal(n, 3), normal(n, 3), normal(n, 8), normal(n, 2), pairs, normal(pairs.shape[1], 1), batch]


def moved(name: str, element, arrays, declared, owner):
    """Arrays under the elements of a group, one a set."""
    found = []
    for x, word in zip(arrays, declared, strict=True):
        over, _, rest = word.rpartition(" ") if word.split(" ")[0] in ("edge", "graph") else ("", "", word)
        turns = rest not in ("index", "batch", "scalar")
        found.append(act(group(name), element, x, layout(rest), owner) if turns and not over else x)
    return found


@pytest.mark.parametrize("name", GROUPS)
def test_equivariant_to_rounding_where_spectra_are_distinct(name):
    torch.manual_seed(1)
    model = Ragged().double()
    fa = framed(model, name, INPUTS, OUTPUTS)
    model.copies = fa.frames
    arrays = ragged((5, 4, 7, 6, 4, 5))
    batch, element = arrays[-1], group(name).sample(COUNT, torch.Generator().manual_seed(2))
    expected = moved(name, element, fa(*arrays), OUTPUTS, batch)
    found = fa(*moved(name, element, arrays, INPUTS, batch))
    for x, y in zip(found, expected, strict=True):
        assert (x - y).abs().max() < 1e-11 * y.abs().max()


def test_stochastic_frames_average_to_all_frames():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(15, 8), nn.Tanh(), nn.Linear(8, 3), nn.Unflatten(1, (1, 3))).double()
    pos, draws = torch.randn(4, 5, 3, dtype=torch.float64), 1000
    one = framed(net, "E(3)", ["position"], "vector", stochastic=True, generator=torch.Generator())
    mean = one(pos.repeat(draws, 1, 1)).view(draws, 4, 1, 3).mean(0)  # a draw for each set
    expected = framed(net, "E(3)", ["position"], "vector")(pos)
    assert (mean - expected).abs().max() < 4 * draws**-0.5
    assert not torch.equal(one(pos), one(pos))
    seeded = lambda: torch.Generator().manual_seed(3)  # noqa: E731
    assert torch.equal(one(pos, generator=seeded()), one(pos, generator=seeded()))


@pytest.mark.parametrize("stochastic", [False, True])
def test_deterministic_mode_asks_for_a_generator(stochastic):
    """All frames too: what moments leave open is drawn."""
    fa = FrameAveraging(nn.Linear(3, 3), "E(3)", ["position"], "position", stochastic=stochastic)
    with pytest.raises(ValueError, match="FrameAveraging: generator must be a torch.Generator in deterministic mode"):
        fa(torch.zeros(1, 2, 3))
    assert fa(torch.zeros(1, 2, 3), generator=torch.Generator()).shape == (1, 2, 3)
    torch.use_deterministic_algorithms(False)
    assert fa(torch.zeros(1, 2, 3)).shape == (1, 2, 3)


@pytest.mark.parametrize("name", ["SO(3)", "E(3)"])
def test_sets_that_leave_frames_open_are_equivariant_on_the_mean(name):
    """A square, a line, one point, coincident points: the mean over draws turns with them, single draws need not."""
    torch.manual_seed(0)
    square = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
    line = torch.tensor([[0.0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 0, 5]])
    pos = torch.stack([square, line, line * 0 + 1, square * 2 + 3]).double()
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3), nn.Unflatten(1, (1, 3))).double()
    fa = framed(net, name, ["position"], "vector")
    element = group(name).sample(4, torch.Generator().manual_seed(5))
    turned = act(group(name), element, pos, layout("position"))
    draws = 1000
    many = lambda x: fa(x.repeat(draws, 1, 1)).view(draws, 4, 1, 3)  # a draw for each set  # noqa: E731
    mine, theirs = many(turned), many(pos)
    theirs = act(group(name), element, theirs.transpose(0, 1)[:, :, 0], layout("vector")).transpose(0, 1)[:, :, None]
    size = theirs.abs().max()
    assert (mine.mean(0) - theirs.mean(0)).abs().max() < 6 * size * draws**-0.5
    assert theirs.isfinite().all() and theirs[:, 0].std(0).max() > 0.01 * size  # drawn anew
    assert torch.equal(fa(pos, generator=torch.Generator().manual_seed(1)),
                       fa(pos, generator=torch.Generator().manual_seed(1)))


def test_coincident_points_away_from_the_origin_are_equivariant_on_the_mean():
    """Seven points whose mean is off by rounding, and a vector of each set: its frames are uniform."""
    torch.manual_seed(0)

    class Second(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))

        def forward(self, pos, v):
            return self.net(v)

    fa = framed(Second(), "SE(3)", ["position", "graph vector"], "graph vector")
    draws, element = 2000, group("SE(3)").sample(1, torch.Generator().manual_seed(5))
    g = element.matrix[0].float()
    pos, v = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, -1, 2])
    with torch.no_grad():
        mine, theirs = (fa(x.expand(draws, 7, 3), y.expand(draws, 3)).mean(0) for x, y in ((g @ pos, g @ v), (pos, v)))
    assert (mine - g @ theirs).abs().max() < 4 * draws**-0.5 and theirs.abs().max() > 0.1


class First(nn.Module):
    """A linear map of the first argument."""

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(3, 3)

    def forward(self, x, *_):
        return self.map(x)


@pytest.mark.parametrize(("name", "stochastic", "frames"),
                         [("SE(3)", False, 4), ("E(3)", False, 8), ("E(3)", True, 1)])
def test_costs_one_call_of_the_model_on_all_frames_and_one_fused_call(name, stochastic, frames):
    rows = []
    net = First()
    net.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    fa = framed(net, name, ["position", "batch"], "position", stochastic=stochastic,
                        generator=torch.Generator())
    with Calls() as calls, torch.no_grad():
        fa(torch.randn(20, 3), torch.arange(4).repeat_interleave(5))
    assert rows == [20 * frames] and [name for name, _ in calls.own] == ["frames"] and fa.frames == frames


def test_forces_of_an_invariant_energy():
    """Centroids are differentiated: forces that add up to zero and turn with the points."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(18, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    fa = framed(net, "E(3)", ["position"], "scalar")
    pos = torch.randn(3, 6, 3, dtype=torch.float64)
    element = group("E(3)").sample(3, torch.Generator().manual_seed(5))

    def forces(x):
        x = x.clone().requires_grad_()
        return -torch.autograd.grad(fa(x).sum(), x)[0]

    found = forces(pos)
    assert found.sum(1).abs().max() < 1e-12 and found.abs().max() > 1e-3
    expected = act(group("E(3)"), element, found, layout("vector"))
    assert (forces(act(group("E(3)"), element, pos, layout("position"))) - expected).abs().max() < 1e-11


def test_ragged_batches_and_ptr():
    """Sets of one point and none; a ptr says the same as a batch; NaN stays in its own set."""
    torch.manual_seed(1)
    model = Ragged().double()
    model.copies = 8
    arrays = ragged()
    batch = arrays[-1]
    seeded = lambda: torch.Generator().manual_seed(3)  # noqa: E731
    fa = framed(model, "E(3)", INPUTS, OUTPUTS)
    pos, turn, features, sums = fa(*arrays, num_graphs=COUNT, generator=seeded())
    assert pos.shape == (19, 3) and features.shape == (19, 8) and sums.shape == (COUNT, 2)
    assert all(x.isfinite().all() for x in (pos, turn, features, sums))

    class Ptr(nn.Module):
        def forward(self, *args):
            *rest, ptr = args
            owner = torch.repeat_interleave(ptr.diff(), output_size=len(rest[0]))
            return model(*rest, owner)

    ptr = torch.tensor([0, *SIZES]).cumsum(0)
    by_ptr = framed(Ptr(), "E(3)", (*INPUTS[:-1], "ptr"), OUTPUTS, generator=seeded())
    same = by_ptr(*arrays[:-1], ptr)
    for x, y in zip(same, (pos, turn, features, sums), strict=True):
        assert torch.equal(x, y)
    arrays[0] = arrays[0].clone()
    arrays[0][8, 1] = torch.nan
    broken = fa(*arrays, num_graphs=COUNT)[1]
    assert broken[batch == 3].isnan().all() and broken[batch != 3].isfinite().all()
    empty = [x[:0] for x in arrays[:4]] + [arrays[4][:, :0], arrays[5][:0], batch[:0]]
    assert fa(*empty, num_graphs=COUNT)[0].shape == (0, 3)


def test_nothing_is_read_from_the_device_where_the_number_of_graphs_is_known():
    """Tensors without values, which raise where one is asked for."""
    pos, batch, ptr = (x.to("meta") for x in (torch.ones(4, 3), torch.tensor([0, 0, 1, 1]), torch.tensor([0, 2, 4])))
    net = First().to("meta")
    for kind, given in (("batch", batch), ("ptr", ptr)):
        fa = framed(net, "E(3)", ["position", kind], "vector")
        assert fa(pos, given, num_graphs=2).shape == (4, 3)
        with pytest.raises(NotImplementedError):
            fa(pos, given)
    alone = framed(net, "E(3)", ["position"], "vector")
    assert alone(pos).shape == alone(pos.view(2, 2, 3)).flatten(0, 1).shape == (4, 3)


def test_vectors_alone_and_one_cloud():
    """Several vectors of a node are points of its set; without a batch all nodes are one set."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    fa = framed(net, "O(3)", ["vector"], "vector")
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    element = group("O(3)").sample(1)
    turned = lambda x: act(group("O(3)"), element, x, layout("vector"))  # noqa: E731
    assert (fa(turned(x)) - turned(fa(x))).abs().max() < 1e-12
    assert "group=O(3), frames=8" in repr(fa)


def test_errors():
    net, pos, batch = First(), torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
    make = lambda inputs, outputs, name="E(3)": framed(net, name, inputs, outputs)  # noqa: E731
    for match, call in {
        r"group must be SO\(3\), O\(3\), SE\(3\) or E\(3\), got S_n": lambda: make(["position"], "vector", "S_n"),
        "a layout must be": lambda: make(["image"], "vector"),
        "inputs must have a position or a vector of the nodes": lambda: make(["scalar", "edge vector"], "vector"),
        "outputs must be positions, vectors, scalars or irreps": lambda: make(["position"], None),
        "arguments must be 1, as inputs says, got 2": lambda: make(["position"], "vector")(pos, pos),
        "batch must ascend": lambda: make(["position", "batch"], "vector")(pos, batch.flip(0)),
        "ptr must be ascending from 0 to 4, the rows, got 0 to 3":
            lambda: make(["position", "ptr"], "vector")(pos, torch.tensor([0, 3])),
        r"batch must be int64 \[4\]": lambda: make(["position", "batch"], "vector")(pos, batch[:3]),
        "argument 1 must have a row for each of 4 nodes":
            lambda: make(["position", "scalar"], "vector")(pos, pos[:3]),
        "result 0 must have 8 x 1 rows": lambda: make(["position"], "graph vector")(pos),
        "results must be 2, as outputs says, got 32": lambda: make(["position"], ["vector", "scalar"])(pos),
    }.items():
        with pytest.raises(ValueError, match=match):
            call()
