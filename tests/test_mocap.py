"""Human motion data: the field's protocol on real files, folders and archives of CMU's files, and bad input."""

import zipfile

import numpy as np
import pytest
import torch
from mocap_toys import SHARED, acclaim, npz

from ace_fast.data import MotionSamples, mocap
from ace_fast.data.mocap import egno_inputs, protocol, skeleton_edges, target_frames
from ace_fast.data.mocap_files import CASES, read, read_npz

real = pytest.mark.skipif(not (SHARED / "mocap_run.npz").exists(), reason="shared/data is not beside this checkout")
BONES = np.array([[1, 0], [2, 1], [3, 0]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eleven runs of 95 frames, as CMU's subject 9 has eleven."""
    return acclaim(tmp_path_factory.mktemp("cmu") / "09")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return npz(tmp_path_factory.mktemp("data") / "runs.npz")


def fields_draws(case):
    """Start frames of all trials as the published code draws them."""
    about, found = CASES[case], {}
    np.random.seed(100)
    for part in about.parts:
        for k in part:
            found[k] = np.random.choice(np.arange(about.starts), size=about.per_trial, replace=False)
    return found


@real
def test_the_runs_protocol():
    data = {split: mocap(SHARED, split, case="run") for split in ("train", "valid", "test")}
    assert [len(part) for part in data.values()] == [200, 240, 160]  # the file lacks one trial of the test
    recordings = data["train"].recordings
    assert data["test"].source == "mocap_run (.npz)" and recordings.unit_cm == pytest.approx(5.6444, abs=1e-4)
    draws = fields_draws("run")
    with np.load(SHARED / "mocap_run.npz") as archive:
        trials, pos, offsets = archive["trial"].tolist(), archive["pos"], archive["offsets"]
    for k, trial in enumerate(trials):
        np.testing.assert_array_equal(recordings.starts[k], draws[trial])
    train = data["train"]
    assert train.uniform and train.edge_index.shape[1] == 200 * 130 and train.frames.tolist() == [26, 27, 28, 29, 30]
    g, k = 45, train.graph["trial"][45].item()
    start = offsets[k] + train.graph["start"][45].item()
    assert train.graph["start"][40:80].tolist() == draws[trials[k]][:40].tolist()
    node = {name: x.numpy()[g * 31 : (g + 1) * 31] for name, x in train.node.items()}
    np.testing.assert_array_equal(node["pos"], pos[start])
    np.testing.assert_array_equal(node["vel"], pos[start + 1].astype(float) - pos[start].astype(float))
    np.testing.assert_array_equal(node["target"], pos[start + 26 : start + 31].swapaxes(0, 1))
    np.testing.assert_allclose(node["height"][:, 0], pos[start][:, 1] / 10)


@real
def test_the_walks_protocol():
    data = {split: mocap(SHARED, split) for split in ("train", "valid", "test")}
    assert [len(part) for part in data.values()] == [198, 400, 400]  # 17 of 23 trials, a split of the file's own
    assert len(mocap(SHARED, num_samples=0)) == 900 and len(mocap(SHARED, num_samples=4)) == 4
    with np.load(SHARED / "mocap_walk.npz") as archive:
        draws, trials = archive["egno_walk_start_frames"], archive["egno_walk_trial"]
        parts = archive["egno_walk_part"]
    mine = fields_draws("walk")
    assert [int((parts == p).sum()) for p in range(3)] == [len(part) for part in CASES["walk"].parts]
    for trial, starts in zip(trials, draws, strict=True):
        np.testing.assert_array_equal(mine[int(trial)], starts)


def test_the_fields_split_of_all_trials(folder):
    recordings = read(folder, "run")
    assert recordings.trials == tuple(f"09_{k:02}" for k in range(1, 12)) and recordings.joints[0] == "root"
    parts, draws = protocol(recordings, "run", 4), fields_draws("run")
    assert [[k for k, _ in part] for part in parts] == [[1, 2, 5, 6, 10], [0, 4, 9], [3, 7, 8]]
    for part in parts:
        for k, starts in part:
            np.testing.assert_array_equal(starts, draws[k])
    assert [len(mocap(folder, split, case="run", delta=4, steps=3)) for split in ("train", "valid", "test")] == [
        200, 240, 240]
    other = protocol(recordings, "run", 4, seed=7)
    assert [k for k, _ in other[0]] == [1, 2, 5, 6, 10] and not np.array_equal(other[0][0][1], parts[0][0][1])


def test_start_frames_fit_short_trials(folder):
    data = mocap(folder, "test", case="run", delta=10, steps=2, num_samples=0)
    assert len(data) == 240 and int(data.graph["start"].max()) <= 95 - 2 - 10
    with pytest.raises(ValueError, match="trial 09_02 must have 111 frames or more, 80 to start from and .*, got 95"):
        mocap(folder, case="run")


def test_archives_and_the_usual_folders_hold_the_same(folder, tmp_path, monkeypatch):
    plain = mocap(folder, "valid", case="run", delta=4, steps=2)
    with zipfile.ZipFile(tmp_path / "allasfamc.zip", "w") as archive:
        for path in sorted(folder.iterdir(), reverse=True):
            archive.write(path, f"all_asfamc/subjects/09/{path.name}")
    monkeypatch.setenv("ACE_FAST_DATA", str(tmp_path))
    inner = tmp_path / "mocap" / "all_asfamc" / "subjects"
    inner.mkdir(parents=True)
    (inner / "09").symlink_to(folder)
    for root in (folder.parent, folder / "09.asf", tmp_path / "allasfamc.zip", None):
        other = mocap(root, "valid", case="run", delta=4, steps=2)
        assert torch.equal(other.node["target"], plain.node["target"]) and other.source == plain.source
    assert plain.source == "CMU subject 9, run, 11 of 11 trials (.asf, .amc)"


def test_fewer_trials_are_split_in_proportion(tmp_path):
    folder = acclaim(tmp_path / "9", trials=12, frames=90, subject="9")  # 9_12.amc is no run
    for number in (1, 4, 6, 8, 11):
        (folder / f"9_{number:02}.amc").unlink()
    recordings = read(folder, "run")
    assert recordings.trials == ("09_02", "09_03", "09_05", "09_07", "09_09", "09_10")
    parts = protocol(recordings, "run", 2)
    assert [len(part) for part in parts] == [2, 2, 2] and len({k for part in parts for k, _ in part}) == 6
    assert mocap(folder, case="run", delta=2, steps=2).source.endswith("6 of 11 trials (.asf, .amc)")


def test_edges_are_bones_and_pairs_two_bones_apart():
    index, kind = skeleton_edges(BONES, 4)
    pairs = {(s, t): k for s, t, k in zip(*index.tolist(), kind[:, 0].tolist(), strict=True)}
    wanted = {(0, 1): 1, (1, 2): 1, (0, 3): 1, (0, 2): 2, (1, 3): 2}
    assert pairs == wanted | {(t, s): k for (s, t), k in wanted.items()}
    assert index[1].tolist() == sorted(index[1].tolist())


@pytest.mark.parametrize(("frames", "delta", "steps", "wanted"), [
    ("last", 30, 5, [26, 27, 28, 29, 30]), ("uniform", 30, 5, [6, 12, 18, 24, 30]), ("uniform", 7, 3, [2, 4, 7]),
    ("last", 2, 2, [1, 2]), ("uniform", 2, 2, [1, 2])])
def test_target_frames(frames, delta, steps, wanted):
    assert target_frames(delta, steps, frames).tolist() == wanted


def test_features_are_speed_height_kind_square_distance_and_mean(file):
    batch = mocap(file, "valid", case="run", delta=4, steps=2).batch([1, 5])
    found = egno_inputs(batch.pos, batch.vel, batch.edge_index, batch.kind, 4, batch.height / 2)
    assert torch.equal(found["h"], torch.stack([batch.vel.norm(dim=1), batch.pos[:, 1] / 20], 1))
    source, target = batch.edge_index
    assert torch.equal(found["edge_fea"][:, 0], batch.kind[:, 0])
    torch.testing.assert_close(found["edge_fea"][:, 1], (batch.pos[source] - batch.pos[target]).norm(dim=1) ** 2)
    torch.testing.assert_close(found["loc_mean"][4:], batch.pos[4:].mean(0).expand(4, 3))
    assert egno_inputs(batch.pos, batch.vel, batch.edge_index, batch.kind, 4)["h"].shape == (8, 1)


def test_samples_say_what_they_are(file):
    data = mocap(file, case="run", delta=4, steps=2, frames="uniform")
    assert repr(data) == ("MotionSamples(24 moments of 3 trials, 4 joints, 10 edges each, frames +2, +4; runs (.npz))")
    part = data.subset([3, 1])
    assert isinstance(part, MotionSamples) and part.graph["start"].tolist() == data.graph["start"][[3, 1]].tolist()


@pytest.mark.parametrize(("given", "message"), [
    ({"split": "all"}, "mocap: split must be one of train, valid, test, got 'all'"),
    ({"case": "jump"}, "mocap: case must be one of walk, run, got 'jump'"),
    ({"frames": "first"}, "mocap: frames must be one of last, uniform, got 'first'"),
    ({"delta": 0}, "mocap: delta must be at least 1, got 0"),
    ({"steps": 5, "delta": 4}, "mocap: steps must be at most delta = 4, got 5"),
    ({"num_samples": -1}, "mocap: num_samples must be at least 0, got -1"),
    ({"seed": -1}, "mocap: seed must be at least 0, got -1"),
    ({"delta": 9}, r"start frame 15 of trial 09_0[1-3] \(runs \(.npz\)\) must be in 0 .. 14, 9 frames before the end "
                   "of its 24; give the whole trial"),
])
def test_wrong_arguments_are_named(given, message, file):
    with pytest.raises(ValueError, match=message):
        mocap(file, **{"case": "run", "delta": 4, "steps": 2, "split": "train"} | given)


@pytest.mark.parametrize(("changed", "message"), [
    ({"edges": None}, "must hold pos, offsets, edges, got none called edges; add them"),
    ({"pos": np.zeros((120, 4, 2))}, r"pos of .* must be floating-point \[F, J, 3\] .*, got float64 \[120, 4, 2\]"),
    ({"offsets": np.array([0, 24])}, "offsets of .* must be integers .* from 0 to the 120 frames, got others"),
    ({"offsets": np.array([0, 50, 50, 60, 70, 120])}, "offsets of .* must rise, got a trial without frames; leave it"),
    ({"split": np.array([0, 1, 2])}, r"split of .* must be \[5\], got \[3\]"),
    ({"split": np.array([0, 1, 2, 3, 1])}, r"split of .* must be 0 \(train\), 1 \(validation\) or 2 \(test\)"),
    ({"split": np.zeros(5, dtype=int)}, "must have trials for training, validation and test, got 5 in all and none "),
    ({"start_frames": np.zeros((4, 3), dtype=int)}, r"start_frames of .* must be integers \[5, S\], got int64 "),
    ({"edges": np.array([[1, 0], [2, 1], [4, 0]])}, r"edges of .* must be pairs \(joint, parent\) in 0 .. 3, got"),
    ({"edges": np.array([[1, 0], [1, 2], [3, 0]])}, "each joint of .* must have one parent, got more for trunk"),
    ({"edges": np.array([[1, 2], [2, 1], [3, 0]])}, "must form a tree below root, got a cycle through trunk, arm"),
])
def test_wrong_npz_files_are_named(changed, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        mocap(npz(tmp_path / "bad.npz", **changed), case="run", delta=4, steps=2)


def test_positions_that_are_not_finite_are_named(file, tmp_path):
    with np.load(file) as archive:
        arrays = dict(archive)
    arrays["pos"][24 * 2 + 7, 3, 1] = np.nan
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match="NaN or infinity in trial 09_03, frame 7, joint leg; leave that trial out"):
        mocap(tmp_path / "bad.npz", case="run", delta=4, steps=2)


def test_damaged_and_missing_files_are_named(folder, file, tmp_path):
    def fails(root, error, message, **given):
        with pytest.raises(error, match=message):
            mocap(root, **{"case": "run", "delta": 4, "steps": 2} | given)

    (tmp_path / "cut.npz").write_bytes(file.read_bytes()[:600])
    fails(tmp_path / "cut.npz", ValueError, "cut.npz must be a whole .npz file, got another one .*; get it anew")
    (tmp_path / "cut.zip").write_bytes(b"PK\3\4 and no more")
    fails(tmp_path / "cut.zip", ValueError, "cut.zip must be a whole zip archive, got a damaged one .*; get it anew")
    with zipfile.ZipFile(tmp_path / "bit.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / "09.asf", "09.asf")
    damaged = bytearray((tmp_path / "bit.zip").read_bytes())
    damaged[100] ^= 255
    (tmp_path / "bit.zip").write_bytes(damaged)
    fails(tmp_path / "bit.zip", ValueError, "09.asf of .*bit.zip must be a whole file, got a damaged one")
    fails(folder, FileNotFoundError, r"must hold 35.asf with 35_01.amc and so on, or mocap_walk.npz, .* got 09.asf, "
                                     r"09_01.amc, .* and 8 more; get the subject's", case="walk")
    fails(tmp_path / "no", FileNotFoundError, "got no such folder or file; get the subject's .asf and .amc files")
    (tmp_path / "motion.pkl").write_bytes(b"\x80\x04N.")
    fails(tmp_path / "motion.pkl", FileNotFoundError, "must be a folder, an .npz or a .zip file, got .*motion.pkl")
    lone = tmp_path / "lone"
    lone.mkdir()
    (lone / "09.asf").write_bytes((folder / "09.asf").read_bytes())
    fails(lone, FileNotFoundError, "must hold motions of subject 9 for the case run, 09_01.amc and so on, got none")
    for number in (1, 2, 3):
        text = (folder / f"09_{number:02}.amc").read_text()
        (lone / f"09_{number:02}.amc").write_text(text if number < 3 else text.rsplit(" ", 1)[0])
    fails(lone, ValueError, "lone, 09_03.amc, line 478: frame 95, joint leg must be 2 finite numbers, got")


@real
def test_two_trials_cannot_be_split():
    with pytest.raises(ValueError, match="mocap_subject49 .* got 2 in all and none for train; give three trials"):
        mocap(SHARED / "mocap_subject49.npz")
    assert [len(x) for x in read_npz(SHARED / "mocap_subject49.npz").pos] == [1102, 957]
