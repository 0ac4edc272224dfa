"""Operations and bytes of the operators, against counts by hand."""

import importlib
import math

import pytest
import torch

from ace_fast.functional import SphereGrid
from ace_fast.kernels import ROOMS
from ace_fast.kernels.sphere_product import grids, sphere_table
from ace_fast.kernels.tensor_product import ProductTable
from ace_fast.kernels.tensor_product.counts import gate_row, product_row
from ace_fast.kernels.vn_edge_conv.counts import plain_bytes
from bench import counts, operators


def tensors(**shapes):
    return {name: torch.zeros(shape, requires_grad=True) for name, shape in shapes.items()}


def product(in1: str, in2: str, out: str, rows: int) -> dict:
    table = importlib.import_module("ace_fast.kernels.tensor_product.cases").table(in1, in2, out)
    cg_index, cg_value = table.on(torch.device("cpu"))
    sizes = {"x1": (rows, table.dims[0]), "x2": (rows, table.dims[1]), "weight": (table.weight_numel,)}
    bias = {"bias": torch.zeros(table.bias_numel, requires_grad=True)}
    static = {"cg_index": cg_index, "cg_value": cg_value, "dims": table.dims, "paths": table.paths}
    return tensors(**sizes) | bias | static | {"bias_slots": table.bias_slots}


def test_counts_of_segment_sum():
    index = {k: torch.zeros(n, dtype=torch.int64) for k, n in (("index", 7), ("order", 7), ("ptr", 5))}
    inputs = tensors(x=(7, 3)) | index
    out = torch.zeros(4, 3)
    # 21 additions; 21 + 12 floats of 4 bytes, 19 integers of 8
    assert counts.forward("segment_sum", inputs, out) == (21, 132 + 152)
    # the gather adds nothing: it reads 12 floats and writes 21
    assert counts.backward("segment_sum", inputs, out) == (0, 132 + 152)


def test_counts_of_a_convolution_along_time():
    inputs = tensors(x=(5, 7, 16), weight=(16, 16, 2, 2))
    out = torch.zeros(5, 7, 16)
    # a node: 4 rows along time of 16 + 16 channels, 4 products of 16 x 16
    flops = 7 * (2 * 5 * 4 * 32 + 2 * 4 * 256)
    assert counts.forward("spectral_conv", inputs, out) == (flops, 4 * (560 + 1024 + 560))
    assert counts.backward("spectral_conv", inputs, out) == (2 * flops, 4 * (560 + 1024 + 560 + 560 + 1024))
    assert counts.forward("time_conv", inputs, out).flops == flops + 3 * 560
    assert counts.backward("time_conv", inputs, out).flops == 2 * flops + 2 * 560
    # two channels: 3 rows, 5 products of 2 x 2
    assert counts.forward("spectral_conv", tensors(x=(5, 7, 2), weight=(2, 2, 2, 2)), out).flops == 7 * (120 + 40)


def test_counts_of_a_product_path():
    inputs = product("32x0e", "1x1o", "16x1o", 10)
    # 0 x 1 -> 1: three coefficients, three (i, k). T: 2*3. Weights first: 2*32*16*1 + 2*16*3 = 1120; contraction first:
    # 2*32*3 + 2*32*16*3 = 3264. No scalar in the output, so no bias.
    assert product_row(inputs) == 6 + 1120
    out = torch.zeros(10, 48)
    bytes_ = 4 * (320 + 30 + 512 + 480) + 3 * 24 + 3 * 8
    assert counts.forward("tensor_product", inputs, out) == (11260, bytes_)
    gradients = counts.backward("tensor_product", inputs, out)
    assert gradients.flops == 3 * 11260
    assert gradients.bytes == bytes_ + 4 * (320 + 30 + 512)


