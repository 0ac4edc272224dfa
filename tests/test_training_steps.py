"""What a step does: parts of batches, precision, compilation, averages, clipping, what is not finite, memory, CUDA."""

import copy
import math

import pytest
import torch
from cloud_toys import TINY as CLOUDS
from cloud_toys import Small
from md17_toys import md17_npz
from mocap_toys import npz as motions
from qm9_toys import npz
from run_checks import numbers

from ace_fast.data import Batcher, FlatDataset
from ace_fast.train import cli, load, options, train
from ace_fast.train.checkpoint import load_tree
from ace_fast.train.evaluate import Evaluator
from ace_fast.train.graphs import key_of, tensors_of, with_tensors
from ace_fast.train.processes import Processes
from ace_fast.train.replay import replay
from ace_fast.train.run import Run, build
from ace_fast.train.setup import prepared
from ace_fast.train.steps import Average, Stepper
from ace_fast.train.tasks import TASKS, nbody

pytestmark = pytest.mark.usefixtures("same_threads", "no_plots", "own_cache")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
NBODY = {
    "num_train": 22, "num_valid": 8, "num_test": 8, "steps": 301, "frame_from": 0, "frame_to": 1, "layers": 1,
    "train_samples": 22, "batch_size": 8, "hidden": 8, "rotations": 1, "threads": 1, "eval_every": 1, "quiet": True,
    "epochs": 2,
}  # three steps an epoch
SMALL = {"layers": 1, "hidden": 8, "batch_size": 8}
QM9 = SMALL | {"train_samples": 0, "eval_samples": 0, "target": "gap"}
CASES = {
    "nbody": ("nbody", {k: v for k, v in NBODY.items() if k != "quiet"}),
    "schnet": ("qm9", QM9 | {"model": "schnet", "filters": 4, "gaussians": 5}),
    "md17": ("md17", {"train_samples": 22, "valid_samples": 6, "hidden": 8, "filters": 4, "interactions": 1,
                      "gaussians": 5, "batch_size": 8}),
    "mocap": ("mocap", SMALL | {"delta": 4, "steps": 3, "time_emb": 4}),
    "modelnet": ("modelnet", {k: v for k, v in CLOUDS.items() if k != "quiet"} | {"batch_size": 8, "drop": 0.5}),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("files")
    return {"qm9": str(npz(root / "qm9.npz", count=60, listed=())), "md17": str(md17_npz(root / "methanol.npz")),
            "mocap": str(motions(root / "runs.npz"))}


@pytest.fixture(scope="module")
def finished(own_cache, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ace_fast.train.report.write", lambda run, result=None: None)
        return train(tmp_path_factory.mktemp("runs") / "finished", **NBODY)


def weights(run):
    return torch.cat([p.detach().flatten().double() for p in load(run.folder, "last").model.parameters()])


def losses(run):
    return [row["train_loss"] for row in run.metrics()]


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_the_parts_sum_to_those_of_the_batches(name, files, small_classifier):
    """Every task, float64, over an epoch, whose last batch is short; molecules differ in size."""
    kind, given = CASES[name]
    task = TASKS[kind]
    config = options.make_config(task, "demo", given | {"dtype": "float64", "data": files.get(kind, "")})
    data = task.load(config, "train")
    facts = task.facts(data)
    torch.manual_seed(0)
    model = build(task, config, facts).eval()  # batch norms would see the parts

    def gradients(world, accumulate):
        total = 0.0
        for rank in range(world):
            training = task.Training(config, facts, data)
            training.batches.shard(rank, world, accumulate, getattr(task, "LEAST", 1))
            for batch in training.batches:
                loss = training.loss(model, batch) * training.batches.weight
                grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
                total = total + torch.cat([g.flatten() for g in grads if g is not None])
        return total

    whole = gradients(1, 1)
    for world, accumulate in ((2, 1), (2, 2)):
        assert (gradients(world, accumulate) - whole).abs().max() < 1e-12 * max(1.0, float(whole.abs().max()))


def test_accumulated_training_is_that_of_whole_batches(tmp_path):
    given = NBODY | {"dtype": "float64", "clip": 0.1}
    whole, parts = (train(tmp_path / str(n), **given | {"accumulate": n}) for n in (1, 4))
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-11)
    assert (weights(parts) - weights(whole)).abs().max() < 1e-11


def test_gradients_are_clipped(tmp_path):
    """Adam forgets the size of a gradient, but for its eps."""
    given = NBODY | {"epochs": 1, "batch_size": 22}
    start, free, clipped = (train(tmp_path / f"{clip}-{lr}", **given | {"clip": clip, "lr": lr})
                            for clip, lr in ((0.0, 1e-30), (0.0, 1e-3), (1e-9, 1e-3)))
    moved = [(weights(run) - weights(start)).norm() for run in (free, clipped)]
    assert 0 < moved[1] < 0.5 * moved[0]


def test_bfloat16_trains_float32_weights(finished, tmp_path):
    run = train(tmp_path / "run", **NBODY | {"precision": "bfloat16"})
    assert losses(run) == pytest.approx(losses(finished), rel=0.05)
    assert all(p.dtype == torch.float32 for p in load(run.folder).model.parameters())


def test_a_compiled_model_is_the_same():
    """A small one, as compiling takes its time; that the models compile is tested with them."""
    config = options.make_config(TASKS["modelnet"], "demo", {"compile": "aot_eager"})
    model, x = Small(3, dropout=0.0, relaxed=True).double(), torch.randn(6, 3, 32, dtype=torch.float64)
    compiled, found = prepared(copy.deepcopy(model), config, Processes()), []
    assert compiled._compiled_call_impl is not None and compiled.get_gammas()
    for network in (model, compiled):
        output = network(x)
        found.append([output, *torch.autograd.grad(output.square().sum(), list(network.parameters()))])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    assert copy.deepcopy(compiled)._compiled_call_impl is None  # what an average of the weights is


def test_a_compiled_run_is_the_eager_one(tmp_path):
    """With its evaluations, strict and relaxed; inductor's own code in `make stress`."""
    given = NBODY | {"epochs": 1, "train_samples": 16, "dtype": "float64"}
    runs = [train(tmp_path / name, **given | {"compile": name}) for name in ("none", "aot_eager")]
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=1e-12)
    assert (weights(runs[1]) - weights(runs[0])).abs().max() < 1e-12
    assert runs[1].metrics()[-1]["test_relaxed"] == pytest.approx(runs[0].metrics()[-1]["test_relaxed"], rel=1e-9)


