"""What the gates of a trained model say about its data: a verdict per gate, the error, and the theorems' bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..nn.gates import Collector, Seen, recording
from .groups import equivariant_share

if TYPE_CHECKING:
    from .ace import ACE

ROWS = 64  # of a batch, over which the derivative of a branch is averaged
NUDGE = 1e-2  # by which a gate is moved, in units of f_eq over its branch, to see what comes of it at the output


def runner(model: nn.Module, inputs: tuple) -> Callable[[], object]:
    """A function that runs the model: the only input where that is one, otherwise the model on the inputs."""
    if len(inputs) == 1 and callable(inputs[0]) and not isinstance(inputs[0], nn.Module):
        return inputs[0]
    return lambda: model(*inputs)


@torch.no_grad()
def diagnose(ace: ACE, run: Callable[[], object], error: float | None = None) -> dict:
    r"""Verdicts and evidence, as plain numbers and words that JSON takes.

    Theorem 4.2 bounds the equivariance error by the largest gate times constants of the layers, which it does not
    name. Here they are measured on this batch. With n_i = f_neq(x) of gate i, L gates, and the amplification K_i of
    what branch i adds, seen at the output f when the gate is moved a little,

    .. math:: \frac{\|\rho f(x) - f(\rho x)\|}{\|f(x)\|} \le 2 L\, \max_i |\gamma_i| \max_i K_i
              \max_i \frac{\|n_i\|}{\|f(x)\|}, \qquad
              K_i = \frac{\|f_{\gamma + \delta e_i}(x) - f_\gamma(x)\|}{\delta \|n_i\|}

    ("bound"), and, gate by gate before the largest are taken, 2 sum_i |gamma_i| K_i |n_i| / |f| ("bound_by_gate"). Both
    are of first order in the gates, and hold for representations that keep norms.

    Args:
        ace: with its model.
        run: runs the model on a batch and returns its output (a tensor, or a tuple whose first is meant); where it
            returns nothing, amplifications, truncation and bounds are None.
        error: the measured relative equivariance error.

    Returns:
        "step"; "tolerance" and "patience"; "error"; "truncation", |f - f_strict| / |f_strict|, theorem 4.1's left side;
        "bound", "bound_by_gate"; and "gates", for each: "name", "mode", "gamma", "lambda", "u", "ratio"
        (|gamma| |f_neq| / |f_eq|), "branch" (|f_neq| / |f_eq|), "amplification", "share" (of the branch's map that is
        equivariant, from 0 to 1, squared norms; None where no irreps are known), "snapped", "verdict" ("symmetric",
        "broken" or "undecided") and "evidence".

    Numbers that are not finite are None. Waits for the device. Source: Manolache et al. 2025, theorems 4.1 and 4.2;
    Kim et al. 2023 for the share.
    """
    watch, names = ace._watch, ace.names
    values, prices, slacks = (ace._per_gate(x).tolist() for x in (ace.gammas, ace.multipliers, ace.slacks))
    with evaluating(ace.model):
        seen = _seen(watch, run)
        ratios = _per_gate(watch.count, seen, lambda layer, one: one.ratio())
        if not watch.switch:
            watch.note(ace.steps, ratios, [float("nan")] * watch.count)
        branches = _per_gate(watch.count, seen, lambda layer, one: one.size(one.free()) / one.size(one.base))
        shares = _per_gate(watch.count, seen, _share)
        found = _at_the_output(ace, run, seen) if not ace._networks else {}
        ace._guard.own_write()
    gates = []
    amplifications = found.pop("amplifications", [None] * watch.count)
    for i, name in enumerate(names):
        verdict, evidence = watch.verdict(i)
        gates.append({"name": name, "mode": "resilient" if ace._rules.of(i).resilient else "equality",
                      "gamma": values[i], "lambda": prices[i], "u": slacks[i],
                      "ratio": _plain(ratios[i]), "branch": _plain(branches[i]),
                      "amplification": amplifications[i], "share": _plain(shares[i]), "snapped": watch.off[i],
                      "verdict": verdict, "evidence": evidence})
    nothing = {"truncation": None, "bound": None, "bound_by_gate": None}
    return {"step": ace.steps, "tolerance": watch.tolerance, "patience": watch.patience, "error": error,
            **nothing, **found, "gates": gates}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and each module's own mode afterwards."""
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _seen(watch, run: Callable[[], object]) -> list[tuple[nn.Module, int, Seen]]:
    """(layer, place, what was recorded) of every branch in a pass of `run`, those that are switched off included."""
    kept: list[list[Seen]] = [[] for _ in watch.layers]
    records = [Collector(into, _formed) for into in kept]
    with _switched(watch, [False] * watch.count), recording(watch.layers, *records):
        run()
    found = zip(watch.layers, watch.places, kept, strict=True)
    return [(layer, places[one.gate], one) for layer, places, ones in found for one in ones]