def test_counts_of_a_product_to_scalars_and_its_gate():
    inputs = product("4x1o", "1x1o", "3x0e", 5)
    # 1 x 1 -> 0: three coefficients, three (i, k) = (i, 0). T: 6. Weights first: 2*4*3*3 + 2*3*3 = 90; contraction
    # first: 2*4*3 + 2*4*3*1 = 48. Three biases.
    assert counts.forward("tensor_product", inputs, torch.zeros(5, 3)).flops == 5 * (6 + 48 + 3)
    gated = inputs | {"layout": (1, 2, 2, 3)}
    # one scalar: SiLU and gain 6; two gates: sigmoid and gain 5 each; 2 x 3 gated components
    assert gate_row(gated) == 6 + 10 + 6
    assert counts.FLOPS["gated_tensor_product"](gated) == 5 * (57 + 22)


@pytest.mark.parametrize(("irreps", "mode", "weighted", "flops"), [
    # six coefficients and pairs (i, k); T 12; 32 channels of 2*6 and a weight on three components
    (("32x1o", "1x1o", "32x1e"), "uvu", True, 12 + 32 * 15),
    # three coefficients and pairs; T 24; its sum over v with weights 2*8*3, then 2*2*3 (pair by pair 8 * 9 = 72)
    (("2x1o", "4x0e", "2x1o"), "uvu", True, 24 + 48 + 12),
    (("2x1o", "4x0e", "2x1o"), "uvu", False, 24 + 3 * 3 + 12),
    # T 24; x1 summed over u with weights 2*12*3, then 2*4*3 (pair by pair 12 * 9 = 108)
    (("3x1o", "4x0e", "4x1o"), "uvv", True, 24 + 72 + 24),
    (("3x1o", "4x0e", "4x1o"), "uvv", False, 24 + 2 * 3 + 24),
    # T 24; contraction 2*4*3; the matrix 2*4*5*3
    (("4x1o", "4x0e", "5x1o"), "uuw", True, 24 + 24 + 120),
    (("4x1o", "4x0e", "1x1o"), "uuw", False, 24 + 24),
    # T 24; four channels of 2*3 and a weight on the one component of the output
    (("4x1o", "4x1o", "4x0e"), "uuu", True, 24 + 4 * 7),
    # T 18; six pairs of channels of 2*3
    (("2x1o", "3x1o", "6x0e"), "uvuv", False, 18 + 36),
    # T 48; six pairs u < v of 2*6, and a weight on three components, or the matrix 2*6*5*3
    (("4x1o", "4x1o", "6x1e"), "uvu<v", True, 48 + 6 * 15),
    (("4x1o", "4x1o", "5x1e"), "u<vw", True, 48 + 72 + 180),
])
def test_counts_of_the_connection_modes(irreps, mode, weighted, flops):
    table = ProductTable(*irreps, [(0, 0, 0, mode, weighted, 1.0)])
    assert product_row({"paths": table.paths, "cg_index": table.on(torch.device("cpu"))[0]}) == flops


def test_counts_of_weights_of_every_row():
    inputs = product("32x0e", "1x1o", "16x1o", 10)
    own = inputs | tensors(weight=(10, 512))
    shared, each = (counts.forward("tensor_product", i, torch.zeros(10, 48)) for i in (inputs, own))
    assert each.flops == shared.flops and each.bytes == shared.bytes + 4 * 9 * 512
    gradients = counts.backward("tensor_product", own, torch.zeros(10, 48))
    assert gradients == (3 * each.flops, each.bytes + 4 * (320 + 30 + 5120))