def test_the_average_by_hand():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    average, wanted = Average(model, 0.2), [p.detach().clone() for p in model.parameters()]
    for n in range(1, 4):
        with torch.no_grad():
            for p in model.parameters():
                p += 1
        average.update(model)
        decay = min(0.2, (1 + n) / (10 + n))
        wanted = [decay * w + (1 - decay) * p.detach() for w, p in zip(wanted, model.parameters(), strict=True)]
    for mine, w in zip(average.model.parameters(), wanted, strict=True):
        torch.testing.assert_close(mine, w)
    model(torch.randn(4, 2))
    average.update(model)
    assert torch.equal(average.model[1].running_mean, model[1].running_mean)


def test_averaged_weights_are_measured_and_kept(finished, tmp_path):
    run = train(tmp_path / "run", **NBODY | {"ema": 0.9})
    assert losses(run) == losses(finished)  # training itself is as it was
    state = run.load_state()
    kept = load(run.folder, "last").model.state_dict()
    assert all(torch.equal(x, kept[name]) for name, x in state["average"]["model"].items())
    assert any(not torch.equal(x, kept[name]) for name, x in state["model"].items())
    assert run.metrics()[-1]["valid_strict"] != finished.metrics()[-1]["valid_strict"]


def test_early_stopping_looks_at_validation_data_alone(tmp_path, monkeypatch):
    found = iter(zip([1.0, 0.5, 0.6, 0.7, 0.1], [0.9, 0.8, 0.7, 0.6, 0.5], strict=True))
    names = "valid_strict", "test_strict"
    monkeypatch.setattr(Evaluator, "measure", lambda *_, **__: dict(zip(names, next(found), strict=True)))
    run = train(tmp_path / "run", **NBODY | {"patience": 2, "epochs": 9})
    assert [row["epoch"] for row in run.metrics()] == [1, 2, 3, 4] and load(run.folder).epoch == 2
    assert len(train(tmp_path / "run", resume=True, quiet=True).metrics()) == 4