def _formed(one: Seen) -> Seen:
    """The same with f_neq(x) formed; not by _replace, which torch.compile of PyTorch 2.11 does not take."""
    value = one.free()
    return Seen(one.gate, one.gamma, one.x, one.base, lambda: value, one.branch, one.size, one.affine)


@contextmanager
def _switched(watch, off: list[bool]) -> Iterator[None]:
    before = watch.now  # not `watch.off`: the coming step may try branches
    watch.set_off(off)
    try:
        yield
    finally:
        watch.set_off(before)


def _per_gate(count: int, seen: list, value: Callable[[nn.Module, Seen], Tensor | float | None]) -> list[float]:
    """The largest of `value(layer, one)` among each gate's branches, NaN where there is none."""
    found: list[list[float]] = [[] for _ in range(count)]
    for layer, place, one in seen:
        number = value(layer, one)
        if number is not None:
            found[place].append(float(number))
    return [max(numbers, default=float("nan")) for numbers in found]


def _share(layer: nn.Module, one: Seen) -> Tensor | float | None:
    """The equivariant share of a branch's map: of its weight, of its mean derivative, or what the irreps alone say."""
    if not hasattr(layer, "gate_irreps"):
        return None
    reads, returns = layer.gate_irreps(one.gate)
    if not any(a.ir == b.ir for a in reads for b in returns):
        return 0.0  # no equivariant map but zero
    if reads.lmax == returns.lmax == 0 and len({ir for _, ir in [*reads, *returns]}) == 1:
        return 1.0  # every map of scalars is one
    if isinstance(one.branch, nn.Linear):
        return equivariant_share(one.branch.weight.double(), returns, reads)
    return None if one.branch is None else equivariant_share(_mean_derivative(one.branch, one.x), returns, reads)


def _mean_derivative(branch: nn.Module, x: Tensor) -> Tensor:
    """[O, I] float64, the mean over rows of x [N, I] of the derivative of branch(x) [N, O]."""
    rows = x[::max(1, len(x) // ROWS)][:ROWS].detach().requires_grad_()
    with torch.enable_grad():
        y = branch(rows)
        one = torch.eye(y.shape[1], dtype=y.dtype, device=y.device)[:, None].expand(-1, len(rows), -1)
        (found,) = torch.autograd.grad(y, rows, one, is_grads_batched=True)
    return found.double().mean(1)


def _at_the_output(ace: ACE, run: Callable[[], object], seen: list) -> dict:
    """What the gates do to the output: truncation, amplifications, bounds; nothing where `run` returns none."""
    watch, gammas = ace._watch, ace._gammas
    plain = _first(run())
    if plain is None or not len(seen):
        return {}
    with _switched(watch, [True] * watch.count):
        strict = _first(run())
    truncation = (plain - strict).norm() / strict.norm()
    sizes = _per_gate(watch.count, seen, lambda layer, one: one.free().norm())
    bases = _per_gate(watch.count, seen, lambda layer, one: one.base.norm())
    amplifications, reach = [], plain.norm().item()
    for i, gamma in enumerate(gammas):
        if not sizes[i] > 0 or gamma.numel() != 1:
            amplifications.append(None)
            continue
        step, before = NUDGE * bases[i] / sizes[i], gamma.clone()
        off = [o and j != i for j, o in enumerate(watch.off)]
        try:
            gamma.add_(step)
            with _switched(watch, off):
                moved = _first(run())
        finally:
            gamma.copy_(before)
        amplifications.append(_plain((moved - plain).norm().item() / (step * sizes[i])))
    known = [(abs(gammas[i].item()), a, sizes[i]) for i, a in enumerate(amplifications) if a is not None]
    bound = by_gate = None
    if known and reach > 0:
        largest = [max(column) for column in zip(*known, strict=True)]
        bound = 2 * len(known) * largest[0] * largest[1] * largest[2] / reach
        by_gate = 2 * sum(g * a * n for g, a, n in known) / reach
    return {"truncation": _plain(truncation.item()), "bound": _plain(bound), "bound_by_gate": _plain(by_gate),
            "amplifications": amplifications}


def _first(output: object) -> Tensor | None:
    """The output in float64, without its graph; the first tensor of several."""
    if isinstance(output, Iterable) and not isinstance(output, Tensor):
        output = next((x for x in output if isinstance(x, Tensor)), None)
    return output.detach().double() if isinstance(output, Tensor) else None


def _plain(value: float | None) -> float | None:
    """None for what JSON has no number for."""
    return value if value is not None and abs(value) < float("inf") else None
