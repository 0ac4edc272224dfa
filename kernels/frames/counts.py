"""Operations of principal axes, and of predicted frames with what they turn; see kernels/counts.py."""

from typing import Any

SWEEPS = 6
ROTATION = 43  # of Jacobi's: tangent 9, cosine and sine 5, two moments 4 and 1, two others 6, two axes 18
MOMENTS = 15  # of a point: its centroid 3, its place 3 and six products added
WEIGHTED = 7  # more where it has a weight
FRAME = 49  # two vectors' lengths and quotients, what is across twice, the third axis
TURN = {0: 0, 1: 15, 2: 89, 3: 307}  # of a channel: R v; R S R^T of one or three slices, to and from the tensor
GRADIENT = {0: 0, 1: 18, 2: 118, 3: 357}  # of R, and its sum
FRAME_GRADIENT = 120


def frames(inputs: dict[str, Any]) -> int:
    """Two passes over the points, Jacobi's rotations and the third axis of every set."""
    points, sets = inputs["pos"].shape[0], inputs["ptr"].shape[0] - 1
    return points * (MOMENTS + 3 + WEIGHTED * (inputs["weight"] is not None)) + sets * (3 * SWEEPS * ROTATION + 9 + 9)


def _turned(inputs: dict[str, Any], costs: dict[int, int]) -> int:
    """Of all channels of a set."""
    return sum(costs[l] for l in inputs["channels"][:, 1].tolist())


def _sets(inputs: dict[str, Any]) -> int:
    return inputs["seed"].shape[0] * inputs["vectors"].shape[0]


def frame_concat(inputs: dict[str, Any]) -> int:
    """Frames of the sets and their channels turned; rows only move."""
    return _sets(inputs) * (FRAME + _turned(inputs, TURN))


def frame_concat_bwd(inputs: dict[str, Any]) -> int:
    """The frames again; what stands beside the rows added up, turned back, and its product with the channels."""
    v, vectors = inputs["needs"]
    draws, width = inputs["seed"].shape[0], inputs["v"].shape[1]
    rows = inputs["g"].numel() if "g" in inputs else draws * inputs["x"].shape[0] * width
    own = FRAME + v * _turned(inputs, TURN) + vectors * (_turned(inputs, GRADIENT) + FRAME_GRADIENT)
    return rows + _sets(inputs) * own


FLOPS = {f.__name__: f for f in (frames, frame_concat, frame_concat_bwd)}
NEEDS = {"frame_concat": ("v", "vectors")}