# ---- what is not finite


def poison(monkeypatch, lagging, graphs=(7,)):
    """The targets of some training trajectories are NaN; `lagging`: flags are read as on a GPU."""
    plain, begin = nbody.load, Stepper.__init__

    def spoilt(config, split, quiet=True):
        data = plain(config, split, quiet)
        if split == "train":
            for graph in graphs:
                data.node["target"][5 * graph] = math.nan
        return data

    def init(self, *arguments):
        begin(self, *arguments)
        self._lagging = lagging

    monkeypatch.setattr(nbody, "load", spoilt)
    monkeypatch.setattr(Stepper, "__init__", init)


@pytest.fixture(params=[False, True], ids=["at_once", "a_step_later"])
def poisoned(request, monkeypatch):
    poison(monkeypatch, request.param)
    return NBODY | {"bound": "none", "norm": "batch"}


PLAIN = {}  # what was found when flags were read at once


def same_both_ways(name, found):
    other = PLAIN.setdefault(name, found)
    assert all(torch.equal(x, other[key]) for key, x in found.items())


def test_a_batch_that_is_not_finite_stops_the_run_and_is_kept(poisoned, tmp_path, capsys):
    said = "loss must stay finite, got NaN.*last good checkpoint.*ace-fast replay .*run; .*--nan skip"
    with pytest.raises(FloatingPointError, match=said):
        train(tmp_path / "run", **poisoned)
    assert Run(tmp_path / "run").load_state()["epoch"] == 0
    kept = load_tree(tmp_path / "run" / "diverged-0.safetensors")
    (batch,) = kept["batches"]
    assert batch["arrays"]["target"].isnan().any()
    # the weights before the step
    same_both_ways("stopped", {name: x for name, x in kept["model"].items() if "running" not in name})
    assert cli.main(["replay", str(tmp_path / "run")]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith("diverged-0.safetensors: epoch 1, step ")
    assert lines[1:3] == ["input target is not finite", "loss nan"] and "gradients of " in lines[3]


def test_or_is_left_out_by_choice(poisoned, tmp_path):
    with pytest.raises(FloatingPointError):
        train(tmp_path / "run", **poisoned)
    run = train(tmp_path / "run", resume=True, nan="skip", quiet=True)
    assert [row["left_out"] for row in run.metrics()] == [1, 1] and all(map(math.isfinite, losses(run)))
    assert not list(run.folder.glob("diverged*"))
    model = run.load_state()["model"]
    assert all(bool(x.isfinite().all()) for x in model.values())  # running statistics too
    same_both_ways("skipped", model)


def test_nothing_but_bad_batches_stops_the_run(tmp_path, monkeypatch):
    poison(monkeypatch, False, range(22))
    with pytest.raises(FloatingPointError, match="must stay finite"):
        train(tmp_path / "run", **NBODY | {"nan": "skip", "batch_size": 2})


def test_a_gradient_that_is_not_finite_is_found(tmp_path, monkeypatch):
    plain = nbody.Training.loss
    monkeypatch.setattr(nbody.Training, "loss", lambda self, model, batch: plain(self, model, batch) + (
        0 * next(model.parameters()).sum()).sqrt())
    with pytest.raises(FloatingPointError, match="must stay finite"):
        train(tmp_path / "run", **NBODY)
    lines = replay(tmp_path / "run")
    assert lines[1].startswith("  loss 0") or lines[1].startswith("  loss 1")
    assert lines[2].startswith("  gradients of ") and lines[2].endswith(" are not finite")


def test_a_replay_names_the_module_and_needs_a_batch(finished, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="replay: .* must hold a batch that stopped its run, .*got none"):
        replay(finished.folder)
    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "_is_wrong", lambda self, reading: self._diverged(reading.failure))
        with pytest.raises(FloatingPointError):
            train(tmp_path / "run", **NBODY)
    assert replay(tmp_path / "run")[-1] == "  all gradients are finite"
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: output * math.nan if type(module).__name__ == "O3TensorProduct" else None)
    try:
        lines = replay(tmp_path / "run")
    finally:
        hook.remove()
    assert any("the output of " in line and line.endswith(" is not finite") for line in lines)


