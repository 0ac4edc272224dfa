"""Shared settings: Triton interpreted and CUDA emulated on the CPU (tests/aot compiles), fresh outputs NaN-filled."""

import os
import sys
from pathlib import Path

_aot = any("aot" in argument for argument in sys.argv)
os.environ.setdefault("TRITON_INTERPRET", "0" if _aot else "1")
os.environ.setdefault("ACE_FAST_EMULATE", os.environ["TRITON_INTERPRET"])
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest  # noqa: E402
import torch  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def _deterministic():
    """An element that an operator forgets to write shows as NaN, a non-deterministic one raises."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def golden():
    """golden("segnn_nbody") -> {key: array} of the original code's numbers."""
    import numpy as np

    def load(name: str) -> dict:
        with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}

    return load


@pytest.fixture
def same_threads():
    """What a run sets with --threads is set back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory):
    """Prepared data are kept in a folder of the test module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACE_FAST_DATA", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def no_plots(monkeypatch):
    """Drawing takes most of the time of a tiny run."""
    from ace_fast.train import report

    monkeypatch.setattr(report, "write", lambda run, result=None: None)


@pytest.fixture
def small_classifier(monkeypatch):
    """The modelnet task trains cloud_toys.Small in place of VN-DGCNN."""
    from cloud_toys import Small

    from ace_fast import models

    monkeypatch.setattr(models, "VNDGCNN", Small)


@pytest.fixture(scope="module")
def modelnet_run(tmp_path_factory):
    """A finished run of the modelnet task with cloud_toys.Small."""
    from cloud_toys import TINY, Small

    from ace_fast import models
    from ace_fast.train import train

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "VNDGCNN", Small)
        return train(tmp_path_factory.mktemp("runs") / "finished", task="modelnet", quiet=True, **TINY)
