"""What the suite of products measures, by name: `L3` or `L3_C16@1024`, and `grid_`, `cp_` and `forms_` before it."""

import re
from collections.abc import Iterator
from typing import NamedTuple

QUICK = 2  # degrees with --quick, on a sixteenth of the rows


class Group(NamedTuple):
    """Cases of one kind: degrees 1..most, for each number of channels."""

    most: int
    channels: tuple[int, ...]
    rows: tuple[int, ...]  # by degree, the last for all above; or how many numbers an input holds, where `numbers`
    numbers: bool = False
    on_cpu: int = 99  # of the degrees, those that run by themselves on a CPU and on a GPU
    on_gpu: int = 99

    def rows_of(self, lmax: int, channels: int) -> int:
        """The rows of a case that names none."""
        if self.numbers:
            return max(1, self.rows[0] // (channels * (lmax + 1) ** 2))
        return self.rows[min(lmax, len(self.rows)) - 1]


GROUPS = {
    "layers": Group(10, (16,), (2**19,), True),
    "grid": Group(10, (1, 64), (10_000,), on_cpu=6),
    "cp": Group(4, (64,), (10_000, 10_000, 4_000, 2_000)),
    "forms": Group(16, (16,), (2**18,), True, on_gpu=0),  # a GPU takes one form
}


class Case(NamedTuple):
    """C channels of 0e+1e+...+Le in both inputs and the result, so many rows; its name is `str`."""

    group: str
    lmax: int
    channels: int
    rows: int

    def __str__(self) -> str:
        prefix = "" if self.group == "layers" else f"{self.group}_"
        return f"{prefix}L{self.lmax}_C{self.channels}@{self.rows}"


def cases(named: str | None = None, quick: bool = False, device: str = "cpu") -> Iterator[Case]:
    """The cases of a group, the one case that is named, or all that run on this device.

    Raises:
        ValueError: no group and no case.
    """
    if named and named not in GROUPS:
        yield parse(named)
        return
    for name in [named] if named else GROUPS:
        group = GROUPS[name]
        most = min(group.most, group.on_cpu if device == "cpu" else group.on_gpu, QUICK if quick else group.most)
        for channels in group.channels:
            for lmax in range(1, 1 + most):
                rows = group.rows_of(lmax, channels)
                yield Case(name, lmax, channels, max(1, rows // 16) if quick else rows)


def parse(case: str) -> Case:
    """The case of a name; channels and rows may be left out.

    Raises:
        ValueError: no case of this suite.
    """
    found = re.fullmatch(r"(?:(grid|cp|forms)_)?L([1-9]\d*)(?:_C([1-9]\d*))?(?:@([1-9]\d*))?", case)
    group = GROUPS[found[1] or "layers"] if found else None
    if group is None or int(found[2]) > group.most:
        known = ", ".join(f"{'' if name == 'layers' else f'{name}_'}L1 to L{g.most}" for name, g in GROUPS.items())
        raise ValueError(f"products: the case must be {', '.join(GROUPS)}, {known}, or L2_C16@1000 with channels and "
                         f"rows, got {case!r}")
    lmax, channels = int(found[2]), int(found[3] or group.channels[-1])
    return Case(found[1] or "layers", lmax, channels, int(found[4] or group.rows_of(lmax, channels)))
