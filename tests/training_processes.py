"""Run by test_training_processes.py and `make stress`: processes that train together, that are killed, that are lost.

One interpreter that forks, as starting costs most. python tests/training_processes.py FOLDER CHECK ..., where a check
is one of together, refused, interrupted, lost, compiled, or killed=TRIES.
"""

import os
import random
import signal
import socket
import sys
import time
import warnings
from pathlib import Path

import torch
from qm9_toys import npz
from run_checks import numbers
from torch import multiprocessing
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ace_fast.train import cli, load, options, report, train
from ace_fast.train.progress import EpochProgress
from ace_fast.train.run import Run
from ace_fast.train.steps import Stepper
from ace_fast.train.tasks import nbody, qm9, sharded

FORK = multiprocessing.get_context("fork")  # imports are there already
SHARED = {"rotations": 1, "threads": 1, "eval_every": 1, "quiet": True, "epochs": 2}
NBODY = SHARED | {"num_train": 22, "num_valid": 8, "num_test": 8, "steps": 301, "frame_from": 0, "frame_to": 1,
                  "layers": 1, "train_samples": 22, "batch_size": 8, "hidden": 8}
QM9 = SHARED | {"task": "qm9", "target": "gap", "train_samples": 0, "eval_samples": 0, "layers": 1, "hidden": 8,
                "batch_size": 16, "epochs": 1}
STREAMED = {name: value for name, value in QM9.items() if name != "train_samples"}
FILES = ("best.safetensors", "weights.safetensors")


def start(function, *arguments):
    process = FORK.Process(target=function, args=arguments)
    process.start()
    return process


def ended(*processes, code=0):
    for process in processes:
        process.join(120)
        assert process.exitcode == code, f"exit code {process.exitcode}, not {code}"


