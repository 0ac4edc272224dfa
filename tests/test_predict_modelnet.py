"""Classes of point clouds by a trained run: whatever their size, place, pose and file; and wrong input."""

import numpy as np
import pytest
import torch

from ace_fast.data import generated_shapes
from ace_fast.train import cli, load, predict
from ace_fast.train.tasks import modelnet

pytestmark = pytest.mark.usefixtures("same_threads")


def test_predictions_do_not_depend_on_size_place_and_pose(modelnet_run, small_classifier):
    predictor = load(modelnet_run.folder)
    points = modelnet.load(predictor.config, "test").points.double()
    found = predictor.predict(points)
    assert found.shape == (20, 10) and torch.allclose(found.sum(1), torch.ones(20))
    turned = points @ torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(predictor.predict(turned * 7 + 3), found, rtol=1e-4, atol=1e-5)
    for scale in (1e-300, 1e300):
        torch.testing.assert_close(predictor.predict(points * scale), found, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(predictor.predict(points[4]), found[4])
    assert predictor.predict(points[:0]).shape == (0, 10)


def test_clouds_of_any_sizes_are_predicted(modelnet_run, small_classifier):
    predictor = load(modelnet_run.folder)
    drawn = torch.randn(70, 3, generator=torch.Generator().manual_seed(0))
    ragged = predictor.predict(drawn, offsets=[0, 20, 30, 70])
    single = torch.stack([predictor.predict(drawn[a:b]) for a, b in ((0, 20), (20, 30), (30, 70))])
    torch.testing.assert_close(ragged, single)
    assert torch.equal(predictor.predict(drawn), predictor.predict(drawn))  # more points than 32: always the same ones


@pytest.mark.parametrize(("points", "offsets", "message"), [
    (torch.zeros(5, 2), None, r"points must be \[B, N, 3\] or \[N, 3\], got \[5, 2\]"),
    (torch.zeros(2, 9, 3), [0, 2], r"points must be \[M, 3\], got \[2, 9, 3\]"),
    (torch.zeros(2, 5, 3), None, r"at least 8 points, as many as a neighbourhood \(n_knn\), got 5 in cloud 0"),
    (torch.full((9, 3), float("nan")), None, "points must be finite, got NaN or infinity first in cloud 0"),
    (torch.zeros(20, 3), [0, 19], "offsets must rise from 0 to the 20 points, got .0, 19."),
])
def test_wrong_clouds_are_named(points, offsets, message, modelnet_run, small_classifier):
    with pytest.raises(ValueError, match=message):
        load(modelnet_run.folder).predict(points, offsets)


def test_prediction_from_files(modelnet_run, small_classifier, tmp_path, capsys):
    cloud = generated_shapes("test", per_class=1, points=40).points.numpy()
    np.save(tmp_path / "one.npy", cloud[0])
    np.savez(tmp_path / "all.npz", points=cloud)
    mesh = "OFF\n4 4 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 2\n3 0 1 3\n3 0 2 3\n3 1 2 3\n"
    (tmp_path / "tetra.off").write_text(mesh)
    probabilities = load(modelnet_run.folder).predict(cloud)
    for name, count in (("one.npy", 1), ("all.npz", 10), ("tetra.off", 1)):
        assert cli.main(["predict", str(modelnet_run.folder), str(tmp_path / name)]) == 0
        shown = capsys.readouterr().out.splitlines()
        assert len(shown) == count + 1 and shown[0].startswith("cloud 0: ")
        assert f"{count} clouds predicted" in shown[-1]
        with np.load(tmp_path / f"{name[:-4]}-predicted.npz") as found:
            assert found["probabilities"].shape == (count, 10) and list(found["classes"])[0] == "box"
            assert list(found["class"]) == [found["classes"][k] for k in found["label"]]
            if name != "tetra.off":
                np.testing.assert_allclose(found["probabilities"], probabilities[:count], rtol=1e-5)
    predictor = load(modelnet_run.folder)
    for name, text, message in (("bad.off", "OFF\n1 1", "bad.off"), ("bad.npy", "points", "an .npy, .npz or .off"),
                                ("flat.off", "OFF\n1 1 0\n0 0 0\n3 0 0 0\n", "flat.off cannot be used .*area")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            predict.predict_file(predictor, tmp_path / name, tmp_path / "o.npz")
    for name in ("no.off", "no.npy"):
        with pytest.raises(FileNotFoundError, match="INPUT must be .*no"):
            predict.predict_file(predictor, tmp_path / name, tmp_path / "o.npz")
