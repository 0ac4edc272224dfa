"""Several processes, and one that is killed: tests/training_processes.py has the checks."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch has no gloo here")


def test_processes_train_together_and_survive(tmp_path):
    script = Path(__file__).with_name("training_processes.py")
    checks = ("together", "refused", "interrupted", "lost", "killed=5")
    run = subprocess.run([sys.executable, str(script), str(tmp_path), *checks], capture_output=True, text=True,
                         timeout=400)
    assert run.returncode == 0, run.stdout + run.stderr
