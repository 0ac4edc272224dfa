"""The N-body simulator against the original's trajectories, the cache on disk, and the samples."""

import dataclasses
import errno
import importlib
import json
import os
import warnings

import numpy as np
import pytest
import torch

from ace_fast.data import Batcher, NBodySettings, nbody, simulate

# The function of the same name hides the module from a plain import.
module = importlib.import_module("ace_fast.data.nbody")
SMALL = NBodySettings(num_train=6, num_valid=5, num_test=4, steps=301)


@pytest.fixture
def simulations(monkeypatch):
    """Counts how often something is simulated."""
    calls = []
    original = module.simulate
    monkeypatch.setattr(module, "simulate", lambda *args: calls.append(args) or original(*args))
    return calls


def cache_file(root):
    (path,) = root.glob("nbody-*.npz")
    return path


def equal(one, two):
    return all(torch.equal(one.node[name], two.node[name]) for name in one.node)


def plain_simulation(x, v, q, steps, dt, every, max_force):
    """The definition, one trajectory, with the whole [n, n, 3] array of forces."""

    def force():
        d = x[:, None] - x[None]
        r3 = (d**2).sum(-1) ** 1.5
        np.fill_diagonal(r3, 1.0)
        return np.clip((np.outer(q, q)[..., None] * d / r3[..., None]).sum(1), -max_force, max_force)

    frames = []
    v = v + dt * force()
    for step in range(1, steps):
        x = x + dt * v
        if step % every == 0:
            frames.append((x, v))
        v = v + dt * force()
    return (np.stack(part) for part in zip(*frames, strict=True))


def test_original_trajectories(golden):
    gold = golden("nbody_trajectory")
    start = (torch.from_numpy(gold[name]) for name in ("initial_position", "initial_velocity", "charge"))
    for mine, name in zip(simulate(*start), ("position", "velocity"), strict=True):
        assert mine.shape == gold[name].shape and mine.dtype == torch.float64
        error = np.abs(mine.numpy() - gold[name]).max((2, 3))
        assert error[[0, 2, 3]].max() < 1e-9
        # A close encounter: later on the rounding of any order of summation grows without bound.
        assert error[1, :11].max() < 1e-9


@pytest.mark.parametrize("bodies", [2, 3, 6])
def test_definition_with_clamped_forces(bodies):
    rng = np.random.default_rng(bodies)
    x, v = 0.5 * rng.standard_normal((2, 3, bodies, 3))
    q = rng.choice([-1.0, 1.0], (3, bodies))
    mine = simulate(*(torch.from_numpy(a) for a in (x, v, q)), steps=41, dt=0.01, sample_every=10, max_force=0.5)
    for k in range(3):
        for a, b in zip(mine, plain_simulation(x[k], v[k], q[k], 41, 0.01, 10, 0.5), strict=True):
            np.testing.assert_allclose(a[k], b, atol=1e-12, rtol=0)


def test_result_does_not_depend_on_the_chunks(monkeypatch):
    start = module.initial_conditions(NBodySettings(num_train=13), "train")
    whole = simulate(*start, steps=201)
    monkeypatch.setattr(module, "_CHUNK", 3)
    done = []
    parts = simulate(*start, steps=201, progress=lambda n, total: done.append((n, total)))
    assert torch.equal(whole[0], parts[0]) and torch.equal(whole[1], parts[1])
    assert done[-1] == (13, 13) and done == sorted(done)


def test_no_trajectories():
    empty = torch.zeros(0, 5, 3)
    assert simulate(empty, empty, torch.zeros(0, 5, 1))[0].shape == (0, 49, 5, 3)


def test_baselines():
    settings = NBodySettings(num_test=2000, steps=4101)
    x, v = simulate(*module.initial_conditions(settings, "test"), steps=settings.steps)
    time = 10 * settings.sample_every * settings.dt
    moved, linear = x[:, 40] - x[:, 30], x[:, 40] - x[:, 30] - time * v[:, 30]
    # Three standard errors of 2000 trajectories.
    assert abs((moved**2).mean().item() - 0.274) < 0.012
    assert abs((linear**2).mean().item() - 0.108) < 0.015


def test_initial_conditions():
    x, v, q = module.initial_conditions(NBodySettings(num_train=4000, bodies=8), "train")
    assert x.shape == v.shape == (4000, 8, 3) and q.shape == (4000, 8, 1)
    assert abs(x.std().item() - (8 / 5) ** (1 / 3)) < 0.01
    torch.testing.assert_close(v.norm(dim=-1), torch.full((4000, 8), 0.5, dtype=torch.float64))
    assert set(q.unique().tolist()) == {-1.0, 1.0} and abs(q.mean().item()) < 0.03


def test_fewer_trajectories_are_the_first_ones_of_more():
    few, many = (module.initial_conditions(NBodySettings(num_train=n), "train") for n in (7, 20))
    assert all(torch.equal(a, b[:7]) for a, b in zip(few, many, strict=True))