def test_counts_of_a_convolution():
    """12 edges from 5 sources to 3 targets: nothing of their size is written."""
    table = ProductTable("32x1o", "1x1o", "32x1e", [(0, 0, 0, "uvu", True, 1.0)])
    cg_index, cg_value = table.on(torch.device("cpu"))
    inputs = tensors(x1=(5, 96), x2=(12, 3), weight=(12, 32))
    for name, count in (("source", 6), ("target", 4)):
        inputs |= {name: torch.zeros(12, dtype=torch.int64), f"{name}_order": torch.zeros(12, dtype=torch.int64),
                   f"{name}_ptr": torch.zeros(count, dtype=torch.int64)}
    inputs |= {"cg_index": cg_index, "cg_value": cg_value, "dims": table.dims, "paths": table.paths, "atomic": False}
    out, fixed = torch.zeros(3, 96), 6 * 32
    leaves = 4 * (480 + 36 + 384)
    # the product 492 (above) and 96 additions an edge; the forward reads sources, and edges by target
    forward = counts.forward("tensor_product_conv", inputs, out)
    assert forward == (12 * (492 + 96), leaves + 4 * 288 + fixed + 8 * (12 + 12 + 4))
    # three products an edge, the gradient of x1 summed at the sources
    backward = counts.backward("tensor_product_conv", inputs, out)
    assert backward == (12 * (3 * 492 + 96), 2 * leaves + 4 * 288 + fixed + 8 * (4 * 12 + 6 + 4))
    assert counts.rows(inputs, ("x1", "x2", "weight")) == 12
    only = counts.FLOPS["tensor_product_conv_bwd"](inputs | {"needs": [False, True, False]})
    assert only == 12 * 492


def test_counts_of_a_whole_message():
    """Three nodes, ten edges, scalars only: by hand, the weights at the nodes and at the edges."""
    one, two = product("64x0e", "1x0e", "32x0e", 10), product("32x0e", "1x0e", "32x0e", 10)
    inputs = tensors(h=(3, 32), attr=(10, 1)) | {"extra": None, "needs": (True, False, False, True, True, True, True)}
    for n, found in ((1, one), (2, two)):
        inputs |= {f"{name}{n}": found[name] for name in ("paths", "cg_index", "dims")} | {f"layout{n}": (32, 0)}
    # an edge: 2*32*2*32 and 2 for the coupling, 64 for the contraction; at the nodes 2*2*32*32 each and 96 an edge
    first, second = 3 * 4096 + 10 * 96, 10 * (2 * 32 * 32 + 2 + 64)
    rest = 10 * (2 * 32 * 6 + 32 + 64)  # SiLU and gain twice, bias, bias and sum
    assert counts.FLOPS["steerable_message"](inputs) == first + second + rest
    assert counts.FLOPS["steerable_message_bwd"](inputs) == 3 * (first + second + rest)


def test_counts_of_a_segnn_message():
    """The second message of SEGNN N-body: each path takes the cheaper order."""
    inputs = product("32x0e+32x1o", "1x0e+1x1o", "64x0e+32x1o", 1)
    scalars = 2 + min(4096 + 128, 64 + 4096)  # 0 x 0 -> 0, 64 channels
    lifted = 6 + min(2048 + 192, 192 + 6144)  # 0 x 1 -> 1: the matrix product on the scalar side
    vectors = 6 + min(6144 + 192, 192 + 6144)  # 1 x 0 -> 1
    dots = 6 + min(12288 + 384, 192 + 4096)  # 1 x 1 -> 0: the dot product first
    assert product_row(inputs) == scalars + lifted + vectors + dots == 17044


def test_counts_of_relaxed_linear():
    inputs = tensors(x=(10, 4), weight=(3, 4), bias=(3,), gamma=(), base=(10, 3))
    inputs |= {"residual": None, "activation": "gelu"}
    out = torch.zeros(10, 3)
    # product 240, bias + gamma + base 90, GELU of 40 numbers 200; 40 + 12 + 3 + 1 + 30 + 30 floats
    assert counts.forward("relaxed_linear", inputs, out) == (530, 4 * 116)
    # x and weight 480, bias 30, gamma 2*12 + 2*3 and its scaling 12, the activation's derivative 360
    assert counts.backward("relaxed_linear", inputs, out) == (912, 4 * (116 + 86))


