"""`--compare`: another revision is checked out and built once, processes take turns, noise is measured and obeyed."""

import io
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

import ace_fast
from bench import compare, compare_worker, results, revisions, tables
from bench.__main__ import main
from bench.compare import FASTER, SLOWER, WITHIN, Measured

ROOT = Path(__file__).parents[1]
CASE = {"op": "segment_sum", "case": "nbody_100", "backend": "reference", "direction": "forward", "device": "cpu",
        "dtype": "float32"}
JITTER = [1.0, 1.002, 0.998, 1.001, 0.999]


# what is called slower


def measured(ratio: float, off: float = 0.0) -> Measured:
    """here / there is `ratio`, again / here 1 + `off`."""
    there = [2.0 * x for x in JITTER]
    here = [ratio * x for x in there]
    return Measured(here, there, [(1 + off) * x for x in here], 1.0, 2.0)


@pytest.mark.parametrize(("sets", "common", "called"), [
    ([measured(1.2)] * 3, 0.0, SLOWER), ([measured(0.8)] * 3, 0.0, FASTER), ([measured(1.005)], 0.0, WITHIN),
    ([measured(1.2, 0.25)], 0.0, WITHIN),  # the same program twice differs by more
    ([measured(1.2)], 0.1, WITHIN),  # so it usually does in this run
    ([measured(1.2), measured(0.99), measured(1.2)], 0.0, WITHIN),  # not in all sets of processes
    ([measured(1.2), measured(1.2), measured(1.3, 0.25)], 0.0, WITHIN),  # one set was noisy
    ([measured(1.2), measured(1.3), measured(1.25)], 0.05, SLOWER),
])
def test_what_is_called_slower(sets, common, called):
    assert compare.verdict(sets, common)[0] == called


def test_noise_is_the_largest_of_its_parts():
    assert measured(1.0).noise(0.0) == compare.FLOOR
    assert measured(1.0, 0.03).noise(0.0) == pytest.approx(0.03)
    assert measured(1.0, -0.03).noise(0.02) == pytest.approx(0.06)
    wild = Measured([1.0, 1.5, 2.0, 2.5, 3.0], [1.0] * 5, [1.0, 1.5, 2.0, 2.5, 3.0], None, None)
    assert wild.noise(0.0) == pytest.approx(2 * compare.error([1.0, 1.5, 2.0, 2.5, 3.0]))
    # median absolute deviation 0.5, of normal numbers 1.4826 of it; the median's error is 1.2533 of the mean's
    assert compare.error([1.0, 1.5, 2.0, 2.5, 3.0]) == pytest.approx(1.2533 * 1.4826 * 0.5 / 5**0.5)


class Fake:
    """A process whose calls take `ms` in turn."""

    def __init__(self, ms, made=None):
        self.ms, self.made, self.asked, self.closed = itertools.cycle(ms), made or {"sizes": {"rows": 1}}, [], False

    def ask(self, **what):
        self.asked.append(what)
        if "case" in what:
            return self.made
        if "memory" in what:
            return {"mb": 1.5, "method": "none"}
        if self.ms is None:
            raise ValueError("the process ended with -11: Segmentation fault")
        return {"ms": [next(self.ms) for _ in range(what["calls"])]}

    def alive(self):
        return self.ms is not None

    def close(self):
        self.closed = True


