"""dual_update: one launch, each program a block of gammas; arithmetic in float64 registers, which few gammas allow."""

import struct

import torch
from torch import Tensor

from ..triton_common import AotCase, cdiv, launch, tl, triton
from .reference import Rule

BLOCK = 128


@triton.jit
def _direction(g, m, v, c1, c2, eps, ADAM: tl.constexpr):
    return m / c1 / (tl.sqrt(v / c2) + eps) if ADAM else g


@triton.jit
def _number(bits):
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


# The rule's numbers come as the bits of a float64: as constexprs each step of a schedule would compile anew, as floats
# they would arrive rounded to float32. Not specialised for the same reason.
NUMBERS = (*Rule._fields[6:], "scale")


@triton.jit(do_not_specialize=NUMBERS)
def dual_update_fwd_kernel(
    p_gamma, p_grad, p_multiplier, p_slack, p_moments, p_new_gamma, p_new_multiplier, p_new_slack, p_new_moments, n,
    lr: tl.int64, dual_lr: tl.int64, slack_lr: tl.int64, rho: tl.int64, epsilon: tl.int64, augmentation: tl.int64,
    beta1: tl.int64, beta2: tl.int64, eps: tl.int64, dual_eps: tl.int64, scale: tl.int64,
    RESILIENT: tl.constexpr, ADAM: tl.constexpr, DUAL_ADAM: tl.constexpr,
    REPO_RESILIENT: tl.constexpr, BANDED: tl.constexpr, CLAMP: tl.constexpr, BLOCK: tl.constexpr,
):
    o_n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_n = o_n < n
    lr, dual_lr, slack_lr, rho = _number(lr), _number(dual_lr), _number(slack_lr), _number(rho)
    epsilon, augmentation, beta1, beta2 = _number(epsilon), _number(augmentation), _number(beta1), _number(beta2)
    eps, dual_eps, scale = _number(eps), _number(dual_eps), _number(scale)
    b_gamma = tl.load(p_gamma + o_n, mask=m_n, other=0.0).to(tl.float64)
    b_raw = tl.load(p_grad + o_n, mask=m_n, other=0.0)
    b_grad = b_raw.to(tl.float64)
    b_multiplier = tl.load(p_multiplier + o_n, mask=m_n, other=0.0).to(tl.float64)
    b_slack = tl.load(p_slack + o_n, mask=m_n, other=0.0).to(tl.float64)

    if BANDED:
        b_violation = tl.abs(b_gamma) - epsilon
        if RESILIENT:
            b_violation -= b_slack
        b_sign = (b_gamma > 0).to(tl.float64) - (b_gamma < 0).to(tl.float64)
    else:
        b_violation = b_gamma
        b_sign = tl.full([BLOCK], 1.0, tl.float64)
    b_push = b_multiplier * scale + b_violation * (2 * augmentation)
    b_ascent = b_violation
    b_pull = tl.zeros_like(b_slack)
    if REPO_RESILIENT:
        b_pull = b_slack * rho - b_push - b_violation + b_slack
        b_push -= b_slack
        b_ascent -= b_slack
    else:
        if BANDED:
            b_push = tl.where(b_push < 0.0, 0.0, b_push)
        if RESILIENT:
            b_pull = b_slack * rho - b_push
    b_descent = b_grad + b_push * b_sign

    b_m1 = tl.load(p_moments + o_n, mask=m_n, other=0.0).to(tl.float64)
    b_v1 = tl.load(p_moments + n + o_n, mask=m_n, other=0.0).to(tl.float64)
    b_m2 = tl.load(p_moments + 2 * n + o_n, mask=m_n, other=0.0).to(tl.float64)
    b_v2 = tl.load(p_moments + 3 * n + o_n, mask=m_n, other=0.0).to(tl.float64)
    b_m3 = tl.load(p_moments + 4 * n + o_n, mask=m_n, other=0.0).to(tl.float64)
    b_v3 = tl.load(p_moments + 5 * n + o_n, mask=m_n, other=0.0).to(tl.float64)
    b_c1 = tl.load(p_moments + 6 * n + o_n, mask=m_n, other=0.0).to(tl.float64)
    b_c2 = tl.load(p_moments + 7 * n + o_n, mask=m_n, other=0.0).to(tl.float64)
    b_skipped = tl.load(p_moments + 8 * n + o_n, mask=m_n, other=0.0).to(tl.float64)
    n_m1, n_v1 = b_m1 * beta1 + b_descent * (1 - beta1), b_v1 * beta2 + b_descent * b_descent * (1 - beta2)
    n_m2, n_v2 = b_m2 * beta1 + b_pull * (1 - beta1), b_v2 * beta2 + b_pull * b_pull * (1 - beta2)
    n_m3, n_v3 = b_m3 * beta1 - b_ascent * (1 - beta1), b_v3 * beta2 + b_ascent * b_ascent * (1 - beta2)
    n_c1, n_c2 = b_c1 * beta1 + (1 - beta1), b_c2 * beta2 + (1 - beta2)

    n_gamma = b_gamma - _direction(b_descent, n_m1, n_v1, n_c1, n_c2, eps, ADAM) * lr
    n_slack = b_slack
    if RESILIENT:
        n_slack = b_slack - _direction(b_pull, n_m2, n_v2, n_c1, n_c2, eps, ADAM) * slack_lr
    n_multiplier = b_multiplier - _direction(-b_ascent, n_m3, n_v3, n_c1, n_c2, dual_eps, DUAL_ADAM) * dual_lr
    if CLAMP:
        n_multiplier = tl.where(n_multiplier < 0.0, 0.0, n_multiplier)

    # False for NaN, for infinity, and for what cannot be squared.
    b_sound = b_raw * b_raw < float("inf")
    tl.store(p_new_gamma + o_n, tl.where(b_sound, n_gamma, b_gamma), mask=m_n)
    tl.store(p_new_multiplier + o_n, tl.where(b_sound, n_multiplier, b_multiplier), mask=m_n)
    tl.store(p_new_slack + o_n, tl.where(b_sound, n_slack, b_slack), mask=m_n)
    tl.store(p_new_moments + o_n, tl.where(b_sound, n_m1, b_m1), mask=m_n)
    tl.store(p_new_moments + n + o_n, tl.where(b_sound, n_v1, b_v1), mask=m_n)
    tl.store(p_new_moments + 2 * n + o_n, tl.where(b_sound, n_m2, b_m2), mask=m_n)
    tl.store(p_new_moments + 3 * n + o_n, tl.where(b_sound, n_v2, b_v2), mask=m_n)
    tl.store(p_new_moments + 4 * n + o_n, tl.where(b_sound, n_m3, b_m3), mask=m_n)
    tl.store(p_new_moments + 5 * n + o_n, tl.where(b_sound, n_v3, b_v3), mask=m_n)
    tl.store(p_new_moments + 6 * n + o_n, tl.where(b_sound, n_c1, b_c1), mask=m_n)
    tl.store(p_new_moments + 7 * n + o_n, tl.where(b_sound, n_c2, b_c2), mask=m_n)
    tl.store(p_new_moments + 8 * n + o_n, tl.where(b_sound, b_skipped, b_skipped + 1.0), mask=m_n)


