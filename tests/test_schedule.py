"""Step sizes over a run against torch's schedulers and by hand, and how batches are cut."""

import pytest
import torch

from ace_fast.data import Batcher, FlatDataset
from ace_fast.data.shares import dealt, shares
from ace_fast.train import options
from ace_fast.train.schedule import step_size
from ace_fast.train.tasks import nbody


def sizes(count, steps, **given):
    config = options.make_config(nbody, "demo", {"lr": 1e-2, "epochs": 10} | given)
    return [step_size(config, step, steps) for step in range(count)]


def scheduled(count, make):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-2)
    scheduler, found = make(optimizer), []
    for _ in range(count):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


def test_courses_are_those_of_torch():
    schedulers = torch.optim.lr_scheduler
    cosine = scheduled(40, lambda o: schedulers.CosineAnnealingLR(o, 40, eta_min=1e-4))
    assert sizes(40, 4, lr_schedule="cosine") == pytest.approx(cosine)
    steps = scheduled(10, lambda o: schedulers.StepLR(o, 3, 0.2))
    assert sizes(10, 1, lr_schedule="step", decay_every=3, decay_by=0.2) == pytest.approx(steps)


def test_the_warm_up_is_linear():
    found = sizes(12, 4, lr_schedule="constant", warmup=1.5)
    assert found == pytest.approx([1e-2 * min(1, n / 6) for n in range(1, 13)])
    cosine, warm = sizes(40, 4, lr_schedule="cosine"), sizes(40, 4, lr_schedule="cosine", warmup=2.0)
    assert warm[8:] == cosine[8:] and warm[3] == pytest.approx(cosine[3] / 2)


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1), ("linear", 8), ("sqrt", 8**0.5)])
def test_large_batches(scaling, factor):
    given = {"lr_schedule": "constant", "batch_size": 800, "lr_scaling": scaling}
    assert sizes(1, 1, **given) == pytest.approx([1e-2 * factor])  # the preset's batches are of 100
    if scaling != "none":
        assert sizes(1, 1, **given, lr_batch=800) == pytest.approx([1e-2])


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 64])
@pytest.mark.parametrize(("world", "accumulate", "least"), [(1, 1, 1), (2, 1, 1), (3, 2, 1), (2, 4, 2)])
def test_shares_cover_a_batch_once(count, world, accumulate, least):
    parts = [shares(count, rank, world, accumulate, least) for rank in range(world)]
    taken = [i for rank in parts for part, weight in rank if weight for i in range(count)[part]]
    assert taken == list(range(count))
    assert sum(weight for rank in parts for _, weight in rank) == pytest.approx(1)
    for rank in parts:
        assert rank and all(part.stop - part.start >= min(least, count) for part, _ in rank)


@pytest.mark.parametrize("count", [1, 2, 7, 64])
@pytest.mark.parametrize(("world", "accumulate", "least"), [(1, 1, 1), (2, 1, 1), (3, 2, 1), (2, 4, 2)])
def test_parts_are_nearly_equal_work(count, world, accumulate, least):
    sizes = torch.randint(3, 900, (count,))
    order = dealt(sizes, world, accumulate, least)
    assert order.sort().values.tolist() == list(range(count))
    parts = [order[part] for rank in range(world) for part, weight in shares(count, rank, world, accumulate, least)
             if weight]
    assert all((part.diff() > 0).all() for part in parts)  # in the order in which they were
    if count == 64 and len(parts) in (2, 8):  # of equal number
        work = torch.tensor([float(sizes[part].sum()) for part in parts])
        assert (work.max() - work.min()) <= sizes.max() - sizes.min()
    if len(parts) == 1:
        assert order.tolist() == list(range(count))
    assert dealt(torch.full((count,), 5), world, accumulate, least).tolist() == list(range(count))


def test_processes_share_the_batches_of_one(same_threads):
    data = FlatDataset({"x": torch.arange(22.0)}, torch.arange(23))
    whole, seen = Batcher(data, 8, seed=3), []
    for rank in range(2):
        batcher = Batcher(data, 8, seed=3)
        batcher.shard(rank, 2, 2)
        assert len(batcher) == 3
        rows, step = [[]], []
        for batch in batcher:
            step.append(batch.x)
            if not batcher.last:
                assert batcher.state_dict()["position"] == len(rows) - 1  # the step is not done
            else:
                rows[-1], step = torch.cat(step), []
                rows.append([])
        seen.append(rows[:-1])
    for batch, *parts in zip(whole, *seen, strict=True):
        assert torch.equal(batch.x, torch.cat(parts))


def test_a_part_once_more_in_pieces():
    data = FlatDataset({"x": torch.arange(7.0)}, torch.tensor([0, 1, 1, 3, 4, 5, 7]))  # 6 graphs
    batcher = Batcher(data, 6, shuffle=False)
    batcher.shard(1, 2)
    batch = next(iter(batcher))
    pieces = list(batcher.split(2))
    assert torch.equal(torch.cat([piece.x for piece, _ in pieces]), batch.x)
    assert sum(weight for _, weight in pieces) == pytest.approx(batcher.weight) == pytest.approx(0.5)
    assert len(list(batcher.split(9))) == 3  # a graph each
