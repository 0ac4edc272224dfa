"""Several processes: what SyncBatchNorm and DistributedDataParallel make of a chain and of a model."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch has no gloo here")


def test_two_processes(tmp_path):
    """tests/two_processes.py has the checks; one interpreter that forks, as starting costs most."""
    script = Path(__file__).with_name("two_processes.py")
    run = subprocess.run([sys.executable, str(script), str(tmp_path / "store")], capture_output=True, text=True,
                         timeout=180)
    assert run.returncode == 0, run.stderr
