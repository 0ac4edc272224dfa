"""--relaxation: every decider in a run, resumed as if never stopped; the batches of remul; what a task cannot take."""

import pytest
import torch
from md17_toys import revised
from qm9_toys import npz
from run_checks import interrupt_at, numbers
from test_train import TINY

from ace_fast.train import load, train
from ace_fast.train.options import DEFAULT_PRESET, make_config
from ace_fast.train.run import build
from ace_fast.train.tasks import find

NAMES = ("schedule", "remul")  # the states of all of them: test_relaxations.py


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    before = torch.get_num_threads()
    yield TINY | {"data": str(tmp_path_factory.mktemp("data")), "epochs": 2, "eval_every": 1,
                   "lr_schedule": "constant"}
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_resumed_as_if_it_was_never_stopped(name, given, tmp_path, monkeypatch, no_plots):
    given = given | {"relaxation": name} | ({"balance": "gradnorm"} if name == "remul" else {})
    whole = train(tmp_path / "whole", **given)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6)
        with pytest.raises(KeyboardInterrupt, match="stopped after 6 steps"):
            train(tmp_path / "run", **given)
    again = train(tmp_path / "run", resume=True)
    assert numbers(again) == numbers(whole)
    rows = whole.metrics()
    logged = {"schedule": "lie", "remul": "losses"}[name]
    assert logged in rows[0] and "multipliers" not in rows[0] and len(rows[0]["gammas"]) == 2
    assert rows[-1]["gammas"] == ([0.0, 0.0] if name == "schedule" else [1.0, 1.0])
    assert load(whole.folder).relaxed == (name != "schedule")
    if name == "schedule":
        with pytest.raises(ValueError, match=f"--epochs must be 2 .*relaxation {name} depends on them"):
            train(tmp_path / "run", resume=True, epochs=5)


@pytest.fixture(scope="module")
def small(given, tmp_path_factory):
    """Settings of a small strict model of each task, and where its data lie."""
    folder = tmp_path_factory.mktemp("small")
    molecules = {"data": str(npz(folder / "few.npz", count=60, listed=())), "train_samples": 0, "eval_samples": 0,
                 "layers": 1, "hidden": 8, "batch_size": 16}
    conformations = {"data": str(revised(folder)), "molecule": "methanol", "train_samples": 16, "valid_samples": 4,
                     "test_samples": 0, "hidden": 8, "filters": 8, "interactions": 2, "batch_size": 8}
    return {
        "nbody": {k: v for k, v in given.items() if k in find("nbody").OPTIONS} | {"lmax_attr": 2},
        "modelnet": {"train_per_class": 1, "num_points": 24, "n_knn": 4, "batch_size": 8},
        "qm9": molecules | {"lmax_attr": 2},
        "qm9 schnet": molecules | {"model": "schnet"},
        "md17": conformations,
    }


@pytest.mark.parametrize("case", ["nbody", "modelnet", "qm9", "qm9 schnet", "md17"])
def test_the_strict_model_has_the_same_loss_on_turned_batches(case, small):
    task = find(case.split()[0])
    config = make_config(task, DEFAULT_PRESET, small[case] | {"dtype": "float64", "relaxed": False})
    data = task.load(config, "train")
    facts = task.facts(data)
    training = task.Training(config, facts, data)
    model = build(task, config, facts).eval()
    batch = next(iter(training.batches))
    turned = training.turned(batch)
    assert torch.allclose(training.loss(model, batch), training.loss(model, turned), rtol=1e-11)
    read = lambda b: b[0] if isinstance(b, tuple) else getattr(b, "pos", getattr(b, "edge_attr", None))  # noqa: E731
    assert not torch.allclose(read(batch), read(turned))


@pytest.mark.parametrize(("task", "options", "message"), [
    ("mocap", {"relaxation": "rpp"}, "--relaxation must be one of ace for mocap, got rpp"),
    ("modelnet", {"relaxation": "schedule", "legacy_view": True}, "--lie must be 0 with --legacy-view, got 0.01"),
    ("nbody", {"relaxation": "rpp", "mode": "resilient"}, "--mode must be equality with --relaxation rpp"),
    ("qm9", {"model": "schnet", "relaxation": "per", "gammas": "nn"}, "--gammas must be numbers with --relaxation per"),
    ("nbody", {"relaxation": "rppp"}, "--relaxation must be one of ace, schedule, rpp, per, remul, got 'rppp'"),
    ("nbody", {"relaxation": "per", "groups": "O3,O9"}, "train: groups must be different ones of .*, got O3, O9"),
    *((task, {"gamma_groups": "no.*: rho=2"} | own, r"groups\['no.\*'\] must name gammas, got none; there are \['")
      for task, own in (("nbody", {}), ("modelnet", {}), ("qm9", {"model": "schnet"}), ("mocap", {}), ("md17", {}))),
    ("nbody", {"gamma_groups": "*: mode=none"}, r"groups\['\*'\]\['mode'\] must be one of .*, got 'none'"),
    ("nbody", {"gamma_groups": "*: lr=-1"}, r"train: --gamma-groups '\*': lr must be finite and not negative, got -1"),
    ("nbody", {"gamma_groups": "*: rho=2", "relaxed": False}, "--gamma-groups must be left out with --strict"),
    ("nbody", {"gamma_groups": "x: rho=2", "relaxation": "rpp"}, "--gamma-groups must be left out with --relaxation"),
    ("nbody", {"relaxation": "per", "relaxed": False}, "--relaxation must be left out with --strict, got per"),
    ("nbody", {"mode": "resilient", "relaxed": False}, "--mode must be left out with --strict, got resilient"),
    ("nbody", {"repo_resilient": True}, "train: repo_resilient must be False for the equality rule"),
    ("nbody", {"gamma_groups": "*: mode=resilient", "repo_clamp": True}, "repo_clamp must be False for the resilient"),
])
def test_what_a_task_cannot_take_is_said_before_any_work(task, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", task=task, **options)
    assert not (tmp_path / "run").exists()