def test_counts_of_an_egnn_message():
    """3 nodes, 10 edges; F 4, A 2, H 5, M 6, C 7."""
    inputs = tensors(x=(3, 3), h=(3, 4), edge=(10, 2), weight1=(5, 11), bias1=(5,), weight2=(6, 5), bias2=(6,),
                     weight3=(7, 6), bias3=(7,), weight4=(1, 7), bias4=(1,))
    inputs |= {"target_index": torch.zeros(10, dtype=torch.int64), "mean": True, "keep": True}
    # two products at the nodes 4*3*4*5, of edges 2*10*(5*6 + 6*7), 18 SiLUs an edge; an edge's difference and square 9,
    # first layer 5*(1 + 2*3), bias and sum of the message 12, bias and last row 21, r w and its sum 6
    assert counts.FLOPS["egnn_message"](inputs) == 240 + 1440 + 10 * 18 * 5 + 10 * 83
    needs = lambda *names: inputs | {"needs": [n in names for n in counts.NEEDS["egnn_message"]]}  # noqa: E731
    assert counts.FLOPS["egnn_message_bwd"](needs(*counts.NEEDS["egnn_message"])) == 2 * 3410
    # the coordinate network's weight takes one product of 6 x 7; a force one of each
    assert counts.FLOPS["egnn_message_bwd"](needs("weight3")) == 840 + 1800 + 1660
    assert counts.FLOPS["egnn_message_bwd"](needs("x")) == 1440 + 1800 + 1660


def test_counts_of_products_at_points():
    inputs = tensors(x1=(5, 18), x2=(5, 9), table=(9,)) | {"ir_mul": False}
    of = lambda form, **needs: counts.FLOPS["sphere_product_bwd" if needs else "sphere_product"](  # noqa: E731
        inputs | dict(zip(("grid", "slots"), sphere_table((2, 2), 1, form=form).on("cpu")[1:], strict=True)) | needs)
    # five columns of two channels, the other input of one: 3 x 6 points, matrices of 9 and 4 components
    assert of("dense") == 15 * 2 * 18 * 9 + 10 * (18 + 2 * 18 * 4)
    # 2 x 2 points of the octant, 24 additions for the images of each
    assert of("mirrored") == 15 * (2 * 4 * 9 + 96) + 10 * (32 + 2 * 4 * 4 + 96)
    # 2 rings of 9 (4) components, then 2 rings of 2 points by 5 (3) orders for each parity in y
    assert of("separable") == 15 * (2 * (18 + 40) + 96) + 10 * (32 + 2 * (8 + 24) + 96)
    # g, both inputs; a product and a way back for each gradient
    assert of("dense", needs=[True] * 2) == 10 * 144 + 15 * 324 + 2 * 10 * 18 + 15 * 324
    assert of("dense", needs=[True, False]) == 10 * 144 + 5 * 324 + 10 * 18 + 10 * 324
    # 40 + 90 + 45 components with weights; what returns takes them too; a product and a sum for their gradients, for
    # which the result is formed again
    weighted = lambda *needs: counts.FLOPS["weighted_sphere_product" + "_bwd" * bool(needs)](  # noqa: E731
        inputs | dict(zip(("grid", "slots"), sphere_table((2, 2), 1, form="dense").on("cpu")[1:], strict=True))
        | {"needs": needs})
    assert weighted() == of("dense") + 175
    assert weighted(True, False, False) == of("dense", needs=[True, False]) + 40 + 45 + 90
    whole = of("dense", needs=[True] * 2) + 10 * 18 + 10 * 144 + 175 + 2 * 175
    assert weighted(True, True, True) == whole + 135 and weighted(False, False, True) == whole
    terms = sphere_table((2, 2), 1, form="sparse").points.size  # two products and a sum of each
    assert terms == 1 + 3 + 5 + 3 * (1 + 1) + 2 * 11  # 0: 000 110 220; 1: 011 101 121 211
    assert of("sparse") == 10 * 3 * terms
    assert counts.FLOPS["cp_product"] is counts.FLOPS["sphere_product"]


def test_every_operator_of_every_room_is_counted():
    """Whatever has a case, in every direction that is benchmarked."""
    for room in ROOMS:
        module = importlib.import_module(f"ace_fast.kernels.{room}.cases")
        for case in (*module.SMALL, *module.LARGE):
            assert case.op.name in counts.FLOPS, case
    for job in operators.jobs("cpu", torch.float32):
        assert job.direction == "forward" or job.op.startswith("segment_sum") or job.op in counts.NEEDS, job


