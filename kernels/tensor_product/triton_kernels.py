"""tensor_product in Triton: every sum over channels is a matrix product, every output is written by one program."""

import torch
from torch import Tensor

from ..triton_common import AotCase, accumulator, allow_tf32, cdiv, dot, launch, next_power_of_2, sigmoid, tl, triton
from .triton_tables import JOB, ROW, dense_plan, gate_plan, live_paths, product_plan, split_slots, weight_plan, x2_plan

# Blocks of dense elements and of non-zeros in tensor_product_dense_kernel.
DENSE = (64, 32)
# Rows and columns of the gate's kernels.
GATE = {"BZ": 16, "BC": 64}
ROW_WIDTH: tl.constexpr = tl.constexpr(ROW)
JOB_WIDTH: tl.constexpr = tl.constexpr(JOB)


@triton.jit
def tensor_product_dense_kernel(cg_index, cg_value, blocks, dense, BE: tl.constexpr, BN: tl.constexpr):
    """dense[path, i, k, j] from the non-zeros; a gather over all of a path's, so that zeros are written, too."""
    p_block = blocks + tl.program_id(0).to(tl.int64) * JOB_WIDTH
    offset, start, stop = tl.load(p_block), tl.load(p_block + 1), tl.load(p_block + 2)
    d2, d3, first, size = tl.load(p_block + 3), tl.load(p_block + 4), tl.load(p_block + 5), tl.load(p_block + 6)
    o_e = first + tl.arange(0, BE)
    b_acc = tl.full([BE], 0.0, tl.float64)
    for n0 in range(start, stop, BN):
        o_n = n0 + tl.arange(0, BN)
        m_n = o_n < stop
        b_i = tl.load(cg_index + o_n * 3, mask=m_n, other=0)
        b_j = tl.load(cg_index + o_n * 3 + 1, mask=m_n, other=0)
        b_k = tl.load(cg_index + o_n * 3 + 2, mask=m_n, other=0)
        b_c = tl.load(cg_value + o_n, mask=m_n, other=0.0)
        hit = ((b_i * d3 + b_k) * d2 + b_j)[None, :] == o_e[:, None]
        b_acc += tl.sum(tl.where(hit, b_c[None, :], 0.0), 1)
    tl.store(dense + offset + o_e, b_acc.to(dense.dtype.element_ty), mask=o_e < size)


@triton.jit
def _mixed(x, dim_x, p_row, p_x2, dense, k, o_z, m_z, o_a, m_a, BZ: tl.constexpr, BA: tl.constexpr):
    """t[z, a] = sum over i, j of C[i, j, k] x[z, a, i] x2[z, j] for one path, one component k."""
    offset, d, d2 = tl.load(p_row), tl.load(p_row + 2), tl.load(p_row + 5)
    p_c = dense + tl.load(p_row + 10) + k * tl.load(p_row + 12)
    stride = tl.load(p_row + 11)
    p_x = x + o_z[:, None] * dim_x + offset + o_a[None, :] * d
    m_x = m_z[:, None] & m_a[None, :]
    b_t = tl.full([BZ, BA], 0.0, x.dtype.element_ty)
    for i in range(0, d):
        b_s = tl.full([BZ, 1], 0.0, x.dtype.element_ty)
        hits = 0
        # Most coefficients are zero: with l2 = 0 all but one i for each k.
        for j in range(0, d2):
            b_c = tl.load(p_c + i * stride + j)
            if b_c != 0.0:
                b_s += b_c * tl.load(p_x2 + j, mask=m_z[:, None], other=0.0)
                hits += 1
        if hits > 0:
            b_t += tl.load(p_x + i, mask=m_x, other=0.0) * b_s
    return b_t


