"""Runs after a kill at any point, and files that are damaged: refused by name, or recovered to the same numbers."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ace_fast.train import checkpoint, load, report, run, train
from ace_fast.train.run import Run


class Killed(BaseException):
    """Nothing in the package may catch it."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    before = torch.get_num_threads()
    data = tmp_path_factory.mktemp("data")
    yield dict(
        data=data, num_train=20, num_valid=20, num_test=20, steps=301, frame_from=0, frame_to=1, layers=1,
        train_samples=20, batch_size=10, hidden=8, eval_every=1, rotations=1, threads=1, epochs=2, quiet=True,
    )
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch):
    monkeypatch.setattr(report, "write", lambda run: None)


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", lambda run: None)
        return train(tmp_path_factory.mktemp("runs") / "whole", **settings)


@pytest.fixture
def copied(finished, tmp_path):
    return Run(shutil.copytree(finished.folder, tmp_path / "run"))


def rows(found):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in found.metrics()]


def flip(path, where):
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)


# config; state, last; then per epoch: diagnosis, best, state, last (the file of the metrics is appended to).
@pytest.mark.parametrize("half", [False, True], ids=["before", "half_written"])
@pytest.mark.parametrize("writes", range(1, 11))
def test_a_kill_at_any_point_changes_nothing(writes, half, finished, settings, tmp_path, monkeypatch):
    """Killed instead of the write after `writes` of them, or leaving half of it in its temporary file."""
    done, plain = [], checkpoint.write_atomic

    def write(path, content):
        if len(done) == writes:
            if half:
                path.with_name(f".{path.name}.{'0' * 32}").write_text(str(content[:50]))
            raise Killed
        plain(path, content)
        done.append(path.name)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_atomic", write)
        patch.setattr(run, "write_atomic", write)
        with pytest.raises(Killed):
            train(tmp_path / "run", **settings)
    resumed = train(tmp_path / "run", resume=True, quiet=True)
    assert rows(resumed) == rows(finished)
    for name in ("best.safetensors", "weights.safetensors"):
        assert (resumed.folder / name).read_bytes() == (finished.folder / name).read_bytes()
    assert {path.name for path in resumed.folder.iterdir()} == {path.name for path in finished.folder.iterdir()}


def test_the_last_epoch_is_the_best_here(finished):
    """Otherwise the test above could not see a stale best file."""
    first, second = (row["valid_strict"] for row in finished.metrics())
    assert second < first and load(finished.folder).epoch == 2


@pytest.mark.parametrize("name", ["best.safetensors", "weights.safetensors", "state.safetensors"])
@pytest.mark.parametrize("where", ["data", "header"])
def test_a_flipped_bit_is_found(name, where, copied):
    path = copied.folder / name
    # The lowest bit of a number still reads as a number.
    flip(path, -4 if where == "data" else path.read_bytes().index(b"epoch"))
    with pytest.raises(ValueError, match=rf"{name} must hold what its checksum says .* other checkpoint .--checkpoint"):
        if name == "state.safetensors":
            train(copied.folder, resume=True)
        else:
            load(copied.folder, "best" if name.startswith("best") else "last")


def test_weights_without_a_checksum_are_refused(copied):
    path = copied.folder / "best.safetensors"
    save_file(load_file(path), path)
    with pytest.raises(ValueError, match="checksum says .none., .* or another program wrote it; use the run's other"):
        load(copied.folder)


def test_weights_that_are_not_finite_are_refused(copied):
    predictor = load(copied.folder)
    with torch.no_grad():
        list(predictor.model.parameters())[1].view(-1)[0] = float("nan")
    path = copied.folder / "best.safetensors"
    checkpoint.save_weights(path, predictor.model, {})
    with pytest.raises(ValueError, match="best.safetensors must hold finite weights, got NaN or infinity in .*; use"):
        load(copied.folder)
    state = copied.load_state()
    state["model"] = dict(predictor.model.state_dict())
    checkpoint.save_tree(copied.state_path, state)
    with pytest.raises(ValueError, match="state.safetensors must hold finite weights"):
        train(copied.folder, resume=True)


@pytest.mark.parametrize("line", [b'{"epoch": 1, "tra', b"[1]", b"\xff\xfe", b"", b'{"epoch": null}'])
def test_a_damaged_line_of_the_metrics_is_an_error(line, copied):
    path = copied.folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    damaged = b"\n".join([line, *lines[1:]]) + b"\n"
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="metrics.jsonl must hold one epoch per line, got a damaged line 1; repair or"):
        train(copied.folder, resume=True)
    assert path.read_bytes() == damaged


def test_a_broken_last_line_is_left_out(copied, finished):
    with open(copied.folder / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "tra')
    assert rows(copied) == rows(finished) == rows(train(copied.folder, resume=True))