def test_counts_of_a_second_derivative_of_a_product():
    """32x0e x 1o -> 16x1o, 10 rows: 1126 operations a row for each product."""
    inputs = product("32x0e", "1x1o", "16x1o", 10) | {f"gg_{n}": torch.zeros(1) for n in ("x1", "x2", "weight")}
    second = counts.FLOPS["tensor_product_bwd_bwd"]
    # g takes all three cotangents, each argument those of the two others
    assert second(inputs | {"needs": [True] * 4}) == 9 * 11260
    assert second(inputs | {"needs": [True] * 4, "gg_x2": None}) == (2 + 1 + 2 + 1) * 11260
    assert second(inputs | {"needs": [False, True, False, False], "gg_x1": None, "gg_weight": None}) == 11260
    # as the gradient of the gradient of x1 and weight alone
    first = inputs | tensors(g=(10, 48)) | {"needs": [True, False, True, False]}
    for name in ("gg_x1", "gg_x2", "gg_weight", "bias"):
        del first[name]
    gradients = torch.zeros(10, 32), torch.zeros(0), torch.zeros(512), torch.zeros(0)
    read = 4 * (480 + 320 + 30 + 512) + 3 * 24 + 3 * 8
    found = counts.backward("tensor_product_bwd", first, gradients)
    assert found == (6 * 11260, read + 4 * (320 + 512) + 4 * (480 + 320 + 30 + 512))


def test_counts_of_gates_and_activations_of_norms():
    pre = {"pre": torch.zeros(7, 9), "layout": (1, 2, 2, 3)}
    # SiLU and gain 6, two sigmoids and gains 10, 6 gated components
    assert counts.forward("gate", pre, torch.zeros(7, 7)).flops == 7 * 22
    assert counts.FLOPS["gate_bwd"](pre) == 7 * 44
    norms = {"pre": torch.zeros(7, 5), "layout": [2, 1, 1, 3], "norm_bias": torch.zeros(3), "activation": "silu"}
    # two scalar channels: norm 3, bias 1, SiLU 5, quotient 1, product 1; a vector 7, 1, 5, 1, 3
    assert counts.FLOPS["norm_activation"](norms) == 7 * (2 * 11 + 17)
    # without bias, ReLU 1: 6 and 12
    assert counts.FLOPS["norm_activation_bwd"](norms | {"norm_bias": None, "activation": "relu"}) == 14 * (12 + 12)
    normed = product("32x0e", "1x1o", "1x1o", 7) | {"layout": [1, 3], "norm_bias": None, "activation": "tanh"}
    row = 6 + 2 * 32 + 2 * 3  # weights first
    assert counts.FLOPS["normed_tensor_product"](normed) == 7 * (row + 12)
    needs = {"needs": [True, False, True, False, False]}
    assert counts.FLOPS["normed_tensor_product_bwd"](normed | needs) == 7 * (2 * row + 24)


def test_counts_of_second_derivatives_of_filters():
    """The gradient's work twice, whether the operator is called or its gradient is differentiated."""
    inputs = tensors(g=(4, 4), x=(4, 4), pos=(4, 3), table=(6, 2, 4)) | {
        "neighbour": torch.zeros(12, dtype=torch.int64), "symmetric": True, "needs": [True] * 3}
    first = counts.FLOPS["spline_conv_bwd"](inputs)
    assert counts.FLOPS["spline_conv_bwd_bwd"](inputs | {"needs": [True] * 4}) == 2 * first
    assert counts.backward("spline_conv_bwd", inputs, (torch.zeros(4, 4),)).flops == 2 * first


# vector neurons


def test_counts_of_vn_linear():
    inputs = tensors(x=(10, 3, 4), weight=(5, 4)) | {"dense": None, "bias": None, "gamma": None, "offset": None}
    out = torch.zeros(10, 3, 5)
    # three products of 4 -> 5 a row; 120 + 20 + 150 floats
    assert counts.forward("vn_linear", inputs | {"edge": False}, out) == (1200, 4 * 290)
    # one for x, one for the weight
    assert counts.backward("vn_linear", inputs | {"edge": False}, out) == (2400, 4 * (290 + 140))


