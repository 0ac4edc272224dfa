"""Run by test_distributed.py: two gloo processes on the CPU against one that has all rows."""

import copy
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from test_affine_chain import chain, close, folded, plain, points
from torch import multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from ace_fast import ACE
from ace_fast.models import SchNet
from ace_fast.nn import VNBatchNorm, VNLinearLeakyReLU, affine_chain, moments, moments_of_all
from ace_fast.nn.sync_norm import synchronise

SHARES = {"uneven": 15, "no_rows": 0}  # of 40 rows, what the first process has
synced = nn.SyncBatchNorm.convert_sync_batchnorm


def mine(x, rank, share):
    return (x[:share], x[share:])[rank]


def total(x):
    """The sum over processes."""
    x = x.clone()
    dist.all_reduce(x)
    return x


def derivatives(outputs, leaves):
    """First derivatives of a loss, and those of the square of its gradient in the first leaf."""
    loss = sum((p * (1 + i)).sin().sum() + p.square().sum() for i, p in enumerate(outputs))
    first = torch.autograd.grad(loss, leaves, create_graph=True)
    return [*first, *torch.autograd.grad(first[0].square().sum(), leaves, materialize_grads=True)]


def check_chain(rank, share):
    """Values, first and second derivatives, running statistics; twice, and evaluation afterwards."""
    gold, model = chain(blocks=2), synced(chain(blocks=2))
    for seed in (2, 3):
        x = points(seed=seed).requires_grad_()
        own = mine(x.detach(), rank, share).clone().requires_grad_()
        outputs, found = plain(gold, x), folded(model, own)
        for p, q in zip(outputs, found, strict=True):
            close(q, mine(p, rank, share))
        wanted = derivatives(outputs, [x, *gold.parameters()])
        got = derivatives(found, [own, *model.parameters()])
        half = len(got) // 2
        for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
            scale = max(w.abs().max() for w in wanted[half * (i >= half):][:half])
            a, b = (a, mine(b, rank, share)) if i % half == 0 else (total(a), b)
            assert not b.numel() or (a - b).abs().max() <= 1e-11 * scale, i
        for a, b in zip(model.buffers(), gold.buffers(), strict=True):
            close(a, b)
    close(folded(model.eval(), own)[1], mine(plain(gold.eval(), x)[1], rank, share))


def check_moments(rank):
    """Far from the origin nothing cancels."""
    x = points() + 1e4
    whole, found = moments(x), moments_of_all(moments(mine(x, rank, 15)))
    assert found.count == 40
    close(found.mean, whole.mean)
    close(found.covariance, whole.covariance)


def check_norms_of_one_process(rank):
    """BatchNorm1d sees its own rows; with norms of both kinds nobody could say which rows."""
    x = mine(points(), rank, 15)
    gold = plain(chain(), x)
    for p, q in zip(folded(chain(), x), gold, strict=True):
        close(p, q)
    model = chain()
    model["blocks"][1] = synced(model["blocks"][1])
    try:
        affine_chain(x, model["first"], model["blocks"])
    except ValueError as error:
        assert "blocks must have norms that take the statistics of the same processes, got ['Ba" in str(error)
    else:
        raise AssertionError("no error")


def molecules():
    return torch.randint(1, 9, (12,)), torch.randn(12, 3), torch.arange(4).repeat_interleave(3)


def check_schnet(rank):
    """A relaxed model after convert_sync_batchnorm: outputs, summed gradients and buffers of the whole batch.

    Without DistributedDataParallel, which takes SyncBatchNorm on GPUs alone.
    """
    torch.manual_seed(0)
    gold = SchNet(8, 6, 2, 7, 3.0, relaxed=True)
    model = synced(copy.deepcopy(gold))
    z, pos, batch = molecules()
    whole = gold(z, pos, batch)
    out = model(*(mine(t, rank, 6) for t in (z, pos)), mine(batch, rank, 6) - 2 * rank)
    close(out, mine(whole, rank, 2))
    whole.square().sum().backward()
    out.square().sum().backward()
    for (name, a), b in zip(model.named_parameters(), gold.parameters(), strict=True):
        assert (total(a.grad) - b.grad).abs().max() <= 1e-11 * max(1, b.grad.abs().max()), name
    for a, b in zip(model.buffers(), gold.buffers(), strict=True):
        close(a, b)