def forward(gamma: Tensor, grad: Tensor, multiplier: Tensor, slack: Tensor, moments: Tensor, *values):
    """As reference.forward: [n], [n], [n], [n], [9, n] -> [n], [n], [n], [9, n]."""
    rule = Rule(*values)
    n = gamma.shape[0]
    inputs = [x.contiguous() for x in (gamma, grad, multiplier, slack, moments)]
    outputs = [torch.empty_like(x) for x in (inputs[0], inputs[2], inputs[3], inputs[4])]
    banded = rule.resilient or rule.epsilon > 0
    scale = 1 / n if rule.repo_scale and n else 1.0
    numbers = struct.unpack(f"{len(NUMBERS)}q", struct.pack(f"{len(NUMBERS)}d", *rule[6:], scale))
    launch(dual_update_fwd_kernel, (cdiv(n, BLOCK),), *inputs, *outputs, n, *numbers,
           RESILIENT=rule.resilient, ADAM=rule.adam, DUAL_ADAM=rule.dual_adam, REPO_RESILIENT=rule.repo_resilient,
           BANDED=banded, CLAMP=banded or rule.repo_clamp, BLOCK=BLOCK, num_warps=4, device=gamma.device)
    return tuple(outputs)


def _aot(dtype: str, rule: Rule) -> AotCase:
    state = ("gamma", "multiplier", "slack", "moments")
    names = (*state, "grad", *(f"new_{name}" for name in state))
    signature = {f"p_{name}": f"*{dtype}" for name in names} | {"n": "i32"}
    signature |= dict.fromkeys(NUMBERS, "i64")
    banded = rule.resilient or rule.epsilon > 0
    return AotCase(dual_update_fwd_kernel, signature, {
        "RESILIENT": rule.resilient, "ADAM": rule.adam, "DUAL_ADAM": rule.dual_adam,
        "REPO_RESILIENT": rule.repo_resilient, "BANDED": banded, "CLAMP": banded or rule.repo_clamp, "BLOCK": BLOCK})


AOT = [_aot(dtype, rule) for dtype in ("fp32", "fp64")
       for rule in (Rule(), Rule(resilient=True, adam=True, dual_adam=True))]
