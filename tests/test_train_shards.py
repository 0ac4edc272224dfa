"""Runs whose data lie in shards: what `ace-fast data` writes, training that streams, resuming, and wrong shards."""

import json
import shutil

import pytest
import torch
from qm9_toys import npz
from run_checks import check_resuming, numbers
from test_cli import TINY as NBODY

from ace_fast.data import FlatDataset, NBodySettings, ShardedDataset, nbody, write_shards
from ace_fast.data.nbody import stream
from ace_fast.data.shards import MANIFEST, file_name
from ace_fast.train import cli, load, options, train
from ace_fast.train.evaluate import evaluate_run
from ace_fast.train.tasks import find, sharded

pytestmark = pytest.mark.usefixtures("same_threads", "own_cache")

SHARED = {"quiet": True, "layers": 1, "hidden": 8, "batch_size": 10, "epochs": 2, "eval_every": 1, "rotations": 1,
          "threads": 1}
BODIES = SHARED | {"task": "nbody"} | {name: NBODY[name] for name in ("steps", "frame_from", "frame_to")}
MOLECULES = SHARED | {"task": "qm9", "target": "gap", "eval_samples": 0, "model": "schnet", "filters": 4,
                      "gaussians": 5}


@pytest.fixture(scope="module")
def molecules(tmp_path_factory):
    """60 generated molecules: 45, 9 and 6."""
    return str(npz(tmp_path_factory.mktemp("data") / "few.npz", count=60, listed=()))


@pytest.fixture(scope="module")
def shards(molecules, own_cache, tmp_path_factory):
    """task -> folder of its shards, seven or more for training, written by the command line."""
    folder = tmp_path_factory.mktemp("shards")
    words = {"nbody": ["--num-train", "48", "--num-valid", "8", "--num-test", "8"],
             "qm9": ["--data", molecules, "--radius", "10"]}
    for name in ("steps", "frame_from", "frame_to"):
        words["nbody"] += [options.flag(name), str(BODIES[name])]
    for name, given in words.items():
        where = ["--shards", str(folder / name), "--shard-size", "6"]
        assert cli.main(["data", name, *given, *where]) == 0
    return {name: str(folder / name) for name in words}


def test_the_command_says_what_it_wrote(shards, capsys):
    assert cli.main(["data", "nbody", "--shards", shards["nbody"]]) == 2
    assert "--shards must be a folder without shards, got" in capsys.readouterr().err
    found = ShardedDataset(f"{shards['qm9']}/train")
    assert found.counts == [6] * 7 + [3] and found.symmetric and {"z", "pos", "gdb_id", "gap", "U0"} <= set(found.names)
    assert found.about == {"task": "qm9", "source": "few (.npz)",
                           "settings": {"radius": 10.0, "neighbours": 32, "split": "cormorant", "data_seed": 0}}


def test_trajectories_are_those_of_memory():
    settings = NBodySettings(num_train=7, steps=301)
    whole, frames = nbody(settings=settings, frames=(0, 1)), (0, 1)
    streamed = list(stream("train", settings, frames, most=3))
    assert [len(part) for part in streamed] == [3, 3, 1]
    for name, array in whole.node.items():
        assert torch.equal(torch.cat([part.node[name] for part in streamed]), array)
    with pytest.raises(ValueError, match="frames must be two of 0 .. 2"):
        next(stream("train", settings, (0, 3)))


@pytest.mark.parametrize(("given", "ahead"), [({}, 2), ({"device": "cuda"}, 2),
                                              ({"device": "cuda", "cuda_graphs": True}, 0)])
def test_batches_are_formed_ahead_unless_steps_are_captured(given, ahead, shards):
    config = options.make_config(find("nbody"), "demo", {"shards": shards["nbody"], "batch_size": 10} | given)
    streamed = sharded.Streamed(ShardedDataset(f"{shards['nbody']}/train"), lambda graphs: graphs)
    assert sharded.batches(streamed, config, lambda graphs: graphs).prefetch == ahead


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_a_gpu_trains_on_batches_formed_ahead(shards, tmp_path):
    given = BODIES | {"shards": shards["nbody"]}
    cpu, gpu = (train(tmp_path / device, **given | {"device": device}) for device in ("cpu", "cuda"))
    assert [row["train_loss"] for row in gpu.metrics()] == pytest.approx(
        [row["train_loss"] for row in cpu.metrics()], rel=1e-3)


@pytest.mark.parametrize("task", ["nbody", "qm9"])
def test_batches_are_those_of_memory(task, shards, molecules):
    """Whatever the order: every graph once, with the model's inputs and target as in memory."""
    given = {"nbody": BODIES | {"num_train": 48, "num_valid": 8, "num_test": 8, "train_samples": 48},
             "qm9": MOLECULES | {"data": molecules, "train_samples": 0}}[task]
    one, two = (_training(given), _training((BODIES if task == "nbody" else MOLECULES) | {"shards": shards[task]}))
    assert one[1] == two[1]  # the facts
    found, expected = ([graph for batch in t.batches for graph in _graphs(batch)] for t in (one[0], two[0]))
    assert len(found) == len(expected) > 40
    for mine, theirs in zip(sorted(found, key=_place), sorted(expected, key=_place), strict=True):
        assert mine.keys() == theirs.keys()
        for name, x in mine.items():
            torch.testing.assert_close(x, theirs[name], msg=name)