def check_batch_norms(rank):
    """Norms of vectors, at nodes and on edges, and torch's own, on the CPU: outputs, gradients, running statistics."""
    torch.manual_seed(0)
    x = torch.randn(5, 4, 3, 6)
    for make in (lambda: VNBatchNorm(4, 4), lambda: VNLinearLeakyReLU(4, 3, dim=4),
                 lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(72)), lambda: nn.BatchNorm2d(4)):
        torch.manual_seed(1)
        gold = make()
        model = synchronise(copy.deepcopy(gold))
        for _ in range(2):
            whole, out = gold(x), model(mine(x, rank, 2))
            close(out, mine(whole, rank, 2))
        (whole * x.flatten(1)[:, :1].view(-1, *[1] * (whole.dim() - 1))).sin().sum().backward()
        own = mine(x, rank, 2)
        (out * own.flatten(1)[:, :1].view(-1, *[1] * (out.dim() - 1))).sin().sum().backward()
        for (name, a), b in zip(model.named_parameters(), gold.parameters(), strict=True):
            assert (total(a.grad) - b.grad).abs().max() <= 1e-11 * max(1, b.grad.abs().max()), name
        for a, b in zip(model.buffers(), gold.buffers(), strict=True):
            close(a, b)
        close(model.eval()(own), mine(gold.eval()(x), rank, 2))


def check_data_parallel(rank):
    """BatchNorm1d under DistributedDataParallel: own statistics, mean gradients; networks' gates, ACE's multipliers."""
    torch.manual_seed(0)
    gold = [SchNet(8, 6, 2, 7, 3.0, relaxed=True, gammas="nn")]
    gold.append(copy.deepcopy(gold[0]))
    model = DistributedDataParallel(copy.deepcopy(gold[0]))
    ace, (z, pos, batch) = ACE(model.module, dual_lr=0.5), molecules()
    ace.multipliers = torch.tensor([0.3, 0.4])
    norms = []
    for i, other in enumerate(gold):
        out = other(z[6 * i:6 * i + 6], pos[6 * i:6 * i + 6], batch[:6])
        norms.append(torch.stack(other.gate_norms))
        ((out.square().sum() + (norms[i] * ace.multipliers).sum()) / 2).backward()
    out = model(mine(z, rank, 6), mine(pos, rank, 6), batch[:6])
    (out.square().sum() + ace.penalty()).backward()
    for (name, a), *b in zip(model.module.named_parameters(), *(other.parameters() for other in gold), strict=True):
        wanted = b[0].grad + b[1].grad
        assert (a.grad - wanted).abs().max() <= 1e-11 * max(1, wanted.abs().max()), name
    for a, b in zip(model.module.buffers(), gold[rank].buffers(), strict=True):
        close(a, b)
    ace.step()
    close(ace.gammas, sum(norms).detach() / 2)
    close(ace.multipliers, torch.tensor([0.3, 0.4]) + 0.5 * ace.gammas)


def check_switched_branches(rank):
    """Branches switched off under DistributedDataParallel: no parameter is missed, all decide and stay alike."""
    torch.manual_seed(0)
    net = SchNet(8, 6, 2, 7, 3.0, relaxed=True)
    model, (z, pos, batch) = DistributedDataParallel(net), molecules()
    own = mine(z, rank, 6), mine(pos, rank, 6), batch[:6]
    with torch.no_grad(), net.probe() as ratios:
        net(*own)
    sums, own_ratios = total(torch.stack(ratios)), torch.stack(ratios)
    tolerance = 1.0001 * sums.max().item() / 2
    # alone the two processes would decide differently
    assert ((own_ratios - tolerance) * (sums - own_ratios - tolerance) < 0).any()
    ace = ACE(net, "resilient", lr=0.0, dual_lr=0.0, groups={"gammas.0": {"mode": "equality"}}, snap=True,
              tolerance=tolerance, patience=2, look_every=2)
    optimizer = torch.optim.Adam(ace.primal_parameters(), lr=0.0)
    said = []
    for _ in range(8):
        optimizer.zero_grad()
        model(*own).square().sum().backward()
        optimizer.step()
        said.append(ace.step())
    # off at the third step; the resilient one is tried at the fifth, where the loss pulls and lambda is 0
    assert said == [False, False, True, False, True, False, False, False] and ace.snapped == [True, False]
    assert net.snapped == (True, False) and all(p.grad is not None for p in net.parameters() if p.dim())
    history = torch.tensor([row for _, *rows in ace._watch.history for row in rows]).nan_to_num()
    close(total(history), 2 * history)


def main(rank, store):
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2,
                            timeout=timedelta(seconds=60))
    for share in SHARES.values():
        check_chain(rank, share)
    check_moments(rank)
    check_norms_of_one_process(rank)
    check_schnet(rank)
    check_batch_norms(rank)
    check_data_parallel(rank)
    check_switched_branches(rank)
    dist.destroy_process_group()


if __name__ == "__main__":
    other = multiprocessing.get_context("fork").Process(target=main, args=(1, sys.argv[1]))  # imports are there already
    other.start()
    main(0, sys.argv[1])
    other.join()
    sys.exit(other.exitcode)
