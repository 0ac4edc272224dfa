"""A training step that a CUDA graph may hold: nothing waits for the device, and a captured step is an eager one."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ace_fast.relaxation import ACE
from bench import nbody_segnn, qm9_segnn, steps

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
# reading a value, or a result whose size depends on values: both wait on a GPU
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "repeat_interleave", "bincount")


class _Waits(TorchDispatchMode):
    """Operators that wait for the device, where a GPU is."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1]
        if name.startswith(WAITING):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def ready(workload, case: str, device: str):
    """Model, what its step needs, and the loss."""
    data = workload.load(case, device, torch.float32)
    task = workload.TASK
    model = steps.build(lambda: task.model(task.fast), torch.float32, data.state, device)
    return model, lambda call: task.loss(call(data.graph), data.graph, data.target)


@pytest.mark.parametrize("options", [{}, {"bound": "spectral", "augmentation": 1.0},
                                     {"snap": True, "groups": {"layers.0.*": {"mode": "resilient"}}, "warmup": 9}],
                         ids=str)
@pytest.mark.parametrize("workload", [nbody_segnn, qm9_segnn], ids=lambda w: w.__name__)
def test_a_step_waits_for_nothing(workload, options):
    model, loss_of = ready(workload, "batch2", "cpu")
    ace = ACE(model, **options)
    step = steps.fast_step(model, loss_of, lambda parameters: torch.optim.SGD(parameters, lr=1e-3), ace)
    step()
    with _Waits() as waits:
        step()
    assert waits.found == []


def test_waiting_is_noticed():
    with _Waits() as waits:
        torch.ones(1).item()
    assert waits.found == ["_local_scalar_dense"]


@needs_gpu
@pytest.mark.parametrize("options", [{}, {"gamma_optimizer": "adam", "bound": "spectral"}, {"snap": True}], ids=str)
@pytest.mark.parametrize("workload", [nbody_segnn, qm9_segnn], ids=lambda w: w.__name__)
def test_a_captured_step_is_an_eager_one(workload, options):
    """After the same number of steps: parameters, gammas, multipliers."""
    results = []
    for captured in (False, True):
        model, loss_of = ready(workload, "batch8", "cuda")
        ace = ACE(model, **options)
        adam = lambda parameters: torch.optim.Adam(parameters, lr=1e-3, fused=True, capturable=True)  # noqa: E731
        step = steps.fast_step(model, loss_of, adam, ace)
        if captured:
            step = steps.graphed(step, warmup=3)  # the capture itself runs nothing
        else:
            for _ in range(3):
                step()
        losses = torch.stack([step().clone() for _ in range(5)])
        state = {name: p.detach().clone() for name, p in model.named_parameters()}
        results.append(state | {"loss": losses, "multipliers": ace.multipliers})
    assert results[0]["multipliers"].abs().min() > 0
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


@needs_gpu
def test_a_replay_reads_the_batch_that_was_copied_in():
    x = torch.ones(4, device="cuda")
    replay = steps.graphed(lambda: 2 * x)
    x.fill_(3)
    assert replay().tolist() == [6.0] * 4
