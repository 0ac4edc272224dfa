"""Every room's cuda.cu, compiled for four GPUs without one: registers, spills, shared memory as ptxas reports them."""

import os

import pytest

from ace_fast.kernels import nvcc
from ace_fast.kernels.aot import CAPABILITIES, table

if nvcc.why_not():
    if "nvcc" in os.environ.get("ACE_FAST_REQUIRE", "").split(","):
        pytest.fail(nvcc.why_not(), pytrace=False)
    pytest.skip(nvcc.why_not(), allow_module_level=True)

SPILLING = """
template <int n>
__global__ void crowded_kernel(const float* x, float* y) {
  float v[n];
#pragma unroll
  for (int i = 0; i < n; ++i) v[i] = x[i * 32 + threadIdx.x];
  float sum = 0;
#pragma unroll
  for (int i = 0; i < n; ++i) sum += v[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < n; ++i) y[i * 32 + threadIdx.x] = v[i] * sum;
}
void launch(const float* x, float* y) { crowded_kernel<400><<<1, 32>>>(x, y); }
"""


@pytest.mark.parametrize("room", nvcc.rooms())
def test_room_kernels_fit(room, pytestconfig):
    found = nvcc.compile_rooms([room])
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{table([report for group in found.values() for report in group])}")
    for sm in CAPABILITIES:
        assert found[room, sm], f"kernels/{room}/cuda.cu has no kernel"
        assert [line for report in found[room, sm] for line in nvcc.over(report)] == []


def test_spills_are_found(tmp_path):
    source = tmp_path / "cuda.cu"
    source.write_text(SPILLING)
    (report,) = nvcc.compile_source(source, [80])
    assert report.kernel == "crowded_kernel<400>"
    assert report.registers == 255
    assert nvcc.over(report)[0].startswith("crowded_kernel<400> on sm_80 spills ")


def test_static_shared_memory_is_found(tmp_path):
    source = tmp_path / "cuda.cu"
    source.write_text("""
__global__ void __launch_bounds__(192) wide_kernel(float* x) {
  __shared__ float y[4096];
  y[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = y[255 - threadIdx.x];
}""")
    (report,) = nvcc.compile_source(source, [80], threads=True)
    assert report.threads == 192
    assert nvcc.over(report)[0].endswith("on sm_80 has 16384 bytes of static shared memory, allowed 8192")


def test_what_does_not_compile_is_named(tmp_path):
    source = tmp_path / "cuda.cu"
    source.write_text("__global__ void k() { nothing(); }")
    with pytest.raises(RuntimeError, match=r'(?s)cuda.cu does not compile for sm_80,sm_90:.*"nothing" is undef'):
        nvcc.compile_source(source, [80, 90])


def test_command_line(capsys):
    assert nvcc.main(["segment_sum", "--sm", "80"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["kernel", "sm", "registers", "spills", "shared", "seconds"]
    assert any(line.startswith("segment_sum_fwd_kernel<float, 4>") for line in lines)