def test_counts_of_a_relaxed_vn_linear():
    inputs = tensors(x=(10, 3, 4), weight=(5, 4), dense=(15, 12), bias=(15,), gamma=(), offset=(2, 3, 5))
    inputs |= {"edge": False}
    # one product of 12 -> 15 a row, 3600; bias and offset 150 each; gamma D 180, W on its diagonals 60
    assert counts.forward("vn_linear", inputs, torch.zeros(10, 3, 5)).flops == 3600 + 300 + 240
    # x and dM 7200; traces 60, gamma dM 180, <dM, D> 360, column sums 150
    assert counts.backward("vn_linear", inputs, torch.zeros(10, 3, 5)).flops == 7200 + 60 + 180 + 360 + 150
    only_x = {"needs": [True, False, False, False, False]}
    assert counts.FLOPS["vn_linear_bwd"](inputs | only_x) == 3600


def test_counts_of_an_edge_map():
    inputs = tensors(x=(10, 3, 2), weight=(5, 4), dense=(15, 12), bias=(15,)) | {"gamma": None, "offset": None}
    # neighbour and centre part, 6 -> 30, 3600; the bias with the centre 150; W 60, centre minus difference 90
    assert counts.forward("vn_linear", inputs | {"edge": True}, torch.zeros(10, 3, 10)).flops == 3600 + 150 + 60 + 90


def test_counts_of_norms_and_activations():
    p = tensors(p=(10, 3, 4))
    # norm 7, mean and variance 4, of 40 vectors; backward norm 7, its gradient 4, along the vector 3
    assert counts.forward("vn_norm_stats", p, (torch.zeros(4), torch.zeros(4))) == (40 * 11, 4 * 128)
    assert counts.backward("vn_norm_stats", p, (torch.zeros(4), torch.zeros(4))) == (40 * 14, 4 * (128 + 120))
    plain = p | tensors(d=(10, 3, 4)) | dict.fromkeys(("mean", "var", "weight", "bias"))
    # dot product 5, |d|^2 + eps 6, what is taken off 8
    assert counts.forward("vn_leaky_relu", plain, torch.zeros(10, 3, 4)).flops == 40 * 19
    shared = plain | tensors(d=(10, 3, 1), mean=(4,), var=(4,), weight=(4,), bias=(4,))
    # norm 7, scaling 5, one |d|^2 a row
    assert counts.forward("vn_leaky_relu", shared, torch.zeros(10, 3, 4)).flops == 40 * 25 + 10 * 6
    # again 17; along d 32; of the batch norm 20
    assert counts.backward("vn_leaky_relu", shared, torch.zeros(10, 3, 4)).flops == 40 * (17 + 32 + 20) + 10 * 6


def edge_inputs(**changed):
    inputs = tensors(p=(2, 5, 3, 8), d=(2, 5, 3, 8), mean=(4,), var=(4,), weight=(4,), bias=(4,))
    return inputs | {"neighbours": torch.zeros(2, 5, 3, dtype=torch.int64), "selected": None} | changed


def test_counts_of_edges():
    """2 x 5 x 3 edges of 4 channels; nothing of their size is read or written."""
    out, edges = torch.zeros(2, 5, 3, 4), 30 * 4
    nodes = 2 * 240 + 16
    # two sums of vectors, batch norm and projection 31 (|d|^2 included), the sum over neighbours
    assert counts.forward("vn_edge_conv", edge_inputs(), out) == (edges * (6 + 31 + 3), 4 * (nodes + 120) + 8 * 30)
    back = counts.backward("vn_edge_conv", edge_inputs(), out)
    assert back == (edges * (18 + 17 + 6 + 32 + 20), 4 * (2 * nodes + 120) + 8 * 30)
    stats = (torch.zeros(4), torch.zeros(4))
    points = {k: v for k, v in edge_inputs().items() if k in ("p", "neighbours")}
    assert counts.forward("vn_edge_stats", points, stats) == (edges * 14, 4 * 248 + 8 * 30)
    assert counts.backward("vn_edge_stats", points, stats).flops == edges * 23
    # one edge a channel of each node, no sum
    chosen = edge_inputs(selected=torch.zeros(2, 5, 4, dtype=torch.int64))
    assert counts.FLOPS["vn_edge_conv"](chosen) == 40 * (6 + 31)
    # <o, U o>: 24 for U o, 5 and a comparison
    assert counts.FLOPS["vn_edge_select"](edge_inputs()) == edges * (6 + 31 + 24 + 6)
    # a shared direction is formed and squared once an edge
    shared = edge_inputs(**tensors(d=(2, 5, 3, 2)))
    assert counts.FLOPS["vn_edge_conv"](shared) == edges * (3 + 25 + 3) + 30 * 9