def test_splits_and_seeds_are_independent():
    settings = NBodySettings(num_train=5, num_valid=5, num_test=5)
    starts = [module.initial_conditions(settings, split)[0] for split in ("train", "valid", "test")]
    starts.append(module.initial_conditions(dataclasses.replace(settings, seed=44), "train")[0])
    assert len({start.numpy().tobytes() for start in starts}) == 4


def test_samples(tmp_path):
    data = nbody(tmp_path, "valid", SMALL, frames=(0, 1), dtype=torch.float64)
    start = module.initial_conditions(SMALL, "valid")
    x, v = simulate(*start, steps=SMALL.steps)
    assert len(data) == 5 and data.uniform
    for name, gold in (("position", x[:, 0]), ("velocity", v[:, 0]), ("target", x[:, 1]), ("charge", start[2])):
        assert data.node[name].dtype == torch.float64
        torch.testing.assert_close(data.node[name], gold.flatten(0, 1), atol=1e-6, rtol=0)
    batch = data.batch([3, 1])
    directed = {(i, j) for i in range(10) for j in range(10) if i != j and i // 5 == j // 5}
    assert batch.edge_index.shape == (2, 40) and set(map(tuple, batch.edge_index.T.tolist())) == directed
    assert (batch.edge_index[1].diff() >= 0).all()


def test_one_file_serves_all_frames_and_sizes(tmp_path, simulations):
    whole = nbody(tmp_path, settings=SMALL, frames=(0, 1))
    assert len(whole) == 6 and whole.node["position"].dtype == torch.float32
    few = nbody(tmp_path, settings=SMALL, frames=(0, 1), num_samples=2)
    assert torch.equal(few.node["target"], whole.node["target"][:10])
    later = nbody(tmp_path, settings=SMALL, frames=(0, 1))
    assert equal(later, whole) and len(simulations) == 1
    assert torch.equal(nbody(tmp_path, settings=SMALL, frames=(1, 1)).node["position"], whole.node["target"])
    # The sizes of the other splits do not matter.
    nbody(tmp_path, settings=dataclasses.replace(SMALL, num_test=9), frames=(0, 1))
    assert len(simulations) == 1
    nbody(tmp_path, settings=dataclasses.replace(SMALL, seed=1), frames=(0, 1))
    assert len(simulations) == 2 and len(list(tmp_path.iterdir())) == 2


def test_cache_folder_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("ACE_FAST_DATA", str(tmp_path / "a"))
    nbody(settings=SMALL, frames=(0, 1))
    nbody(tmp_path / "b", settings=SMALL, frames=(0, 1))
    assert cache_file(tmp_path / "a").name == cache_file(tmp_path / "b").name
    monkeypatch.delenv("ACE_FAST_DATA")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    nbody(settings=SMALL, frames=(0, 1))
    assert cache_file(tmp_path / "home" / ".cache" / "ace_fast")


@pytest.mark.parametrize("damage", ["half", "empty", "text", "flipped", "shapes", "missing", "meta", "nan"])
def test_damaged_cache_is_rebuilt(tmp_path, damage):
    whole = nbody(tmp_path, settings=SMALL, frames=(0, 1))
    path = cache_file(tmp_path)
    content = path.read_bytes()
    if damage in ("shapes", "missing", "meta", "nan"):
        with np.load(path) as file:
            arrays = dict(file)
        if damage == "shapes":
            arrays["charge"] = arrays["charge"][:-1]
        elif damage == "missing":
            del arrays["charge"]
        elif damage == "meta":
            arrays["meta"] = np.array("[1]")
        else:
            arrays["velocity"][3, 0, 1] = np.nan
        np.savez(path, **arrays)
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"half": content[:middle], "empty": b"", "text": b"hello", "flipped": flipped}[damage])
    with pytest.warns(UserWarning, match=r"nbody-train-\w+\.npz is truncated or damaged .* anew and replaced"):
        assert equal(nbody(tmp_path, settings=SMALL, frames=(0, 1)), whole)
    assert cache_file(tmp_path) == path
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert equal(nbody(tmp_path, settings=SMALL, frames=(0, 1)), whole)


@pytest.mark.parametrize(
    "change, message",
    [({"format": 0}, r"is of another version \(format 0, this is 1\)"), ({"settings": {}}, "data of other settings")],
)
def test_cache_of_another_version_is_rebuilt(tmp_path, simulations, change, message):
    nbody(tmp_path, settings=SMALL, frames=(0, 1))
    path = cache_file(tmp_path)
    with np.load(path) as file:
        arrays = dict(file)
    arrays["meta"] = np.array(json.dumps(json.loads(str(arrays["meta"])) | change))
    arrays["position"] += 1
    np.savez(path, **arrays)
    with pytest.warns(UserWarning, match=message):
        nbody(tmp_path, settings=SMALL, frames=(0, 1))
    assert len(simulations) == 2 and cache_file(tmp_path) == path