@triton.jit
def tensor_product_fwd_kernel(
    x, x2, weight, bias, dense, jobs, rows, out, z, dim_x, dim_2, dim_out, n_jobs,
    HAS_BIAS: tl.constexpr, BZ: tl.constexpr, BA: tl.constexpr, BO: tl.constexpr, ACC: tl.constexpr,
    ALLOW_TF32: tl.constexpr,
):  # fmt: skip
    """One component of a block of output channels, for a block of rows; with x = g the gradient of x1."""
    pid = tl.program_id(0).to(tl.int64)
    p_job = jobs + (pid % n_jobs) * JOB_WIDTH
    offset, mul, d, k = tl.load(p_job), tl.load(p_job + 1), tl.load(p_job + 2), tl.load(p_job + 3)
    first_row, last_row, o_bias = tl.load(p_job + 5), tl.load(p_job + 6), tl.load(p_job + 7)
    o_z = (pid // n_jobs) * BZ + tl.arange(0, BZ)
    o_o = tl.load(p_job + 4) + tl.arange(0, BO)
    m_z, m_o = o_z < z, o_o < mul
    b_acc = tl.full([BZ, BO], 0.0, ACC)
    for row in range(first_row, last_row):
        p_row = rows + row * ROW_WIDTH
        mul_a, o2, mul_2, d2 = tl.load(p_row + 1), tl.load(p_row + 3), tl.load(p_row + 4), tl.load(p_row + 5)
        stride_a, stride_v, stride_o = tl.load(p_row + 7), tl.load(p_row + 8), tl.load(p_row + 9)
        for v in range(0, mul_2):
            p_x2 = x2 + o_z[:, None] * dim_2 + o2 + v * d2
            p_w = weight + tl.load(p_row + 6) + v * stride_v + o_o[None, :] * stride_o
            for a0 in range(0, mul_a, BA):
                o_a = a0 + tl.arange(0, BA)
                m_a = o_a < mul_a
                b_t = _mixed(x, dim_x, p_row, p_x2, dense, k, o_z, m_z, o_a, m_a, BZ, BA)
                b_w = tl.load(p_w + o_a[:, None] * stride_a, mask=m_a[:, None] & m_o[None, :], other=0.0)
                b_acc = dot(b_t, b_w, b_acc, ALLOW_TF32)
    if HAS_BIAS:
        if o_bias >= 0:
            b_acc += tl.load(bias + o_bias + o_o, mask=m_o, other=0.0)[None, :]
    p_out = out + o_z[:, None] * dim_out + offset + o_o[None, :] * d + k
    tl.store(p_out, b_acc, mask=m_z[:, None] & m_o[None, :])


@triton.jit
def tensor_product_bwd_kernel_weight(
    g, x, x2, dense, jobs, rows, out, z, dim_g, dim_x, dim_2, n_jobs, numel, rows_each,
    BZ: tl.constexpr, BA: tl.constexpr, BO: tl.constexpr, ACC: tl.constexpr, ALLOW_TF32: tl.constexpr,
):  # fmt: skip
    """One block of one path's weight gradient over one stretch of rows; the stretches are summed afterwards."""
    pid = tl.program_id(0).to(tl.int64)
    p_job, stretch = jobs + (pid % n_jobs) * JOB_WIDTH, pid // n_jobs
    p_row, v = rows + tl.load(p_job) * ROW_WIDTH, tl.load(p_job + 1)
    o_a = tl.load(p_job + 2) + tl.arange(0, BA)
    o_o = tl.load(p_job + 3) + tl.arange(0, BO)
    offset, mul, d = tl.load(p_job + 4), tl.load(p_job + 5), tl.load(p_job + 6)  # of the output's slice in g
    mul_a, o2, d2 = tl.load(p_row + 1), tl.load(p_row + 3), tl.load(p_row + 5)
    m_a, m_o = o_a < mul_a, o_o < mul
    b_acc = tl.full([BA, BO], 0.0, ACC)
    for z0 in range(stretch * rows_each, tl.minimum((stretch + 1) * rows_each, z), BZ):
        o_z = z0 + tl.arange(0, BZ)
        m_z = o_z < z
        p_x2 = x2 + o_z[:, None] * dim_2 + o2 + v * d2
        p_g = g + o_z[:, None] * dim_g + offset + o_o[None, :] * d
        for k in range(0, d):
            b_t = _mixed(x, dim_x, p_row, p_x2, dense, k, o_z, m_z, o_a, m_a, BZ, BA)
            b_g = tl.load(p_g + k, mask=m_z[:, None] & m_o[None, :], other=0.0)
            b_acc = dot(tl.trans(b_t), b_g, b_acc, ALLOW_TF32)
    p_out = out + stretch * numel + tl.load(p_row + 6) + v * tl.load(p_row + 8)
    p_out += o_a[:, None] * tl.load(p_row + 7) + o_o[None, :] * tl.load(p_row + 9)
    tl.store(p_out, b_acc, mask=m_a[:, None] & m_o[None, :])


@triton.jit
def tensor_product_bwd_kernel_x2(
    g, x, weight, dense, jobs, rows, out, z, dim_g, dim_x, dim_2, n_jobs,
    BZ: tl.constexpr, BA: tl.constexpr, BO: tl.constexpr, BJ: tl.constexpr, ACC: tl.constexpr,
    ALLOW_TF32: tl.constexpr,
):  # fmt: skip
    """All components of one channel of x2 for a block of rows."""
    pid = tl.program_id(0).to(tl.int64)
    p_job = jobs + (pid % n_jobs) * JOB_WIDTH
    o2, d2, v = tl.load(p_job), tl.load(p_job + 1), tl.load(p_job + 2)
    o_z, o_j = (pid // n_jobs) * BZ + tl.arange(0, BZ), tl.arange(0, BJ)
    m_z, m_j = o_z < z, o_j < d2
    b_acc = tl.full([BZ, BJ], 0.0, ACC)
    for row in range(tl.load(p_job + 3), tl.load(p_job + 4)):
        p_row = rows + row * (ROW_WIDTH + 3)
        mul_a, d_a = tl.load(p_row + 1), tl.load(p_row + 2)
        offset, mul_o, d_o = tl.load(p_row + 13), tl.load(p_row + 14), tl.load(p_row + 15)
        stride_a, stride_o = tl.load(p_row + 7), tl.load(p_row + 9)
        p_c = dense + tl.load(p_row + 10) + o_j
        for i in range(0, d_a):
            p_x = x + o_z[:, None] * dim_x + tl.load(p_row) + i
            for o0 in range(0, mul_o, BO):
                o_o = o0 + tl.arange(0, BO)
                m_o = o_o < mul_o
                b_y = tl.full([BZ, BO], 0.0, ACC)  # y[z, w] = sum over u of x[z, u, i] W[u, v, w]
                p_w = weight + tl.load(p_row + 6) + v * tl.load(p_row + 8) + o_o[None, :] * stride_o
                for a0 in range(0, mul_a, BA):
                    o_a = a0 + tl.arange(0, BA)
                    m_a = o_a < mul_a
                    b_x = tl.load(p_x + o_a[None, :] * d_a, mask=m_z[:, None] & m_a[None, :], other=0.0)
                    b_w = tl.load(p_w + o_a[:, None] * stride_a, mask=m_a[:, None] & m_o[None, :], other=0.0)
                    b_y = dot(b_x, b_w, b_y, ALLOW_TF32)
                p_g = g + o_z[:, None] * dim_g + offset + o_o[None, :] * d_o
                for k in range(0, d_o):
                    b_c = tl.load(p_c + i * tl.load(p_row + 11) + k * tl.load(p_row + 12), mask=m_j, other=0.0)
                    b_g = tl.load(p_g + k, mask=m_z[:, None] & m_o[None, :], other=0.0)
                    b_acc += tl.sum(b_y * b_g, 1)[:, None] * b_c[None, :]
    p_out = out + o_z[:, None] * dim_2 + o2 + v * d2 + o_j[None, :]
    tl.store(p_out, b_acc, mask=m_z[:, None] & m_j[None, :])


@triton.jit
def gate_fwd_kernel(pre, columns, out, z, dim_pre, dim_out, SCALAR_GAIN: tl.constexpr, GATE_GAIN: tl.constexpr,
                    BZ: tl.constexpr, BC: tl.constexpr):
    """Each output column is its own column of pre times a sigmoid: its own (SiLU) or its channel's gate."""
    o_z = tl.program_id(0).to(tl.int64) * BZ + tl.arange(0, BZ)[:, None]
    o_c = tl.program_id(1).to(tl.int64) * BC + tl.arange(0, BC)
    mask = (o_z < z) & (o_c < dim_out)[None, :]
    b_from = tl.load(columns + o_c * 2, mask=o_c < dim_out, other=0)[None, :]
    b_gate = tl.load(columns + o_c * 2 + 1, mask=o_c < dim_out, other=0)[None, :]
    b_x = tl.load(pre + o_z * dim_pre + b_from, mask=mask, other=0.0)
    b_s = sigmoid(tl.load(pre + o_z * dim_pre + b_gate, mask=mask, other=0.0))
    b_y = b_x * b_s
    # The gains are constants of the kernel, because a float argument arrives as float32.
    b_y = tl.where(b_from == b_gate, b_y * SCALAR_GAIN, b_y * GATE_GAIN)
    tl.store(out + o_z * dim_out + o_c[None, :], b_y, mask=mask)


@triton.jit
def gate_bwd_kernel(g, pre, columns, out, z, dim_pre, dim_out, SCALAR_GAIN: tl.constexpr, GATE_GAIN: tl.constexpr,
                    BZ: tl.constexpr, BC: tl.constexpr):
    """Gradient of pre, column by column; a gate's sums over the components of its channel."""
    o_z = tl.program_id(0).to(tl.int64) * BZ + tl.arange(0, BZ)[:, None]
    o_c = tl.program_id(1).to(tl.int64) * BC + tl.arange(0, BC)
    m_c = o_c < dim_pre
    p_c = columns + o_c * 4
    b_g_column = tl.load(p_c, mask=m_c, other=0)[None, :]  # of g: its own, for a gate the first of its channel
    b_gate = tl.load(p_c + 1, mask=m_c, other=0)[None, :]  # of pre: whose sigmoid
    b_mate = tl.load(p_c + 2, mask=m_c, other=0)[None, :]  # of pre: what is gated
    b_d = tl.load(p_c + 3, mask=m_c, other=0)  # components summed; 0 for what is gated
    m = (o_z < z) & m_c[None, :]
    b_s = sigmoid(tl.load(pre + o_z * dim_pre + b_gate, mask=m, other=0.0))
    b_sum = tl.full([BZ, BC], 0.0, b_s.dtype)  # of g times what is gated
    for c in range(0, tl.max(b_d, 0)):
        m_d = m & (c < b_d)[None, :]
        b_g = tl.load(g + o_z * dim_out + b_g_column + c, mask=m_d, other=0.0)
        b_sum += b_g * tl.load(pre + o_z * dim_pre + b_mate + c, mask=m_d, other=0.0)
    b_g = tl.load(g + o_z * dim_out + b_g_column, mask=m, other=0.0)
    b_gate_grad = b_sum * b_s * (1.0 - b_s)
    b_scalar = (b_g * b_s + b_gate_grad) * SCALAR_GAIN
    b_other = tl.where((b_d > 0)[None, :], b_gate_grad, b_g * b_s) * GATE_GAIN
    tl.store(out + o_z * dim_pre + o_c[None, :], tl.where(b_mate == b_gate, b_scalar, b_other), mask=m)


def _dense(cg_index: Tensor, cg_value: Tensor, paths: tuple, like: Tensor) -> Tensor:
    plan = dense_plan(paths, DENSE[0], like.device)
    dense = like.new_empty(max(plan.written, 1))
    launch(tensor_product_dense_kernel, (plan.n_jobs,), cg_index.contiguous(), cg_value.contiguous(), plan.jobs, dense,
           BE=DENSE[0], BN=DENSE[1], device=like.device)
    return dense


def _block(n: int, top: int) -> int:
    return min(top, max(16, next_power_of_2(n)))


def _options(paths: tuple, like: Tensor, forward: bool = True) -> dict:
    """Block sizes: small multiplicities take small blocks, float64 half of float32's."""
    found = [path for path, _ in live_paths(paths)]
    first = max((p.U if forward else p.W for p in found), default=1)
    last = max((p.W if forward else p.U for p in found), default=1)
    half = 2 if like.dtype == torch.float64 else 1
    return {
        # Interpreted, a program costs the same whatever its size.
        "BZ": 32 if like.is_cuda else 256, "BA": _block(first, 32 // half), "BO": _block(last, 64 // half),
        "ACC": accumulator(like.dtype), "ALLOW_TF32": allow_tf32(like), "num_warps": 4, "maxnreg": 255,
    }


def _empty(x: Tensor, complete: bool, *shape: int) -> Tensor:
    return x.new_empty(shape) if complete else x.new_zeros(shape)


def _product(x, x2, weight, bias, dense, dim_out: int, paths: tuple, bias_slots: tuple, forward: bool) -> Tensor:
    """The product (forward), or with x = g its gradient with respect to x1."""
    options = _options(paths, x, forward)
    plan = product_plan(paths, bias_slots, forward, options["BO"], x.device)
    z = x.shape[0]
    out = _empty(x, plan.written == dim_out, z, dim_out)
    launch(tensor_product_fwd_kernel, (cdiv(z, options["BZ"]) * plan.n_jobs,), x, x2, weight,
           weight if bias is None else bias, dense, plan.jobs, plan.rows, out, z, x.shape[1], x2.shape[1], dim_out,
           plan.n_jobs, HAS_BIAS=bias is not None, device=x.device, **options)
    return out


def _weight_gradient(g, x1, x2, weight, dense, paths: tuple) -> Tensor:
    options = _options(paths, x1)
    plan = weight_plan(paths, (options["BA"], options["BO"]), x1.device)
    z, numel = x1.shape[0], weight.shape[0]
    # A fixed split of the rows, so that the result does not depend on the GPU; 256 rows at least, 32 parts at most.
    rows_each = max(256, cdiv(cdiv(z, 32), options["BZ"]) * options["BZ"])
    parts = max(1, cdiv(z, rows_each))
    out = _empty(x1, plan.written == numel, parts, numel)
    launch(tensor_product_bwd_kernel_weight, (parts * plan.n_jobs,), g, x1, x2, dense, plan.jobs, plan.rows, out, z,
           g.shape[1], x1.shape[1], x2.shape[1], plan.n_jobs, numel, rows_each, device=x1.device, **options)
    return out.sum(0) if parts > 1 else out[0]


def _x2_gradient(g, x1, x2, weight, dense, paths: tuple) -> Tensor:
    plan = x2_plan(paths, x1.device)
    options = _options(paths, x1)
    # With larger tiles or fewer warps the kernel spills.
    options |= {"BA": 16, "BO": min(32, options["BO"]), "num_warps": 8}
    options["BJ"] = next_power_of_2(max((path.d2 for path, _ in live_paths(paths)), default=1))
    z = x1.shape[0]
    out = _empty(x1, plan.written == x2.shape[1], z, x2.shape[1])
    launch(tensor_product_bwd_kernel_x2, (cdiv(z, options["BZ"]) * plan.n_jobs,), g, x1, weight, dense, plan.jobs,
           plan.rows, out, z, g.shape[1], x1.shape[1], x2.shape[1], plan.n_jobs, device=x1.device, **options)
    return out


def forward(x1, x2, weight, bias, cg_index, cg_value, dims, paths, bias_slots) -> Tensor:
    """As reference.forward."""
    paths, bias_slots = tuple(paths), tuple(bias_slots)
    x1, x2, weight = x1.contiguous(), x2.contiguous(), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    dense = _dense(cg_index, cg_value, paths, x1)
    out = _product(x1, x2, weight, bias, dense, dims[2], paths, bias_slots, True)
    if bias is not None:
        reached = {(p.o3, p.W, p.d3) for p, _ in live_paths(paths)}
        for offset, n, start in split_slots(bias_slots):
            if (offset, n, 1) not in reached:
                out[:, offset:offset + n] += bias[start:start + n]
    return out


def backward(g, x1, x2, weight, cg_index, cg_value, dims, paths, bias_slots, needs) -> tuple[Tensor, ...]:
    """As reference.backward."""
    paths, bias_slots = tuple(paths), tuple(bias_slots)
    g, x1, x2, weight = g.contiguous(), x1.contiguous(), x2.contiguous(), weight.contiguous()
    dense = _dense(cg_index, cg_value, paths, g) if any(needs[:3]) else None
    found = [g.new_empty(0) for _ in range(4)]
    if needs[0]:
        found[0] = _product(g, x2, weight, None, dense, dims[0], paths, (), False)
    if needs[1]:
        found[1] = _x2_gradient(g, x1, x2, weight, dense, paths)
    if needs[2]:
        found[2] = _weight_gradient(g, x1, x2, weight, dense, paths)
    if needs[3]:
        found[3] = torch.cat([g.new_empty(0), *(g[:, o:o + n].sum(0) for o, n, _ in split_slots(bias_slots))])
    return tuple(found)


def _gate(kernel, tensors, columns, out, layout, gains) -> Tensor:
    pre = tensors[-1]
    dim_pre = pre.shape[1]
    launch(kernel, (cdiv(pre.shape[0], GATE["BZ"]), cdiv(out.shape[1], GATE["BC"])), *tensors, columns, out,
           pre.shape[0], dim_pre, dim_pre - layout[1], SCALAR_GAIN=gains[0], GATE_GAIN=gains[1], device=pre.device,
           **GATE)
    return out


def gate(pre, layout, scalar_gain, gate_gain, ir_mul=False) -> Tensor:
    """As reference.gate, in mul_ir."""
    pre = pre.contiguous()
    out = pre.new_empty(pre.shape[0], pre.shape[1] - layout[1])
    columns = gate_plan(tuple(layout), pre.device)[0]
    return _gate(gate_fwd_kernel, (pre,), columns, out, layout, (scalar_gain, gate_gain))


def gate_backward(g, pre, layout, scalar_gain, gate_gain, ir_mul=False) -> Tensor:
    """As reference.gate_backward, in mul_ir."""
    g, pre = g.contiguous(), pre.contiguous()
    columns = gate_plan(tuple(layout), pre.device)[1]
    return _gate(gate_bwd_kernel, (g, pre), columns, torch.empty_like(pre), layout, (scalar_gain, gate_gain))


def gated_forward(x1, x2, weight, bias, cg_index, cg_value, dims, paths, bias_slots, layout, scalar_gain,
                  gate_gain) -> tuple[Tensor, Tensor]:
    """As reference.gated_forward."""
    pre = forward(x1, x2, weight, bias, cg_index, cg_value, dims, paths, bias_slots)
    return gate(pre, layout, scalar_gain, gate_gain), pre


def gated_backward(g, pre, x1, x2, weight, cg_index, cg_value, dims, paths, bias_slots, layout, scalar_gain, gate_gain,
                   needs) -> tuple[Tensor, ...]:
    """As reference.gated_backward."""
    g_pre = gate_backward(g, pre, layout, scalar_gain, gate_gain)
    return backward(g_pre, x1, x2, weight, cg_index, cg_value, dims, paths, bias_slots, needs)


def _aot(dtype: str) -> list[AotCase]:
    """Every kernel with the blocks of 32 or more channels; the gains are e3nn's."""
    pointer, half = f"*{dtype}", 2 if dtype == "fp64" else 1
    tables = {"dense": pointer, "jobs": "*i64", "rows": "*i64", "out": pointer}

    def types(floats: str, ints: str, rest: dict) -> dict:
        return dict.fromkeys(floats.split(), pointer) | rest | dict.fromkeys(ints.split(), "i32")

    acc = tl.float64 if dtype == "fp64" else tl.float32
    blocks = {"BZ": 32, "BA": 32 // half, "BO": 64 // half, "ACC": acc, "ALLOW_TF32": False}
    gate = {"SCALAR_GAIN": 1.679, "GATE_GAIN": 1.846, **GATE}
    gated = {"columns": "*i64", "out": pointer}
    coefficients = {"cg_index": "*i64", "cg_value": "*fp64", "blocks": "*i64", "dense": pointer}
    return [
        AotCase(tensor_product_dense_kernel, coefficients, {"BE": DENSE[0], "BN": DENSE[1]}),
        AotCase(tensor_product_fwd_kernel, types("x x2 weight bias", "z dim_x dim_2 dim_out n_jobs", tables),
                {"HAS_BIAS": True} | blocks, maxnreg=255),
        AotCase(tensor_product_bwd_kernel_weight,
                types("g x x2", "z dim_g dim_x dim_2 n_jobs numel rows_each", tables), blocks, maxnreg=255),
        AotCase(tensor_product_bwd_kernel_x2, types("g x weight", "z dim_g dim_x dim_2 n_jobs", tables),
                blocks | {"BA": 16, "BO": 32, "BJ": 16}, num_warps=8, maxnreg=255),
        AotCase(gate_fwd_kernel, types("pre", "z dim_pre dim_out", gated), gate),
        AotCase(gate_bwd_kernel, types("g pre", "z dim_pre dim_out", gated), gate),
    ]


AOT = _aot("fp32") + _aot("fp64")