def test_edge_tensors_of_the_plain_reference():
    assert plain_bytes(edge_inputs()) == 12 * 30 * 3 * 4 * 8


def test_counts_of_knn():
    inputs = {"x": torch.zeros(7, 5), "ptr": torch.tensor([0, 3, 7]), "longest": 4, "k": 2, "include_self": True}
    # 9 + 16 pairs: a scalar product of 5, two squares, a comparison; 35 floats, 3 + 14 integers
    assert counts.forward("knn", inputs, torch.zeros(7, 2, dtype=torch.int64)) == (25 * 13, 4 * 35 + 8 * 17)
    assert counts.backward("knn", inputs, torch.zeros(7, 2, dtype=torch.int64)) is None


def test_counts_of_ranks():
    inputs = {"score": torch.zeros(7), "ptr": torch.tensor([0, 3, 3, 7]), "seed": torch.zeros(2, dtype=torch.int64),
              "longest": 4, "tolerance": 0.0}
    found = torch.zeros(2, 7, dtype=torch.int64), torch.zeros(2, 7, dtype=torch.int64)
    # 3 and 4 nodes: two comparisons a node of the sort, two operations of neighbours; 7 floats, 6 + 28 integers
    assert counts.forward("segment_rank", inputs, found) == (7 * 4, 4 * 7 + 8 * 34)
    assert counts.backward("segment_rank", inputs, found) is None
    indices = {"rank": found[0], "order": found[1], "ptr": inputs["ptr"]}
    # x [7, 5], table [4, 3]: 47 floats and the 14 ranks in, 2 x 7 x 8 out; a sum of 42 numbers
    moved = counts.forward("rank_concat", tensors(x=(7, 5), table=(4, 3)) | indices, torch.zeros(2, 7, 8))
    assert moved == (0, 4 * (47 + 112) + 8 * 14)
    assert counts.FLOPS["rank_concat_bwd"](tensors(g=(2, 7, 3)) | indices) == 42
    assert counts.FLOPS["rank_concat_bwd"](tensors(table=(4, 3)) | indices) == 42


def test_counts_of_frames():
    ptr = torch.tensor([0, 3, 3, 7])
    inputs = {"pos": torch.zeros(7, 3), "weight": None, "ptr": ptr, "seed": None}
    found = torch.zeros(3, 3), torch.zeros(3, 3), torch.zeros(3, 3, 3)
    # 18 a point, 18 rotations of 43 and two crossings of axes a set; 21 + 9 + 9 + 27 floats, 4 integers
    assert counts.forward("frames", inputs, found) == (7 * 18 + 3 * (18 * 43 + 18), 4 * 66 + 8 * 4)
    assert counts.backward("frames", inputs, found) is None
    channels = torch.tensor([[0, 0, 0], [1, 1, 0], [4, 2, 1]])
    inputs = tensors(x=(7, 5), v=(3, 9), vectors=(3, 2, 3))
    inputs |= {"ptr": ptr, "channels": channels, "seed": torch.arange(2)}
    out = torch.zeros(2, 7, 14), torch.zeros(2, 3, 3, 3)
    # six frames of 49, a vector 15, a degree 2 89; back: sums of 2 x 7 x 9, frames and turns again, 18 + 118, 120
    assert counts.forward("frame_concat", inputs, out).flops == 6 * (49 + 15 + 89)
    assert counts.backward("frame_concat", inputs, out).flops == 126 + 6 * (49 + 15 + 89 + 18 + 118 + 120)


