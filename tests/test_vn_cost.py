"""What a step of the vector-neuron models must not do: large tensors written where a small one or a view would do."""

from math import prod

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from ace_fast import nn as fast
from ace_fast.models import VNDGCNN, VNDGCNNPartSeg, VNPointNet


class Written(TorchDispatchMode):
    """Names and sizes of the tensors that operators return, without those that are views of an argument."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            outputs = result if isinstance(result, (tuple, list)) else [result]
            self.found += [(str(func).split(".")[1], y.numel()) for y in outputs if isinstance(y, torch.Tensor)]
        return result

    def large(self, least):
        """Names of the operators that wrote at least `least` numbers, and how often."""
        names = [name for name, size in self.found if size >= least]
        return {name: names.count(name) for name in names}


def step(model, *args):
    with Written() as written:
        model(*args).square().sum().backward()
    return written


def test_means_over_points_are_not_written_out():
    """No gradient of a mean and no feature map that only a mean needs is formed at every point."""
    points = torch.randn(2, 3, 40)
    for model, args in ((VNDGCNN(5, 4, dropout=0.0, relaxed=True), ()), (VNPointNet(5, 4, pooling="max"), ()),
                        (VNDGCNNPartSeg(5, 4, pooling="max"), (torch.eye(16)[:2],))):
        large = step(model, points, *args).large(2 * 40 * 3 * 341)
        assert not {"div", "mean", "expand_copy", "slice_backward"} & set(large), large
        assert large["bmm"] == 3, large  # features and mean in the frame, and back to the features


def test_split_weights_get_their_gradient_in_one_piece():
    """The two parts of a weight that a mean part splits are concatenated, not padded and added."""
    layer = fast.VNLinearLeakyReLU(40, 30, 4, relaxed=True)
    written = step(lambda x, mean: layer(x, mean=mean), torch.randn(2, 20, 3, 2), torch.randn(2, 20, 3))
    assert written.large(90 * 120) == {"cat": 2}


def test_gradients_that_meet_are_added_in_place():
    """Features reach both maps, their products the statistics and the nonlinearity: no sum is a third tensor."""
    for layer in (fast.VNLinearLeakyReLU(40, 40, 4, relaxed=True), fast.VNLeakyReLU(40), fast.VNBatchNorm(40, 4),
                  fast.VNEdgeConv(40, 20, 4, relaxed=True)):
        x = torch.randn(2, 40, 3, 8, requires_grad=True).clone()
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
            layer(x).square().sum().backward()
        sums = [event.name for event in seen.events() if event.name in ("aten::add", "aten::add_")
                and event.input_shapes and prod(event.input_shapes[0]) >= x.numel()]
        assert sums and set(sums) == {"aten::add_"}, (type(layer).__name__, sums)
