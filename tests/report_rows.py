"""Rows as the benchmarks write them, small: two devices, an error, a missing peer, a projection, a scaling curve."""

ABOUT = {"device": "cpu", "device_name": "Some(R) Processor", "threads": 2, "dtype": "float32", "torch": "2.13.0",
         "revision": "abc123", "memory_method": "m"}
GPU = ABOUT | {"device": "cuda", "device_name": "NVIDIA H200", "threads": 1}


def step(case="batch100", **changed):
    """A row of the workload nbody_segnn."""
    return ABOUT | {
        "workload": "nbody_segnn", "case": case, "graphs": 100, "nodes": 500, "edges": 2000, "noise": 0.02,
        "eager_ms": 160.0, "eager_q20_ms": 150.0, "eager_q80_ms": 170.0, "eager_mb": 115.0,
        "compiled_ms": None, "compiled_reason": "not asked for (--no-compile)",
        "fast_ms": 40.0, "fast_q20_ms": 39.0, "fast_q80_ms": 42.0, "fast_mb": 38.0, "fast_plain_adam_ms": 50.0,
        "eager_max_relative_error": 4e-7, "fast_max_relative_error": 5e-7, "speedup": 4.0,
    } | changed


def product(case="mace@5000", **changed):
    """A row of the protocol O1."""
    return ABOUT | {
        "protocol": "O1", "case": case, "direction": "forward", "noise": 0.01, "eager_ms": 20.0, "fast_ms": 4.0,
        "cuequivariance_ms": 8.0, "openequivariance_ms": None, "openequivariance_reason": "it takes CUDA tensors",
        "flops": 4e8, "bytes": 4e7, "gflops": 100.0, "gbs": 10.0, "roofline_percent": 50.0, "fast_mb": 3.0,
        "eager_max_relative_error": 1e-7, "fast_max_relative_error": 2e-7, "cuequivariance_max_relative_error": 1e-6,
    } | changed


def operator(case="nbody_100", **changed):
    """A row of the operator segment_sum."""
    return ABOUT | {
        "op": "segment_sum", "case": case, "backend": "cpu", "direction": "forward", "ms": 1.0, "reference_ms": 2.0,
        "speedup": 2.0, "noise": 0.05, "flops": 1e6, "bytes": 4e7, "gflops": 1.0, "gbs": 40.0, "roofline_percent": 80.0,
        "peak_mb": 1.5, "max_relative_error": 1e-7,
    } | changed


def scaling():
    """A curve over the edges."""
    return [ABOUT | {"suite": "scaling", "op": "segment_sum", "backend": "cpu", "case": f"e{size}", "axis": "edges",
                     "size": size, "direction": "forward", "ms": size / 1e4, "peak_mb": size / 1e5, "exponent": 1.01,
                     "expected_exponent": 1.0, "memory_exponent": None} for size in (1000, 10_000, 100_000)]


def rates():
    """What a machine was measured to do."""
    return ABOUT | {"suite": "roofline", "op": "roofline", "case": "float64", "dtype": "float64", "copy_gbs": 50.0,
                    "fma_gflops": 240.0, "matmul_gflops": None}


def deciders():
    """A row of `ace-fast compare` with two deciders and a strict model."""
    row = ABOUT | {"workload": "nbody_relaxation", "case": "batch10", "epochs": 2, "seeds": 2, "noise": 0.03,
                   "command": "ace-fast compare nbody --seeds 2"}
    for name, test in (("ace", 0.2), ("per", 0.3), ("strict", 0.4)):
        row |= {f"{name}_ms": 5.0, f"{name}_q20_ms": 4.0, f"{name}_q80_ms": 6.0, f"{name}_model": "strict",
                f"{name}_test": test, f"{name}_test_std": 0.01, f"{name}_equivariance": 1e-6}
    return row


def everything():
    return [
        step(), step("batch1000", graphs=1000, eager_ms=1600.0, fast_ms=390.0, compiled_ms=1000.0),
        step("batch10", fast_ms=158.0, speedup=1.01, noise=0.05),
        step("batch7", fast_ms=None, eager_ms=None, error="RuntimeError: boom"),
        step(workload="knn", case="8x300_3", clouds=8),
        product(), product("wrong<b>@5000", fast_ms=None, error="fast: wrong: output is wrong: 1e-3 > 1e-6"),
        product("third@5000"), operator(), operator("qm9", backend="triton", ms=None, skipped="needs 9 GiB"),
        *scaling(), deciders(), rates(),
        GPU | {k: v for k, v in step().items() if k not in ABOUT} | {"graph_ms": 8.0},
        GPU | {k: v for k, v in operator().items() if k not in ABOUT} | {"backend": "triton"},
        GPU | {k: v for k, v in operator().items() if k not in ABOUT} | {"backend": "cuda", "ms": 0.25},
        GPU | {"op": "segment_sum", "case": "nbody_100", "backend": "triton", "direction": "forward", "ms": 2.0,
               "device_name": "NVIDIA GeForce RTX 4090", "projected": True, "flops": 1e6, "bytes": 4e7,
               "error_factor": 1.5, "error_factor_q90": 2.8},
    ]