def test_counts_of_radius_graph():
    molecules = {"pos": torch.zeros(5, 3), "batch": torch.tensor([0, 0, 0, 2, 2]), "cell": None, "r": 2.0}
    edges = torch.zeros(2, 6, dtype=torch.int64), torch.zeros(0, 3, dtype=torch.int32)
    # 9 + 4 pairs of 9 operations; 15 floats, 5 + 12 integers
    assert counts.forward("radius_graph", molecules, edges) == (9 * 13, 4 * 15 + 8 * 17)
    crystal = {"batch": torch.zeros(10, dtype=torch.int64), "cell": 4 * torch.eye(3)[None], "r": 2.0}
    assert counts.FLOPS["radius_graph"](crystal) == int(9 * 100 * 4 / 3 * math.pi * 8 / 64)


def test_counts_of_continuous_filter_convolutions():
    """12 edges that are 6 pairs, 4 channels, 3 hidden, 2 basis functions."""
    inputs = tensors(x=(4, 4), pos=(4, 3), weight1=(3, 2), bias1=(3,), weight2=(4, 3), bias2=(4,), centre=(2,),
                     scale=(2,)) | {"neighbour": torch.zeros(12, dtype=torch.int64), "symmetric": True}
    # distance 9, cutoff 4; basis 10, product 12, activation 18, product 24, biases 7; c S 4; 2 a channel and edge
    assert counts.FLOPS["cfconv"](inputs) == 6 * (13 + 71 + 4) + 96
    # the same again, x_j g_i and W g_i; c m and <S, m>; back 24 + 3; weights 24 + 12 + 7; basis 12 + 14
    again, messages = 6 * (13 + 71 + 4), 4 * 48 + 6 * 12
    assert counts.FLOPS["cfconv_bwd"](inputs | {"needs": [True] * 8}) == again + messages + 6 * (27 + 43 + 26)
    assert counts.FLOPS["cfconv_bwd"](inputs | {"needs": [True] + [False] * 7}) == again + messages
    # taps 20 and 8 a channel; twice E where edges stand alone
    assert counts.FLOPS["spline_conv"](inputs) == 6 * (13 + 20 + 32) + 96
    assert counts.FLOPS["spline_conv"](inputs | {"symmetric": False}) == 12 * (13 + 20 + 32) + 96
    gradients = counts.FLOPS["spline_conv_bwd"](inputs | {"needs": [True] * 3})
    assert gradients == 6 * (13 + 20 + 32) + messages + 6 * 4 * 18
    assert counts.rows(inputs, ("x",)) == 12


def test_counts_of_an_activation_on_the_sphere():
    grid = SphereGrid.of(grids.gauss(4, 6), 3)
    into, back = grid.on(torch.device("cpu"))
    inputs = tensors(x=(5, 32), x2=(5, 32), gate=(5, 2)) | {"into": into, "back": back, "ring": 6, "ir_mul": True,
                                                           "act": "none"}
    out = torch.zeros(5, 32)
    # 10 rows and channels; a transform has 4 rings of 2 * 16, 24 points of 7 + 1 (dense: 768); two there, one back, a
    # product a point, the gate on 16 coefficients
    assert counts.forward("sphere_activation", inputs, out).flops == 10 * (3 * 320 + 24 + 16)
    # the fields and g there, two back; at a point f' v w (2), f w (1), f v w and its sum for the gate (2); gate twice
    flops = 10 * (5 * 320 + 24 * (2 + 1 + 2) + 2 * 16)
    assert counts.backward("sphere_activation", inputs, out).flops == flops
    alone = tensors(x=(5, 16)) | {"x2": None, "gate": None, "into": into, "back": back, "ring": 0, "ir_mul": True,
                                  "act": "silu"}
    assert counts.forward("sphere_activation", alone, torch.zeros(5, 16)).flops == 5 * (2 * 768 + 24 * 5)
