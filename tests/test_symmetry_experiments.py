"""ace-fast symmetry: the auto-encoder of random graphs, its data, results and wrong input."""

import json

import pytest
import torch
from operator_calls import Calls

from ace_fast.bench import sympe
from ace_fast.symmetry.experiments import autoencoder
from ace_fast.symmetry.experiments.cli import run_experiment, table
from ace_fast.symmetry.experiments.training import train_best
from ace_fast.train.cli import main

VIEWS = ("aten.view.", "aten.t.", "aten.select.", "aten.detach.")

TINY = {"num_train": 12, "num_valid": 4, "num_test": 4, "epochs": 2, "batch_size": 6, "hidden": 8, "layers": 2}


def test_every_method_trains_and_is_written(tmp_path, capsys):
    out = tmp_path / "new" / "result.json"
    argv = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    torch.use_deterministic_algorithms(False)
    assert main(["symmetry", "autoencoder", "--out", str(out), "--seeds", "2", *argv]) == 0
    shown = capsys.readouterr()
    assert "| none | " in shown.out and "±" in shown.out and f"results: {out}" in shown.out
    assert "sympe, seed 1, epoch 2/2: validation cross-entropy" in shown.err
    about = json.loads(out.read_text())
    assert about["command"].startswith("ace-fast symmetry autoencoder --out") and about["config"]["hidden"] == 8
    rows = {(row["method"], row["seed"]): row for row in about["rows"]}
    assert rows.keys() == {(m, s) for m in ("none", "noise", "sympe") for s in (0, 1)}
    assert rows["sympe", 0]["parameters"] > rows["noise", 0]["parameters"] > rows["none", 0]["parameters"]
    assert all(0 <= row["error"] <= 1 and 0 <= row["f1"] <= 1 and row["bce"] > 0 for row in about["rows"])


def test_runs_repeat(tmp_path):
    found = [run_experiment("autoencoder", ["sympe"], 1, tmp_path / f"{n}.json", **TINY)[0]["bce"] for n in range(2)]
    assert found[0] == found[1]


@pytest.mark.parametrize("name, method, tiny", [
    ("autoencoder", "none", TINY),
    ("ising", "mlp", {"side": 4, "num_train": 6, "num_valid": 2, "num_test": 2, "hidden": 4, "epochs": 2}),
])
def test_training_that_diverged_says_so(tmp_path, name, method, tiny):
    with pytest.raises(ValueError, match="symmetry: the validation loss must be finite .*, got nan after all 2; lower"):
        run_experiment(name, [method], 1, tmp_path / "x.json", lr=1e30, **tiny)


def test_the_best_epoch_is_kept():
    """Of four epochs that each add one, the one whose validation is least; NaN is never it."""
    model, lines = torch.nn.Linear(1, 1, bias=False), []
    torch.nn.init.zeros_(model.weight)
    losses = iter([float("nan"), 1.0, 2.0, float("inf")])
    train_best(model, {"epochs": 4, "lr": 1.0}, lambda epoch: [epoch], lambda epoch: -model.weight.sum(),
               lambda: (next(losses), "words"), lines.append)
    torch.testing.assert_close(model.weight.detach(), torch.tensor([[2.0]]))
    assert lines == [f"epoch {epoch}/4: words" for epoch in range(1, 5)]


def test_random_graphs():
    data = autoencoder.erdos_renyi(300, 3, 9, 0.25, torch.Generator().manual_seed(0))
    sizes = data.node_offsets.diff()
    assert sizes.min() == 3 and sizes.max() == 9
    batch = data.batch(range(300))
    i, j, edges = autoencoder.pairs_of(batch)
    assert len(i) == (sizes * (sizes - 1) // 2).sum() and (i < j).all()
    assert (batch.batch[i] == batch.batch[j]).all()
    assert edges.mean() == pytest.approx(0.25, abs=0.02)
    assert 2 * edges.sum() == batch.edge_index.shape[1]
    source, target = batch.edge_index
    assert torch.equal((source * 10_000 + target).sort()[0], (target * 10_000 + source).sort()[0])


def test_alike_nodes_have_equal_codes_unless_symmetry_is_broken():
    """A square: without breaking all nodes have one code and all pairs one logit."""
    config = {name: option.default for name, option in autoencoder.OPTIONS.items()}
    edges = torch.tensor([[1, 3, 0, 2, 1, 3, 0, 2], [0, 0, 1, 1, 2, 2, 3, 3]])
    data = autoencoder.FlatDataset({"one": torch.ones(4, 1)}, torch.tensor([0, 4]), edges, torch.tensor([0, 8]))
    for method, distinct in (("none", 1), ("noise", 4), ("sympe", 4)):
        torch.manual_seed(0)
        model = autoencoder.AutoEncoder(method, config, torch.Generator().manual_seed(0))
        square = autoencoder.Prepared(data.batch([0]))
        codes = model.encode(square).detach()
        assert len(codes.mul(1e4).round().unique(dim=0)) == distinct
        logits = model(square).detach()
        assert ((logits - logits[0]).abs().max() < 1e-6) == (method == "none")


def test_symmetry_breaking_adds_at_most_a_tenth_to_the_calls_of_a_forward_pass():
    """Operator calls that compute something: a draw of the seed, ranks, vectors beside the features."""
    counts = {}
    for name, function in sympe.versions(4).items():
        function()  # what graphs find out once
        with Calls() as calls, torch.no_grad():
            function()
        counts[name] = sum(not call.startswith(VIEWS) for call in calls.names)
    assert counts["none"] < counts["sympe"] <= 1.1 * counts["none"]


@pytest.mark.parametrize("change, message", [
    ({"name": "other"}, "experiment must be one of autoencoder, .*, got 'other'"),
    ({"methods": ["some"]}, "--methods must be among none, noise, sympe, got some"),
    ({"methods": []}, "--methods must be among none, noise, sympe, got none"),
    ({"seeds": 0}, "--seeds must be 1 or more, got 0"),
    ({"least_nodes": 20}, "--least-nodes must be at most --most-nodes, 16, got 20"),
    ({"epochs": 0}, "symmetry: --epochs must be at least 1, got 0"),
    ({"depth": 3}, "options must be among num_train, .*, got depth"),
])
def test_wrong_settings(tmp_path, change, message):
    arguments = {"name": "autoencoder", "methods": ["none"], "seeds": 1, "out": tmp_path / "x.json"} | change
    with pytest.raises(ValueError, match=message):
        run_experiment(**arguments)
    assert not (tmp_path / "x.json").exists()


def test_an_existing_file_stays(tmp_path, capsys):
    (tmp_path / "x.json").write_text("mine")
    assert main(["symmetry", "autoencoder", "--out", str(tmp_path / "x.json")]) == 2
    assert "--out must be a new file, got " in capsys.readouterr().err
    assert (tmp_path / "x.json").read_text() == "mine"


def test_the_table_has_means_and_standard_errors():
    rows = [{"method": "none", "seed": s, "bce": b, "error": 0.5, "f1": 0.0, "parameters": 7, "seconds": 1.0}
            for s, b in enumerate((1.0, 2.0))]
    assert table(autoencoder, rows)[2] == "| none | 1.5000 ± 0.5000 | 50.00% | 0.000 | 7 | 1 |"
