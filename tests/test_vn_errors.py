"""What the vector-neuron layers and models say about wrong input."""

import pytest
import torch

from ace_fast import nn as fast
from ace_fast.models import VNDGCNN, VNDGCNNPartSeg, VNPointNet

X = torch.zeros(2, 5, 3, 11)


@pytest.mark.parametrize("call, message", [
    (lambda: fast.VNLinear(5, 7)(X[:, :4]), r"VNLinear: x must be \[B, 5, 3\] or \[B, 5, 3, N\] or "
                                            r"\[B, 5, 3, N, K\], got \[2, 4, 3, 11\]"),
    (lambda: fast.VNLeakyReLU(5)(X.transpose(1, 2)), r"VNLeakyReLU: x must be .*, got \[2, 3, 5, 11\]"),
    (lambda: fast.VNLinear(5, 7)(3), r"VNLinear: x must be a tensor \[B, 5, 3\], got int"),
    (lambda: fast.VNBatchNorm(5, 2), r"VNBatchNorm: dim must be 3, 4 or 5, got 2; it is that of the features"),
    (lambda: fast.VNBatchNorm(5, 5)(X), r"VNBatchNorm: x must be \[B, 5, 3, N, K\], got \[2, 5, 3, 11\]"),
    (lambda: fast.VNLinearLeakyReLU(5, 7)(X), r"VNLinearLeakyReLU: x must be \[B, 5, 3, N, K\], got \[2, 5, 3, 11\]"),
    (lambda: fast.VNLinearLeakyReLU(9, 7, 4)(X, mean=torch.zeros(2, 5, 3)),
     r"VNLinearLeakyReLU: mean must be \[B, 4, 3\], got \[2, 5, 3\]"),
    (lambda: fast.VNLinearLeakyReLU(9, 7, 4)(X, torch.zeros(2, 4, 3)),
     "VNLinearLeakyReLU: disable_equivariance must be a bool, got a tensor; pass a mean part by name, mean=..."),
    (lambda: fast.VNMaxPool(5)(X[..., :0]), r"VNMaxPool: x must have at least one vector to choose from"),
    (lambda: fast.VNEdgeConv(5, 7, pooling="sum"), "VNEdgeConv: pooling must be 'mean', 'max' or None, got 'sum'"),
    (lambda: fast.VNEdgeConv(5, 7)(X), "VNEdgeConv: k must be in 1..11, the points of a cloud, got 20; take"),
    (lambda: fast.VNEdgeConv(5, 7)(X, torch.zeros(2, 10, 3, dtype=torch.int64)),
     r"VNEdgeConv: neighbours must be int64 \[2, 11, K\], got torch.int64 \[2, 10, 3\]"),
    (lambda: fast.VNEdgeConv(5, 7)(X, torch.zeros(2, 11, 3)), r"VNEdgeConv: neighbours must be int64 .* torch.float32"),
    (lambda: fast.VNEdgeConv(5, 7)(X, [[0]]), r"VNEdgeConv: neighbours must be int64 \[2, 11, K\], got list"),
    (lambda: fast.VNEdgeConv(5, 7)(X, torch.full((2, 11, 3), 11)),
     r"VNEdgeConv: neighbours must be in 0..10, indices in each cloud, got 11; subtract the first index of each"),
    (lambda: fast.VNEdgeConv(5, 7)(X, torch.full((2, 11, 3), -1)), "VNEdgeConv: neighbours must be in 0..10.* got -1"),
])
def test_layers(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_batch_norm_with_one_value():
    for layer, shape in ((fast.VNBatchNorm(5, 3), (1, 5, 3)), (fast.VNLinearLeakyReLU(5, 7, 4), (1, 5, 3, 1))):
        with pytest.raises(ValueError, match="VNBatchNorm: expected more than 1 value per channel when training, got"):
            layer(torch.zeros(shape))
        assert layer.eval()(torch.zeros(shape)).shape[0] == 1


@pytest.mark.parametrize("call, message", [
    (lambda: VNDGCNN(pooling="sum"), r"VNDGCNN: pooling must be 'mean' or 'max', got 'sum'"),
    (lambda: VNDGCNN(5, 4)(torch.zeros(2, 12, 3)), r"VNDGCNN: x must be \[B, 3, N\] with at least one point, got "
                                                r"\[2, 12, 3\]; points \[B, N, 3\] take .transpose\(1, 2\)"),
    (lambda: VNDGCNN(5, 4)(torch.zeros(2, 3, 0)), r"VNDGCNN: x must be \[B, 3, N\] with at least one point"),
    (lambda: VNDGCNN(5, 4)([[0.0]]), r"VNDGCNN: x must be a tensor \[B, 3, N\], got list"),
    (lambda: VNDGCNN(5, 4)(torch.zeros(2, 3, 3)), "VNEdgeConv: k must be in 1..3, the points of a cloud, got 4; take a "
                                               "smaller k or larger clouds"),
    (lambda: VNPointNet(5, 4)(torch.zeros(2, 3, 3)), "knn: k must be at most 3"),
    (lambda: VNDGCNNPartSeg(5, 4)(torch.zeros(3, 3, 12), torch.zeros(3, 4)),
     r"VNDGCNNPartSeg: one_hot must be \[3, 16\], got \[3, 4\]"),
])
def test_models(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_layer_without_branches():
    layer = fast.VNLinearLeakyReLU(5, 7, 4)
    layer.relaxed = True
    with pytest.raises(ValueError, match="VNLinearLeakyReLU: relaxed must be False for a layer without branches, got "
                                         "True; build it with relaxed=True"):
        layer(X)


def test_a_map_without_a_branch_ignores_the_flag():
    """ACE's models hand the flag to every layer, and its VNLinear has no branch."""
    layer = fast.VNLinear(5, 7)
    assert torch.equal(layer(X, True), layer(X)) and torch.equal(layer(X, disable_equivariance=False), layer(X))
    layer.relaxed = True
    with pytest.raises(ValueError, match="VNLinear: relaxed must be False for a layer without branches, got True"):
        layer(X)


def test_neighbours_outside_where_nobody_reads_them():
    """Where indices are not checked (compiled, on a GPU) one outside adds nothing and is no other cloud's point."""
    neighbours = torch.tensor([[0, 1], [1, 2], [2, 0]]).repeat(2, 1, 1)
    neighbours[0, 1, 1], neighbours[1, 2, 0] = 3, -1  # of all points: the next cloud's first, the last cloud's last
    single, mean = fast.VNEdgeConv(5, 7, pooling=None).eval(), fast.VNEdgeConv(5, 7).eval()
    mean.load_state_dict(single.state_dict())
    x = torch.randn(2, 5, 3, 3, requires_grad=True)
    single, mean = (torch.compile(layer, fullgraph=True, backend="aot_eager")(x, neighbours)
                    for layer in (single, mean))
    assert not single[0, :, :, 1, 1].any() and not single[1, :, :, 2, 0].any() and single[0, :, :, 1, 0].any()
    torch.testing.assert_close(single.mean(-1), mean)
    for y in (single, mean):
        (grad,) = torch.autograd.grad(y[0].square().sum(), x)
        assert grad[0].any() and not grad[1].any()