@pytest.fixture
def one(monkeypatch):
    """compare() of one case; `sides(side, number)` makes the process of a side in a set."""
    monkeypatch.setattr(compare, "TURN_MS", 1.0)

    def run(sides, wanted=1):
        started = []

        def start(side):
            started.append((side, sides(side, len(started) // 3)))
            return started[-1][1]

        return compare.compare([CASE] * wanted, start, 5), started

    return run


def test_a_regression_is_confirmed_in_new_processes(one, capsys):
    (row,), started = one(lambda side, number: Fake([1.0 if side == "there" else 1.5]))
    assert row["verdict"] == SLOWER and row["sets"] == 3 and row["ratio"] == pytest.approx(1.5)
    assert (row["ms"], row["baseline_ms"], row["here_mb"], row["baseline_mb"]) == (1.5, 1.0, 1.5, 1.5)
    assert [side for side, _ in started] == ["here", "there", "again"] * 3 and all(w.closed for _, w in started)
    gates = [worker.asked[0]["gate"] for _, worker in started]
    assert gates == [True, True, False] + [False] * 6  # judged once in each revision
    tables.compared([row | CASE], "v1")
    assert "slower" in capsys.readouterr().out


def test_what_does_not_repeat_is_noise(one):
    (row,), started = one(lambda side, number: Fake([1.5 if side == "here" and not number else 1.0]))
    assert row["verdict"] == WITHIN and row["sets"] == 1 and row["noise"] == pytest.approx(3 * (1 - 1 / 1.5))
    (row,), started = one(lambda side, number: Fake([1.0 if side == "there" and number != 1 else 1.5]))
    assert row["verdict"] == WITHIN and row["sets"] == 2 and len(started) == 6
    (row,), _ = one(lambda side, number: Fake([1.0]))
    assert row["verdict"] == WITHIN and row["sets"] == 1 and row["ratio"] == 1.0


def test_the_order_turns(monkeypatch):
    seen = []

    class Watched(Fake):
        def ask(self, **what):
            if "calls" in what:
                seen.append(self.side)
            return super().ask(**what)

    workers = {side: Watched([30.0]) for side in compare.SIDES}
    for side, worker in workers.items():
        worker.side = side
    found = compare._times(workers, 3)
    assert seen[3:] == ["here", "there", "again", "there", "again", "here", "again", "here", "there"]
    assert all(len(ms) == 3 for ms in found.values())


@pytest.mark.parametrize(("side", "answer", "row"), [
    ("here", {"error": "output is wrong: error 1 > 0"}, {"error": "output is wrong: error 1 > 0"}),
    ("here", {"skipped": "not run on the CPU"}, {"skipped": "not run on the CPU"}),
    ("there", {"error": "output is wrong"}, {"skipped": "not measured there: output is wrong"}),
    ("there", {"skipped": "there is no such case"}, {"skipped": "not measured there: there is no such case"}),
    ("there", {"sizes": {"rows": 2}}, {"skipped": "not the same case there: rows is 2, here 1"}),
])
def test_what_cannot_be_compared_has_its_reason(one, side, answer, row, capsys):
    (found,), started = one(lambda name, number: Fake([1.0], answer if name == side else None))
    assert found == CASE | row and len(started) == 3
    tables.compared([found], "v1")
    assert next(iter(row.values())) in capsys.readouterr().out


def test_a_crash_does_not_take_the_other_cases_along(one):
    def sides(side, number):
        fake = Fake([1.0])
        if side == "here" and not number:
            fake.ms = None
        return fake

    first, second = one(sides, wanted=2)[0]
    assert first["error"] == "the process ended with -11: Segmentation fault"
    assert second["verdict"] == WITHIN


# the processes


def served(*asked: dict) -> list[dict]:
    out = io.StringIO()
    compare_worker.serve([json.dumps(line) for line in asked], out)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_process_makes_and_times_what_it_is_told_to():
    about, made, times, memory = served({"case": CASE, "gate": True}, {"calls": 3}, {"memory": True})
    assert Path(about["package"]) == Path(ace_fast.__file__).parent and about["kernels"].endswith("kernels")
    assert made == {"sizes": {"rows": 2000}} and len(times["ms"]) == 3 and memory["mb"] >= 0
    about, workload, times = served(
        {"case": {"workload": "knn", "case": "2x32_3_k4", "device": "cpu", "dtype": "float32"}, "gate": True},
        {"calls": 1})
    assert workload["sizes"]["points"] == 32 and times["ms"][0] > 0
    about, product, times = served(
        {"case": {"protocol": "O2", "case": "tetris-poly-2@4", "direction": "double_backward", "device": "cpu",
                  "dtype": "float64"}, "gate": True}, {"calls": 1})
    assert product == {"sizes": {"rows": 4}} and times["ms"][0] > 0


def test_a_process_says_why_not(monkeypatch):
    _, absent, unknown, before = served({"case": CASE | {"case": "nowhere"}, "gate": True},
                                        {"case": {"workload": "other", "case": "x", "device": "cpu",
                                                  "dtype": "float32"}, "gate": False}, {"calls": 1})
    assert absent == {"skipped": "there is no such case"}
    assert unknown["error"].startswith("bench: workload must be one of") and "AttributeError" in before["error"]
    from ace_fast.bench import protocol_versions as versions
    make = versions.make
    off = lambda *a: make(*a)._replace(call=lambda *x: 1.001 * make(*a).call(*x))  # noqa: E731
    monkeypatch.setattr(versions, "make", off)
    _, wrong = served({"case": {"protocol": "O2", "case": "tetris-poly-2@4", "direction": "forward", "device": "cpu",
                                "dtype": "float32"}, "gate": True})
    assert wrong["error"].startswith("output is wrong")


# the other revision


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git checkout with two revisions of a package; `setup.py` notes what it builds."""
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org",
                               *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    (tmp_path / ".gitignore").write_text("build/\nlib/\n")
    for folder in ("ace_fast", "kernels", "bench"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("VERSION = 1\n")
    (tmp_path / "setup.py").write_text(
        "import os, sys\nos.mkdir('ace_fast/lib')\nopen('ace_fast/lib/library.so', 'w').write(' '.join(sys.argv))\n"
        "open('ace_fast/lib/missing.txt', 'w').write('no compiler' if os.path.exists('broken') else '')\n")
    git("init", "-q", "-b", "main")
    git("add", "-A")
    git("commit", "-q", "-m", "one")
    git("tag", "v1")
    (tmp_path / "ace_fast" / "__init__.py").write_text("VERSION = 2\n")
    (tmp_path / "broken").write_text("")
    git("add", "-A")
    git("commit", "-q", "-m", "two")
    return tmp_path


def test_a_revision_is_built_once(repository):
    site = revisions.prepare("v1", repository)
    assert site.name == "site" and [p.name for p in site.iterdir()] == ["ace_fast"]
    code = "import ace_fast as a, ace_fast.kernels as k, ace_fast.bench; print(a.VERSION, a.__file__, k.__file__)"
    done = subprocess.run([sys.executable, "-P", "-S", "-c", code], capture_output=True, text=True, cwd=repository,
                          env={"PYTHONPATH": f"{site}:{repository}"}, check=True)
    assert done.stdout.split()[0] == "1" and done.stdout.count(str(site)) == 2
    built = site / "ace_fast" / "lib" / "library.so"
    assert "editable_wheel" in built.read_text()
    when = built.stat().st_mtime_ns
    assert revisions.prepare("v1", repository) == site and built.stat().st_mtime_ns == when
    assert (repository / "ace_fast" / "__init__.py").read_text() == "VERSION = 2\n"


def test_what_does_not_build_says_why_and_is_tried_again(repository):
    for _ in range(2):
        with pytest.raises(ValueError, match="--compare: the native library of HEAD did not build: no compiler"):
            revisions.prepare("HEAD", repository)


def test_unknown_revisions(repository, tmp_path_factory):
    with pytest.raises(ValueError, match="REV must be a commit, branch or tag of .*, got 'v9'; see git log"):
        revisions.resolve("v9", repository)
    with pytest.raises(ValueError, match="REV must be a commit, branch or tag of"):
        revisions.resolve("--all", repository)
    with pytest.raises(ValueError, match="bench must run in a git checkout, got .*; run python -m bench in a clone"):
        revisions.resolve("HEAD", tmp_path_factory.mktemp("empty"))


class Local:
    """The other side of a process's pipe, here."""

    def __init__(self):
        self._server = compare_worker.Server()

    def ask(self, **what):
        return json.loads(json.dumps(self._server.answer(what)))

    def alive(self):
        return True

    def close(self):
        pass


def test_command(tmp_path, monkeypatch, capsys, same_threads):
    """From the options to the file, with a real process in place of the other revision's."""
    real = compare.Worker
    site = tmp_path / "site"
    monkeypatch.setattr(revisions, "prepare", lambda revision: site)
    monkeypatch.setattr(compare, "Worker", lambda site, threads: real(None, threads) if site else Local())
    monkeypatch.setattr(compare, "SETS", 1)
    file = tmp_path / "run.json"
    argv = ["--compare", "HEAD", "--op", "segment_sum", "--backend", "reference", "--case", "nbody_100", "--direction",
            "forward", "--device", "cpu", "--threads", "1", "--repeats", "2", "--json", str(file)]
    status = main(argv)
    rows = results.load(file)
    assert {row["op"] for row in rows} == {"segment_sum", "segment_sum_bwd"}
    for row in rows:
        assert row["verdict"] in (SLOWER, FASTER, WITHIN) and row["noise"] >= compare.FLOOR and row["sets"] == 1
        assert row["ms"] > 0 and row["baseline_ms"] > 0 and row["threads"] == 1
        assert row["baseline_revision"] == revisions.resolve("HEAD")[:12]
    assert status == int(any(row["verdict"] == SLOWER for row in rows))
    assert "Compared with HEAD" in capsys.readouterr().out and [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_a_process_that_does_not_start_says_why(tmp_path):
    (tmp_path / "ace_fast").mkdir()
    (tmp_path / "ace_fast" / "__init__.py").write_text("raise ImportError('no such torch')\n")
    with pytest.raises(ValueError, match="the process ended with 1: ImportError: no such torch"):
        compare.Worker(tmp_path, 1)
