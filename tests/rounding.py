"""bfloat16 on GPU backends: computed in float32, rounded once."""

import torch

from ace_fast.kernels.cases import Case, cast, generator


def assert_rounded_once(case: Case, backend: str) -> None:
    """The results of a case in bfloat16 are those in float32 of the same numbers, rounded."""
    rounded = cast(case.inputs(generator()), case, torch.bfloat16)
    wide = {k: v.float() if isinstance(v, torch.Tensor) and v.dtype == torch.bfloat16 else v
            for k, v in rounded.items()}
    found, want = (case.op(*inputs.values(), backend) for inputs in (rounded, wide))
    for low, high in zip(*([t] if isinstance(t, torch.Tensor) else t for t in (found, want)), strict=True):
        assert low.dtype == torch.bfloat16
        if backend == "triton":  # where a GPU rounds, interpreted Triton cuts off
            assert ((low.float() - high).abs() <= 2**-7 * high.abs()).all()
        else:
            assert torch.equal(low, high.bfloat16())
