"""Predictions of a trained run: against the model itself, for graphs of any sizes, and wrong input."""

import math

import numpy as np
import pytest
import torch

from ace_fast.models import nbody_graph
from ace_fast.train import evaluate, load, predict, train
from ace_fast.train.tasks import nbody


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A run of a second."""
    before = torch.get_num_threads()
    yield train(
        tmp_path_factory.mktemp("runs") / "predicting", data=tmp_path_factory.mktemp("data"), num_train=20,
        num_valid=20, num_test=20, steps=301, frame_from=0, frame_to=1, layers=1, train_samples=20, batch_size=10,
        hidden=8, rotations=1, threads=1, epochs=1,
    )
    torch.set_num_threads(before)


def inputs(finished, count=6):
    config = finished.about()["config"]
    data = nbody.load(config, "test").subset(range(count))
    return config, data, {name: data.node[name].view(count, 5, -1) for name in ("pos", "vel", "charges")}


def test_predictions_are_those_of_the_model(finished):
    config, data, arrays = inputs(finished)
    predictor = load(finished.folder)
    with torch.no_grad():
        gold = data.batch(range(6)).pos + predictor.model(nbody_graph(data.batch(range(6))))
    predicted = predictor.predict(**arrays)
    torch.testing.assert_close(predicted, gold.view(6, 5, 3), rtol=1e-5, atol=1e-6)
    flat = predictor.predict(*(arrays[name].flatten(0, 1) for name in ("pos", "vel")), arrays["charges"].flatten(),
                             offsets=np.arange(7) * 5)
    torch.testing.assert_close(flat, predicted.flatten(0, 1))
    relaxed = load(finished.folder, relaxed=True).predict(**arrays)
    assert not torch.allclose(relaxed, predicted, rtol=1e-3, atol=1e-3)
    measured = evaluate.evaluate_run(finished.folder)
    everything = inputs(finished, 20)
    error = (predictor.predict(**everything[2]) - everything[1].node["target"].view(20, 5, 3)).square().mean()
    assert measured["test_strict"] == pytest.approx(error.item(), rel=1e-4) and measured["checkpoint"] == "best"


def test_ragged_predictions_are_those_of_single_graphs(finished):
    _, _, arrays = inputs(finished)
    predictor = load(finished.folder)
    parts = [{name: a[g, :n] for name, a in arrays.items()} for g, n in ((0, 2), (1, 5), (2, 3))]
    joined = {name: torch.cat([part[name] for part in parts]) for name in arrays}
    predicted = predictor.predict(**joined, offsets=torch.tensor([0, 2, 7, 10]))
    single = [predictor.predict(**{name: a[None] for name, a in part.items()})[0] for part in parts]
    torch.testing.assert_close(predicted, torch.cat(single), rtol=1e-5, atol=1e-6)
    assert predictor.predict(**{name: a[:0] for name, a in arrays.items()}).shape == (0, 5, 3)


@pytest.mark.parametrize(("change", "message"), [
    ({"pos": torch.zeros(30, 3)}, r"pos must be \[G, n, 3\], got \[30, 3\]; \[N, 3\] needs offsets"),
    ({"offsets": [0, 30]}, r"pos must be \[N, 3\], got \[6, 5, 3\]"),
    ({"vel": torch.zeros(6, 4, 3)}, r"vel must be \[6, 5, 3\] as pos is, got \[6, 4, 3\]"),
    ({"charges": torch.zeros(6)}, r"charges must be \[6, 5, 1\], got \[6\]"),
    ({"vel": torch.full((6, 5, 3), math.nan)}, "'vel' must be finite, got NaN or infinity first in graph 0"),
])
def test_wrong_predictions_are_named(change, message, finished):
    with pytest.raises(ValueError, match=message):
        load(finished.folder).predict(**inputs(finished)[2] | change)


@pytest.mark.parametrize(("offsets", "message"), [
    ([0.0, 30.0], r"offsets must be integers \[G \+ 1\], got torch.float32 \[2\]"),
    ([0, 20, 10, 30], "offsets must rise from 0 to the 30 bodies of pos"),
    ([0, 29], r"offsets must rise from 0 to the 30 bodies of pos, got \[0, 29\]"),
])
def test_wrong_offsets_are_named(offsets, message, finished):
    arrays = {name: a.flatten(0, 1) for name, a in inputs(finished)[2].items()}
    with pytest.raises(ValueError, match=message):
        load(finished.folder).predict(**arrays, offsets=torch.tensor(offsets))


def test_prediction_files(finished, tmp_path):
    arrays = {name: a.numpy() for name, a in inputs(finished)[2].items()}
    np.savez(tmp_path / "in.npz", **arrays)
    predictor = load(finished.folder)
    assert predict.predict_file(predictor, tmp_path / "in.npz", tmp_path / "out.npz").count == 6
    with np.load(tmp_path / "out.npz") as found:
        np.testing.assert_array_equal(found["pos"], predictor.predict(**arrays).numpy())
    with pytest.raises(FileExistsError, match="out.npz exists; pass another --output, or --overwrite"):
        predict.predict_file(predictor, tmp_path / "in.npz", tmp_path / "out.npz")
    predict.predict_file(predictor, tmp_path / "in.npz", tmp_path / "out.npz", overwrite=True)
    with pytest.raises(FileNotFoundError, match="INPUT must be an .npz file, got none at"):
        predict.predict_file(predictor, tmp_path / "no.npz", tmp_path / "o.npz")
    (tmp_path / "text.npz").write_text("pos")
    with pytest.raises(ValueError, match="must be an .npz with pos, vel, charges, got another file"):
        predict.predict_file(predictor, tmp_path / "text.npz", tmp_path / "o.npz")
    np.savez(tmp_path / "part.npz", pos=arrays["pos"])
    with pytest.raises(ValueError, match="must hold pos, vel and charges, got pos; add vel, charges"):
        predict.predict_file(predictor, tmp_path / "part.npz", tmp_path / "o.npz")
    np.savez(tmp_path / "words.npz", **arrays | {"charges": np.array(["a"])})
    with pytest.raises(ValueError, match="charges must be numbers, got <U1"):
        predict.predict_file(predictor, tmp_path / "words.npz", tmp_path / "o.npz")
    with pytest.raises(OSError, match="cannot be written .*; pass another --output"):
        predict.predict_file(predictor, tmp_path / "in.npz", tmp_path / "nowhere" / "o.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(IsADirectoryError, match="INPUT must be an .npz file that can be read, got .*folder.npz .Is a"):
        predict.predict_file(predictor, tmp_path / "folder.npz", tmp_path / "o.npz")
    np.savez(tmp_path / "huge.npz", **arrays | {"pos": arrays["pos"] * 1e25})
    with pytest.raises(ValueError, match="predicted positions must be finite, got NaN or infinity first in graph 0"):
        predict.predict_file(predictor, tmp_path / "huge.npz", tmp_path / "o.npz")
    assert not (tmp_path / "o.npz").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()], ids=["full", "stopped"])
def test_a_failed_write_leaves_nothing(error, finished, tmp_path, monkeypatch):
    np.savez(tmp_path / "in.npz", **{name: a.numpy() for name, a in inputs(finished)[2].items()})

    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(np, "savez", refuse)
    with pytest.raises(type(error), match="cannot be written .No space" if isinstance(error, OSError) else None):
        predict.predict_file(load(finished.folder), tmp_path / "in.npz", tmp_path / "out.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["in.npz"]


def test_finite_input_that_overflows_is_named(finished):
    arrays = inputs(finished)[2]
    arrays["pos"] = arrays["pos"].clone()
    arrays["pos"][3] *= 1e25
    with pytest.raises(ValueError, match="must be finite, got NaN or infinity first in graph 3; give pos, vel"):
        load(finished.folder).predict(**arrays)


@pytest.mark.parametrize("dtype", [np.longdouble, ">f8", ">f4", "f8"])
def test_arrays_of_any_float_type(dtype, finished):
    arrays = inputs(finished)[2]
    predictor = load(finished.folder)
    other = {name: a.numpy().astype(dtype) for name, a in arrays.items()}
    assert torch.equal(predictor.predict(**other), predictor.predict(**arrays))
    flat = {name: a.reshape(30, -1) for name, a in other.items()}
    found = predictor.predict(**flat, offsets=np.arange(7, dtype=">i8") * 5)
    assert torch.equal(found, predictor.predict(**arrays).flatten(0, 1))


def test_words_are_not_numbers(finished):
    with pytest.raises(ValueError, match="predict: vel must be numbers, got <U1"):
        load(finished.folder).predict(**inputs(finished)[2] | {"vel": np.array(["a"])})
