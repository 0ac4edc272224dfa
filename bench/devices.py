"""Data sheets of GPUs, and how many warps of a kernel fit on a multiprocessor."""

from typing import NamedTuple

REGISTERS = 65536  # of a multiprocessor, for all of these
# CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability": warps and blocks of a
# multiprocessor, bytes of its shared memory. A block takes 1 KiB for the system; registers come in 256 a warp, from one
# of four parts.
LIMITS = {80: (64, 32, 164 << 10), 86: (48, 16, 100 << 10), 89: (48, 24, 100 << 10), 90: (64, 32, 228 << 10)}
RESERVED, GRANULE, WARP, PARTS = 1 << 10, 256, 32, 4


class Device(NamedTuple):
    """What a data sheet says of one GPU."""

    name: str
    sm: int  # compute capability times ten
    multiprocessors: int
    clock_ghz: float  # boost
    bandwidth_gbs: float
    float32_gflops: float  # multiply-adds outside of the tensor cores

    @property
    def issue_ghz(self) -> float:
        """Instructions of warps that all schedulers issue, 1e9 a second: four a multiprocessor and cycle."""
        return 4 * self.multiprocessors * self.clock_ghz


# A5000: NVIDIA RTX A5000 datasheet (2021), NVIDIA Ampere GA102 whitepaper v2.
# 4090: NVIDIA Ada GPU Architecture whitepaper v2.1, table "GeForce RTX 4090".
# A100: NVIDIA A100 Tensor Core GPU datasheet (80 GB SXM, 2021) and A100 architecture whitepaper.
# H100, H200: NVIDIA H100 Tensor Core GPU datasheet and Hopper whitepaper (SXM5), NVIDIA H200 datasheet (SXM).
DEVICES = {
    "A5000": Device("NVIDIA RTX A5000", 86, 64, 1.695, 768, 27_770),
    "4090": Device("NVIDIA GeForce RTX 4090", 89, 128, 2.520, 1008, 82_580),
    "A100": Device("NVIDIA A100-SXM4-80GB", 80, 108, 1.410, 2039, 19_490),
    "H100": Device("NVIDIA H100 80GB HBM3", 90, 132, 1.980, 3350, 66_910),
    "H200": Device("NVIDIA H200", 90, 132, 1.980, 4800, 66_910),
}


def key(device_name: str | None) -> str | None:
    """The name in DEVICES of a device by what its driver calls it; None where it is another one."""
    return next((name for name in DEVICES if device_name and name in device_name.replace("-", " ").split()), None)


def resident_warps(sm: int, registers: int, threads: int, shared_bytes: int) -> int:
    """Warps of a kernel that a multiprocessor holds at once; the least of what registers, shared memory, the number of
    warps and that of blocks allow. 0 where a block does not fit."""
    most_warps, most_blocks, most_shared = LIMITS[sm]
    warps = -(-threads // WARP)
    of_a_warp = -(-registers * WARP // GRANULE) * GRANULE
    by_registers = PARTS * (REGISTERS // PARTS // of_a_warp) // warps if registers else most_blocks
    blocks = min(most_blocks, most_warps // warps, by_registers, most_shared // (shared_bytes + RESERVED))
    return blocks * warps