# ---- memory


def short_of_memory(monkeypatch, most):
    """Memory runs out at the end of a forward pass, whose layers have recorded what they saw."""
    plain = nbody.Training.loss

    def loss(self, model, batch):
        found = plain(self, model, batch)
        if batch.num_graphs > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return found

    monkeypatch.setattr(nbody.Training, "loss", loss)


def test_an_out_of_memory_batch_goes_on_in_halves(tmp_path, monkeypatch, capsys):
    given = NBODY | {"dtype": "float64"}
    whole = train(tmp_path / "whole", **given)
    short_of_memory(monkeypatch, 3)
    run = train(tmp_path / "run", **given)
    assert losses(run) == pytest.approx(losses(whole), rel=1e-11)
    assert (weights(run) - weights(whole)).abs().max() < 1e-11
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 2 and "every batch is taken in 4 pieces from here on" in notes[1]
    assert notes[1].endswith("--accumulate 4 says so from the start")


def test_a_pass_that_ran_out_of_memory_leaves_nothing_in_the_penalty(tmp_path, monkeypatch):
    """As if all parts had been half as large from the start."""
    given = NBODY | {"relaxation": "schedule", "lie": 0.1, "epochs": 1, "rotations": 1}
    halves = train(tmp_path / "halves", **given | {"accumulate": 2})
    short_of_memory(monkeypatch, 4)
    run = train(tmp_path / "run", **given)
    assert numbers(run) == numbers(halves)


def test_a_balance_of_whole_batches_is_not_halved(tmp_path, monkeypatch):
    short_of_memory(monkeypatch, 4)
    with pytest.raises(OSError, match="does not in 1 pieces .*; pass a smaller --batch-size$"):
        train(tmp_path / "run", **NBODY | {"relaxation": "remul", "balance": "gradnorm"})


def test_one_sample_must_fit(tmp_path, monkeypatch):
    short_of_memory(monkeypatch, 0)
    with pytest.raises(OSError, match="a batch must fit in memory, got one that does not in 8 pieces .CUDA out of"):
        train(tmp_path / "run", **NBODY)


def test_other_errors_pass(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("shapes")

    monkeypatch.setattr(Stepper, "_found", fail)
    with pytest.raises(RuntimeError, match="^shapes$"):
        train(tmp_path / "run", **NBODY)


# ---- CUDA graphs


def test_batches_of_a_capture():
    alike = FlatDataset({"x": torch.arange(6.0)}, torch.tensor([0, 2, 4, 6]))
    first, second = Batcher(alike, 2, shuffle=False)
    assert key_of(first) != key_of(second)
    other = with_tensors(first, [torch.ones(4)])
    assert other.x.tolist() == [1.0] * 4 and first.x.tolist() == [0.0, 1.0, 2.0, 3.0] and other.ptr is first.ptr
    cloud = torch.zeros(2, 3), torch.zeros(2)
    assert key_of(cloud) == ((2, 3), (2,)) and tensors_of(with_tensors(cloud, [x + 1 for x in cloud]))[1].sum() == 2
    ragged = FlatDataset({"x": torch.arange(6.0)}, torch.tensor([0, 1, 4, 6]))
    with pytest.raises(ValueError, match="--cuda-graphs must be off for data whose graphs differ, got batches"):
        key_of(copy.copy(next(iter(Batcher(ragged, 2)))))


@needs_gpu
def test_captured_training_is_eager_training(tmp_path):
    given = NBODY | {"device": "cuda"}
    eager, captured = (train(tmp_path / str(on), **given | {"cuda_graphs": on}) for on in (False, True))
    assert losses(captured) == pytest.approx(losses(eager), rel=1e-5)
    torch.testing.assert_close(weights(captured), weights(eager), rtol=1e-4, atol=1e-6)
    assert numbers(captured)[0].keys() == numbers(eager)[0].keys()