@pytest.mark.parametrize("mode, what", [("xb", "written in"), ("rb", "read")])
def test_folder_without_permission(tmp_path, monkeypatch, simulations, mode, what):
    original = open

    def refuse(path, how="r", *args, **kwargs):
        if how == mode:
            raise PermissionError(errno.EACCES, "Permission denied")
        return original(path, how, *args, **kwargs)

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(PermissionError, match=f"cannot be {what} .*; pass root= .* or set ACE_FAST_DATA"):
        nbody(tmp_path, settings=SMALL, frames=(0, 1))
    assert not simulations


def test_folder_inside_a_file(tmp_path, simulations):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"cannot be written in .*; pass root= .* or set ACE_FAST_DATA"):
        nbody(tmp_path / "file" / "folder", settings=SMALL, frames=(0, 1))
    assert not simulations


@pytest.mark.parametrize("step", ["savez", "replace"])
def test_full_disk_loses_nothing(tmp_path, monkeypatch, step):
    def refuse(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    whole = nbody(tmp_path / "other", settings=SMALL, frames=(0, 1))
    with monkeypatch.context() as patch:
        patch.setattr(*((np, "savez") if step == "savez" else (os, "replace")), refuse)
        with pytest.warns(UserWarning, match="could not be saved as .* free some space there, pass root="):
            assert equal(nbody(tmp_path / "full", settings=SMALL, frames=(0, 1)), whole)
    assert not list((tmp_path / "full").iterdir())


def test_interrupted_simulation_leaves_no_file(tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nbody(tmp_path, settings=SMALL, frames=(0, 1), progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_batch_size_beyond_the_data(tmp_path):
    with pytest.raises(ValueError, match="at most the 6 graphs .* got 100; pass a batch_size of 6 or less"):
        Batcher(nbody(tmp_path, settings=SMALL, frames=(0, 1)), 100)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"split": "dev"}, "split must be one of train, valid, test, got 'dev'"),
        ({"frames": (0, 3)}, r"frames must be two of 0 .. 2 in order, got \(0, 3\)"),
        ({"frames": (1, 0)}, r"frames must be two of 0 .. 2 in order, got \(1, 0\)"),
        ({"num_samples": 7}, "num_samples must be in 1 .. 6, got 7; for more set a larger num_train"),
        ({"num_samples": 0}, "num_samples must be in 1 .. 6, got 0"),
    ],
)
def test_wrong_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        nbody(tmp_path, **({"settings": SMALL, "frames": (0, 1)} | arguments))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"bodies": 1}, "bodies must be at least 2, got 1"),
        ({"num_test": 0}, "num_test must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"bodies": 2.5}, "bodies must be an integer, got 2.5"),
        ({"num_train": True}, "num_train must be an integer, got True"),
        ({"steps": 301.0}, "steps must be an integer, got 301.0"),
        ({"dt": "1"}, "dt must be positive and finite, got '1'"),
        ({"speed": "1"}, "speed must be a number >= 0, got '1'"),
        ({"speed": -1.0}, "speed must be a number >= 0, got -1.0"),
        ({"dt": 0.0}, "dt must be positive and finite, got 0.0"),
        ({"max_force": float("nan")}, "max_force must be positive and finite, got nan"),
        ({"sample_every": 0}, "sample_every must be at least 1, got 0"),
        ({"steps": 100}, "steps must be more than sample_every = 100 to record a frame, got 100"),
    ],
)
def test_wrong_settings(values, message):
    with pytest.raises(ValueError, match=f"NBodySettings: {message}"):
        NBodySettings(**values)


@pytest.mark.parametrize(
    "shapes, message",
    [
        (((3, 5, 2), (3, 5, 2), (3, 5)), r"position must be \[B, n, 3\] .* got \[3, 5, 2\]"),
        (((3, 1, 3), (3, 1, 3), (3, 1)), r"position must be \[B, n, 3\] with n at least 2, got \[3, 1, 3\]"),
        (((3, 5, 3), (3, 4, 3), (3, 5)), r"velocity must be \[3, 5, 3\] as position is, got \[3, 4, 3\]"),
        (((3, 5, 3), (3, 5, 3), (3, 4)), r"charge must be \[3, 5, 1\], got \[3, 4\]"),
    ],
)
def test_wrong_shapes(shapes, message):
    with pytest.raises(ValueError, match=f"simulate: {message}"):
        simulate(*(torch.zeros(shape) for shape in shapes))


@pytest.mark.parametrize("which, name", [(0, "position"), (1, "velocity"), (2, "charge")])
def test_nan_in_the_initial_state(which, name):
    start = list(module.initial_conditions(SMALL, "train"))
    start[which][3, 1, 0] = float("nan")
    with pytest.raises(ValueError, match=f"{name} must be finite, got NaN or infinity in trajectory 3"):
        simulate(*start)


def test_bodies_at_one_place():
    x, v, q = module.initial_conditions(SMALL, "train")
    x[2, 1] = x[2, 4]
    with pytest.raises(ValueError, match="at different positions, got .* in trajectory 2; move its bodies apart"):
        simulate(x, v, q, steps=201)