def _training(given):
    task = find(given["task"])
    config = options.make_config(task, "demo", {k: v for k, v in given.items() if k not in ("task", "quiet")})
    data = task.load(config, "train")
    facts = task.facts(data)
    return task.Training(config, facts, data), facts


def _graphs(batch):
    """The graphs of a batch, name -> array, edges numbered within each."""
    owner = batch.batch[batch.edge_index[1]]
    sizes, edges = batch.ptr.diff().tolist(), torch.bincount(owner, minlength=batch.num_graphs).tolist()
    kinds = {batch.num_nodes: sizes, len(owner): edges, batch.num_graphs: 1}
    parts = {"edge_index": (batch.edge_index - batch.ptr[owner]).T.split(edges)}
    for name in batch.names:
        x = getattr(batch, name)
        parts[name] = x.split(kinds[len(x)])
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


def _place(graph):
    return float(graph["pos"][0, 0])


@pytest.mark.parametrize("task", ["nbody", "qm9"])
def test_a_run_that_streams_resumes_bit_for_bit(task, shards, tmp_path, no_plots):
    check_resuming(tmp_path, 3, **(BODIES if task == "nbody" else MOLECULES), shards=shards[task])


def test_a_run_without_its_folder_goes_on_where_that_was_moved(shards, tmp_path, no_plots):
    given = MOLECULES | {"epochs": 1, "lr_schedule": "constant", "relaxed": False}
    before = tmp_path / "before"
    shutil.copytree(shards["qm9"], before)
    run = train(tmp_path / "run", shards=before, **given)
    before.rename(tmp_path / "after")
    with pytest.raises(FileNotFoundError, match="before/valid must hold shards.json"):
        train(run.folder, resume=True, quiet=True, epochs=2)
    with pytest.raises(ValueError, match="--shards must be .*/before as in the run that is resumed, got ;"):
        train(run.folder, resume=True, quiet=True, epochs=2, shards="")
    train(run.folder, resume=True, quiet=True, epochs=2, shards=tmp_path / "after")
    whole = train(tmp_path / "whole", shards=shards["qm9"], **given | {"epochs": 2})
    assert numbers(run) == numbers(whole)
    found = evaluate_run(run.folder, data=str(tmp_path / "after"))
    assert found == whole.evaluation() and found["data"] == "few (.npz)" and found["train_strict"] > 0
    assert load(run.folder).predict(torch.tensor([6, 1]), torch.randn(2, 3)).numel() == 1


def _damaged(folder):
    path = folder / "test" / file_name(0, "pos")
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")


def _truncated(folder):
    path = folder / "train" / file_name(1, "vel")
    path.write_bytes(path.read_bytes()[:-1])


def _told(folder, **change):
    path = folder / "valid" / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def _without_targets(folder):
    data = ShardedDataset(folder / "train").read([0])
    shutil.rmtree(folder / "train")
    node = {name: data.node[name] for name in ("pos", "vel", "charges")}
    write_shards(folder / "train", FlatDataset(node, data.node_offsets, data.edge_index, data.edge_offsets))


@pytest.mark.parametrize(("change", "given", "message"), [
    (_damaged, {}, r"test/000000-pos.bin must have the checksum it was written with"),
    (_truncated, {}, r"train/000001-vel.bin must have \d+ bytes, got \d+; it is truncated"),
    (lambda folder: _told(folder, format=0), {}, "valid/shards.json must be of version 1, got 0"),
    (lambda folder: (folder / "valid" / MANIFEST).unlink(), {}, "valid must hold shards.json, got none"),
    (_without_targets, {}, "must have the arrays pos, vel, charges, target, got none named target among pos"),
    (None, {"task": "qm9"}, "--shards must hold data of qm9, got some of nbody in .*; train nbody on them"),
    (None, {"frame_to": 0}, "--frame-to must be 1 as the shards in .* were written, got 0; pass that, or write others "
                            "with: ace-fast data nbody --frame-to 0 --shards FOLDER"),
    (None, {"batch_size": 49}, "--batch-size must be at most the 48 graphs in .*; pass --batch-size 48 or less"),
    (None, {"train_samples": 20}, "--train-samples must be left out with --shards, which hold the data .* got 20"),
    (None, {"data": "folder"}, "--data must be left out with --shards"),
])
def test_wrong_shards_are_found_before_a_run_begins(change, given, message, shards, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(shards["nbody"], folder)
    if change:
        change(folder)
    given = BODIES | given if "task" not in given else MOLECULES
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(tmp_path / "run", shards=folder, **given)
    assert not (tmp_path / "run").exists()


def test_edges_of_another_radius(shards, tmp_path):
    with pytest.raises(ValueError, match="--radius must be 10.0 as the shards in .* were written, got 2.0"):
        train(tmp_path / "run", shards=shards["qm9"], task="qm9", model="segnn")


def test_tasks_that_hold_their_data_in_memory(shards, capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "modelnet", "--shards", shards["nbody"]])
    assert "--shards must be left out with modelnet, whose data are in memory, got it; nbody, qm9 take it" in (
        capsys.readouterr().err)
    with pytest.raises(ValueError, match="options must be among .*, got shards"):
        train(task="mocap", shards=shards["nbody"])