def ranks(function, *arguments, world=2, code=0):
    """`function(*arguments)` in processes as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ended(*(start(_rank, rank, world, port, function, arguments) for rank in range(world)), code=code)


def _rank(rank, world, port, function, arguments):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port)}
    function(*arguments)


def compare(one, two, tolerance=0.0):
    """Two finished runs: every weight, gamma and multiplier, and the lines of the metrics where nothing may differ."""
    states = [Run(folder).load_state() for folder in (one, two)]
    for part in ("model", "relaxation"):
        for name, x in states[0][part].items():
            y = states[1][part][name]
            if isinstance(x, torch.Tensor) and x.is_floating_point() and x.numel():
                apart = float((x - y).abs().max()) / max(1.0, float(x.abs().max()))
                assert apart <= tolerance, (part, name, apart)
    if not tolerance:
        assert numbers(Run(one)) == numbers(Run(two))
        assert all((one / name).read_bytes() == (two / name).read_bytes() for name in FILES)


def together(folder):
    """Weights, gammas and multipliers of two processes are those of one with the same global batches, in float64.

    Of the first two one runs out of memory and goes on in pieces.

    22 trajectories in batches of 8 leave 6, 45 molecules of 2 to 6 atoms in batches of 16 leave 13. The same molecules
    from shards of 4.
    """
    data = str(npz(folder / "few.npz", count=60, listed=()))
    ended(start(_write_shards, data, folder / "shards"))
    cases = {
        "nbody": NBODY | {"accumulate": 2, "clip": 0.5, "epochs": 1},
        "schnet": QM9 | {"data": data, "model": "schnet", "filters": 4, "gaussians": 5, "sync_batch_norm": True},
        "shards": STREAMED | {"shards": str(folder / "shards"), "accumulate": 2},
    }
    for name, given in cases.items():
        one, two = folder / f"{name}-one", folder / f"{name}-two"
        ended(start(_train, one, given | {"dtype": "float64", "accumulate": 1}))
        ranks(_short_of_memory if name == "nbody" else _train, two, given | {"dtype": "float64"})
        compare(one, two, 1e-11)


def _write_shards(data, folder):
    config = options.make_config(qm9, options.DEFAULT_PRESET, {"data": data})
    assert [split for split, _ in sharded.write("qm9", qm9, config, folder, 4)] == list(sharded.SPLITS)


def _train(folder, given):
    train(folder, **given)


def refused(folder):
    """A wrong setting, or what one process alone does not find, stops both; one line says it, and no traceback."""
    for name, flags, teller, line in (("setting", ["--batch-size", "9"], 0, "--batch-size must be a multiple of 2"),
                                      ("data", [], 1, "train: no data")):
        ranks(_command, folder / name, flags, code=2)
        said = [(folder / f"{name}-{rank}").read_text() for rank in (0, 1)]
        assert said[1 - teller] == "" and said[teller].startswith("ace-fast: train: ") and line in said[teller], said
        assert said[teller].count("\n") == 1, said


def _command(folder, flags):
    def load(*_):
        if os.environ["RANK"] == "1":
            raise ValueError("train: no data here")

    nbody.load = load
    with open(f"{folder}-{os.environ['RANK']}", "w") as sys.stderr:
        code = cli.main(["train", "nbody", "--out", str(folder), *flags])
    os._exit(code)


def interrupted(folder):
    """Ctrl-C at one of two processes stops both after the same step; resumed, all is as if it had not been."""
    given = NBODY | {"ema": 0.9, "norm": "batch"}
    ranks(_train, folder / "whole", given)
    ranks(_stopped, folder / "run", given)
    assert Run(folder / "run").load_state()["step"] == 2
    ranks(_resume, folder / "run")
    compare(folder / "whole", folder / "run")


def _strike(after, number):
    """Process 1 sends itself a signal after so many steps."""
    plain = EpochProgress.step

    def step(self):
        plain(self)
        self.count = getattr(self, "count", 0) + 1
        if self.count == after and os.environ["RANK"] == "1":
            os.kill(os.getpid(), number)

    EpochProgress.step = step


def _stopped(folder, given):
    _strike(1, signal.SIGTERM)
    try:
        train(folder, **given)
    except KeyboardInterrupt as stop:
        assert "stopped after 2 steps" in str(stop)  # the next step tells the other process
    else:
        raise AssertionError("not stopped")


def _resume(folder):
    train(folder, resume=True, quiet=True)


def _short_of_memory(folder, given):
    """One process of the two can take a graph at a time."""
    plain = Stepper._found

    def found(self, batch, weight):
        if os.environ["RANK"] == "1" and batch.num_graphs > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(self, batch, weight)

    Stepper._found = found
    train(folder, **given)


def lost(folder):
    """A process that dies: torchrun starts all of them anew, and they go on from the last checkpoint."""
    given = NBODY | {"checkpoint_every": 1}
    ranks(_train, folder / "whole", given)
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2, max_restarts=1, start_method="fork",
                          monitor_interval=0.05, shutdown_timeout=5, rdzv_backend="c10d",
                          rdzv_endpoint="127.0.0.1:0", run_id="lost")
    elastic_launch(config, _dies_once)(str(folder / "run"), given)
    compare(folder / "whole", folder / "run")


def _dies_once(folder, given):
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        _strike(2, signal.SIGKILL)
    train(folder, **given)


def compiled(folder):
    """What inductor makes of the model trains as it does; batches of one size, as each other one is compiled anew."""
    given = NBODY | {"dtype": "float64", "epochs": 1, "train_samples": 16}
    for name in ("none", "inductor"):
        _train(folder / name, given | {"compile": name})
    compare(folder / "none", folder / "inductor", 1e-11)


def killed(folder, tries):
    """kill -9 at random moments, resumed until the run is done: readable after each, in the end the same to the bit.

    Of a run on data in memory, and of one that streams from shards.
    """
    ended(start(_write_shards, str(npz(folder / "few.npz", count=60, listed=())), folder / "shards"))
    shared = {"checkpoint_every": 2, "keep": 2, "ema": 0.9}
    _killed(folder / "memory", tries - tries // 2, NBODY | shared | {"epochs": 3})
    _killed(folder / "streamed", tries // 2, STREAMED | shared | {"shards": str(folder / "shards"), "epochs": 2})


def _killed(folder, tries, given):
    before = time.monotonic()
    ended(start(_train, folder / "whole", given))
    span, kills, number = time.monotonic() - before, 0, 0
    drawn = random.Random(os.urandom(8))
    while kills < tries:
        number += 1
        run = folder / f"run{number}"
        done = False
        while not done:
            process = start(*((_resume, run) if (run / "config.json").exists() else (_train, run, given)))
            process.join(drawn.uniform(0, span) if kills < tries else 120)
            process.kill()
            process.join()
            done = process.exitcode == 0  # or faster than the kill
            if not done:
                ended(process, code=-signal.SIGKILL)
                kills += 1
                _check_readable(run)
        compare(folder / "whole", run)
    print(f"{kills} kills of {number} runs ({folder.name}): all readable, all the same to the bit")


def _check_readable(folder):
    if (folder / "config.json").exists():
        run = Run(folder)
        run.about(), run.metrics(), run.load_state()
        for which, name in (("best", FILES[0]), ("last", FILES[1])):
            if (folder / name).exists():
                load(folder, which)


def main(folder, checks):
    warnings.simplefilter("ignore")  # Python's own, of forks
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    os.environ["ACE_FAST_DATA"] = str(folder / "cache")
    report.write = lambda run, result=None: None  # drawing takes most of the time of a tiny run
    for check in checks:
        name, _, tries = check.partition("=")
        place = folder / name
        place.mkdir(parents=True)
        known = {"together": together, "refused": refused, "interrupted": interrupted, "lost": lost,
                 "compiled": compiled, "killed": killed}
        known[name](place, *([int(tries)] if tries else []))
        print(name, "passed", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
