"""What the tests of every task ask of its runs and of its command line."""

import os
import signal

import pytest
import torch

from ace_fast.train import cli, options, train
from ace_fast.train.progress import EpochProgress
from ace_fast.train.run import Run


def numbers(run: Run) -> list[dict]:
    """The measured lines of a run without their times."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in run.metrics()]


def interrupt_at(monkeypatch, step: int) -> None:
    """Sends Ctrl-C after `step` steps of the training that follows."""
    plain, count = EpochProgress.step, [0]

    def counting(self):
        plain(self)
        count[0] += 1
        if count[0] == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(EpochProgress, "step", counting)


def check_resuming(folder, step: int, **given) -> None:
    """Stopped by Ctrl-C after `step` steps and resumed, a run ends as it would have, to the last bit."""
    whole = train(folder / "whole", **given)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, step)
        said = f"stopped after {step} steps.*ace-fast train {given['task']} --resume"
        with pytest.raises(KeyboardInterrupt, match=said):
            train(folder / "run", **given)
    stopped = Run(folder / "run")
    assert stopped.load_state()["step"] == step and not stopped.evaluation()
    torch.manual_seed(1)
    resumed = train(folder / "run", resume=True, quiet=True)
    assert numbers(resumed) == numbers(whole) and resumed.evaluation() == whole.evaluation()
    for name in ("best.safetensors", "weights.safetensors"):
        assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def check_help(name: str, task, capsys) -> None:
    """`ace-fast train NAME --help` has every option with its default, and every preset."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", name, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0 and set(task.PRESETS) == set(task.PRESET_HELP)
    for option, setting in task.OPTIONS.items():
        default = "empty" if setting.default == "" else setting.default
        assert options.flag(option) in text and f"(default: {default})" in text
    assert all(f"{preset}:" in text for preset in task.PRESETS)
