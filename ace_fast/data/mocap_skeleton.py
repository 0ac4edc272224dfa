"""Acclaim skeletons (.asf) and motions (.amc): their parsers, and where the joints are in each frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_NEEDED = (":root", ":bonedata", ":hierarchy")
_BONE = ("id", "name", "direction", "length", "axis", "dof")
_TURNS, _SHIFTS = ("rx", "ry", "rz"), ("tx", "ty", "tz")
_INCH = 2.54  # cm
_BLANKS = str.maketrans(",()", "   ")
_LEAST_DIRECTION = 1e-6  # a direction shorter than that is none

Rows = list[tuple[int, list[str]]]  # line numbers and words


class Skeleton(NamedTuple):
    """A tree of bones. A bone's joint is its far end; the root is joint 0, then come the bones as in the file.

    Attributes:
        joints: J names, in lower case; parents: [J] int64, -1 for the root.
        offsets: [J, 3], from the parent's joint in the base pose: direction times length, in the file's unit.
        axes: [J, 3, 3], the axes C of a bone's degrees of freedom, and the root's preset orientation.
        dofs: of each joint, in order: "rx", "ry", "rz", and for the root "tx", "ty", "tz".
        position: [3], the root's preset position.
        degrees: whether angles are in degrees.
        unit_cm: the file's unit of length, cm: an inch over `length` of its :units (CMU: 0.45, so 5.6444 cm).
    """

    joints: tuple[str, ...]
    parents: np.ndarray
    offsets: np.ndarray
    axes: np.ndarray
    dofs: tuple[tuple[str, ...], ...]
    position: np.ndarray
    degrees: bool
    unit_cm: float

    @property
    def bones(self) -> np.ndarray:
        """[J - 1, 2] int64, (joint, its parent)."""
        child = np.arange(1, len(self.joints))
        return np.stack([child, self.parents[child]], 1)


def rotation(axes: str, angles: np.ndarray) -> np.ndarray:
    """[..., 3, 3], the rotations by `angles` [..., len(axes)] (rad) about fixed axes, one after the other.

    "xyz" gives Rz Ry Rx.
    """
    angles = np.asarray(angles, dtype=np.float64)
    found = np.broadcast_to(np.eye(3), (*angles.shape[:-1], 3, 3))
    for k, axis in enumerate(axes):
        i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
        turn = np.zeros_like(found) + np.eye(3)
        turn[..., i, i] = turn[..., j, j] = np.cos(angles[..., k])
        turn[..., j, i] = np.sin(angles[..., k])
        turn[..., i, j] = -turn[..., j, i]
        found = turn @ found
    return found


def positions(skeleton: Skeleton, channels: np.ndarray) -> np.ndarray:
    r"""World positions of all joints, in the unit of the skeleton.

    .. math:: G_0 = C_0 M_0, \quad p_0 = s + t, \qquad
              G_j = G_{\pi(j)} C_j M_j C_j^{-1}, \quad p_j = p_{\pi(j)} + G_j o_j

    M turns by the frame's angles about fixed axes in the order of the degrees of freedom (rx ry rz: Rz Ry Rx), C by
    the bone's axis angles about x, y and z in the order of its letters; o is direction times length, s the preset
    position, t the root's shift.

    Args:
        skeleton: the tree.
        channels: [F, D], the values of all degrees of freedom in the order of the joints; angles in rad.

    Returns:
        [F, J, 3] float64.

    Source: Acclaim Skeleton File Definition 1.10 (1995); the positions of CMU's subjects in the data of EGNO.
    """
    ends = np.cumsum([0, *map(len, skeleton.dofs)])
    place = np.empty((len(channels), len(skeleton.joints), 3))
    turns: dict[int, np.ndarray] = {}
    for j in tree_order(skeleton.parents):
        mine, names, axes = channels[:, ends[j] : ends[j + 1]], skeleton.dofs[j], skeleton.axes[j]
        turning = [k for k, name in enumerate(names) if name in _TURNS]
        motion = rotation("".join(names[k][1] for k in turning), mine[:, turning])  # [F, 3, 3]
        parent = int(skeleton.parents[j])
        if parent < 0:
            turns[j] = axes @ motion
            place[:, j] = skeleton.position
            for k, name in enumerate(names):
                if name in _SHIFTS:
                    place[:, j, _SHIFTS.index(name)] += mine[:, k]
        else:
            turns[j] = turns[parent] @ (axes @ motion @ axes.T)
            place[:, j] = place[:, parent] + turns[j] @ skeleton.offsets[j]
    return place


def tree_order(parents: Sequence[int] | np.ndarray) -> list[int]:
    """The joints below the root in an order that has parents first; fewer than all where there is a cycle."""
    children: dict[int, list[int]] = {}
    for joint, parent in enumerate(parents):
        children.setdefault(int(parent), []).append(joint)
    found = list(children.get(-1, []))
    for joint in found:
        found += children.get(joint, [])
    return found


def read_asf(text: str, where: str) -> Skeleton:
    """The skeleton of an .asf file.

    Args:
        text: of the file; comments (#), commas and parentheses are passed over, and so are sections and keys that say
            nothing about positions (:name, :documentation, limits, masses).
        where: the file, for messages.

    Raises:
        ValueError: a section, bone or number that is missing or wrong, an unknown joint, one with two parents or none,
            a cycle; the message names file, line and joint.
    """
    sections = _sections(text, where)
    degrees, unit_cm = _units(sections.get(":units", []), where)
    scale = math.pi / 180 if degrees else 1.0
    position, root_axes, order = _root(sections[":root"], where, scale)
    joints, offsets, axes, dofs = ["root"], [np.zeros(3)], [root_axes], [order]
    for block in _blocks(sections[":bonedata"], where):
        name, offset, axis, dof = _bone(block, where, scale)
        if name in joints:
            raise _wrong(where, block["name"][0], f"name must be given once, got {name} twice")
        joints.append(name), offsets.append(offset), axes.append(axis), dofs.append(dof)
    parents = _parents(sections[":hierarchy"], joints, where)
    return Skeleton(tuple(joints), parents, np.array(offsets), np.array(axes), tuple(dofs), position, degrees, unit_cm)


def _wrong(where: str, line: int | None, what: str, remedy: str = "repair the file or get it anew") -> ValueError:
    return ValueError(f"mocap: {where}{'' if line is None else f', line {line}'}: {what}; {remedy}")


def _numbers(words: Sequence[str], count: int, where: str, line: int, what: str) -> list[float]:
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = []
    if len(values) != count or not all(map(math.isfinite, values)):
        many = "a finite number" if count == 1 else f"{count} finite numbers"
        raise _wrong(where, line, f"{what} must be {many}, got {' '.join(words)[:60] or 'nothing'}")
    return values


def _sections(text: str, where: str) -> dict[str, Rows]:
    found: dict[str, Rows] = {}
    rows: Rows = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#", 1)[0].translate(_BLANKS).split()
        if words and words[0].startswith(":"):
            rows = found.setdefault(words.pop(0).lower(), [])
        if words:
            rows.append((number, words))
    missing = [name for name in _NEEDED if name not in found]
    if missing:
        raise _wrong(where, None, f"the skeleton must have {', '.join(_NEEDED)}, got no {', '.join(missing)}",
                     "give a whole .asf file")
    return found


def _units(rows: Rows, where: str) -> tuple[bool, float]:
    """Whether angles are in degrees (as where nothing is said), and the unit of length, cm."""
    degrees, length = True, 1.0
    for number, (key, *words) in rows:
        if key.lower() == "angle":
            if not words or words[0].lower() not in ("deg", "rad"):
                raise _wrong(where, number, f"angle must be deg or rad, got {' '.join(words) or 'nothing'}")
            degrees = words[0].lower() == "deg"
        elif key.lower() == "length":
            (length,) = _numbers(words, 1, where, number, "length")
            if length <= 0:
                raise _wrong(where, number, f"length must be positive, got {length}")
    return degrees, _INCH / length


def _root(rows: Rows, where: str, scale: float) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Preset position, preset orientation [3, 3], and the order of the root's degrees of freedom."""
    given = {key.lower(): (number, words) for number, (key, *words) in rows}
    if "order" not in given:
        raise _wrong(where, None, "the root must have an order, got none")
    number, words = given["order"]
    order = _dofs(words, (*_SHIFTS, *_TURNS), where, number, "order of the root")
    position = np.zeros(3)
    if "position" in given:
        position = np.array(_numbers(given["position"][1], 3, where, given["position"][0], "position of the root"))
    number, axis = given.get("axis", (0, ["XYZ"]))
    number, angles = given.get("orientation", (number, ["0", "0", "0"]))
    return position, _axes([*angles, *axis], where, number, "orientation and axis of the root", scale), order


def _axes(words: Sequence[str], where: str, line: int, what: str, scale: float) -> np.ndarray:
    """[3, 3] for the angles about x, y and z, and the order in which they are turned."""
    *angles, order = words if len(words) > 3 else [*words, "XYZ"]
    if sorted(order.lower()) != ["x", "y", "z"]:
        raise _wrong(where, line, f"{what} must end with an order of the axes such as XYZ, got {order}")
    numbers = dict(zip("xyz", _numbers(angles, 3, where, line, f"the angles of {what}"), strict=True))
    return rotation(order.lower(), scale * np.array([numbers[axis] for axis in order.lower()]))


def _dofs(words: Sequence[str], known: Sequence[str], where: str, line: int, what: str) -> tuple[str, ...]:
    found = tuple(word.lower() for word in words)
    if len(set(found)) != len(found) or not set(found) <= set(known):
        raise _wrong(where, line, f"{what} must be of {' '.join(known)}, each once, got {' '.join(words)}",
                     "other degrees of freedom are not supported")
    return found


def _blocks(rows: Rows, where: str) -> list[dict[str, tuple[int, list[str]]]]:
    """What stands between each begin and end: key -> (line, words)."""
    found: list[dict[str, tuple[int, list[str]]]] = []
    block: dict[str, tuple[int, list[str]]] | None = None
    begun = 0
    for number, (word, *words) in rows:
        key = word.lower()
        if key == "begin" and block is None:
            block, begun = {}, number
        elif key == "end" and block is not None:
            missing = [name for name in ("name", "direction", "length", "axis") if name not in block]
            if missing:
                raise _wrong(where, begun, f"a bone must have name, direction, length and axis, got no "
                                           f"{', '.join(missing)}")
            found.append(block)
            block = None
        elif block is None or key in ("begin", *block):
            raise _wrong(where, number, f"a bone must stand between begin and end, with each key once, got {word}")
        elif key in _BONE:
            block[key] = number, words
    if block is not None:
        raise _wrong(where, begun, "a bone must close with end, got the end of the section")
    if not found:
        raise _wrong(where, None, "the skeleton must have bones, got none")
    return found


def _bone(block: dict[str, tuple[int, list[str]]], where: str, scale: float
          ) -> tuple[str, np.ndarray, np.ndarray, tuple[str, ...]]:
    line, words = block["name"]
    if len(words) != 1:
        raise _wrong(where, line, f"name must be one word, got {' '.join(words) or 'nothing'}")
    name = words[0].lower()
    line, words = block["direction"]
    direction = np.array(_numbers(words, 3, where, line, f"direction of {name}"))
    norm = np.linalg.norm(direction)
    at, words = block["length"]
    (length,) = _numbers(words, 1, where, at, f"length of {name}")
    if length < 0:
        raise _wrong(where, at, f"length of {name} must not be negative, got {length}")
    if length > 0 and norm < _LEAST_DIRECTION:
        raise _wrong(where, line, f"direction of {name} must not be zero where it has a length, got {length}")
    offset = direction * (length / norm) if length > 0 else np.zeros(3)
    line, words = block["axis"]
    axes = _axes(words, where, line, f"axis of {name}", scale)
    line, words = block.get("dof", (line, []))
    return name, offset, axes, _dofs(words, _TURNS, where, line, f"dof of {name}")


def _parents(rows: Rows, joints: Sequence[str], where: str) -> np.ndarray:
    """[J] int64, the parent of each joint, -1 for the root."""
    index, parents = {name: j for j, name in enumerate(joints)}, np.full(len(joints), -2)
    parents[0] = -1
    for number, words in rows:
        if words[0].lower() in ("begin", "end"):
            continue
        names = [word.lower() for word in words]
        unknown = [name for name in names if name not in index]
        if unknown:
            raise _wrong(where, number, f"a joint of the hierarchy must be root or a bone, got {unknown[0]}")
        for name in names[1:]:
            if parents[index[name]] != -2:
                had = "is the root" if name == "root" else f"has the parent {joints[parents[index[name]]]}"
                raise _wrong(where, number, f"a joint must have one parent, got {names[0]} for {name}, which {had}")
            parents[index[name]] = index[names[0]]
    check_tree(parents, joints, where)
    return parents


def check_tree(parents: np.ndarray, joints: Sequence[str], where: str) -> None:
    """Raises ValueError where a joint has no parent (-2), or one that leads round in a circle."""
    for j in np.flatnonzero(parents == -2):
        raise _wrong(where, None, f"each joint must have a parent, got none for {joints[j]}")
    below = set(tree_order(parents))
    circle = [name for j, name in enumerate(joints) if j not in below]
    if circle:
        raise _wrong(where, None, f"the joints must form a tree below {joints[int((parents == -1).argmax())]}, got a "
                                  f"cycle through {', '.join(circle[:4])}")


def read_amc(text: str, where: str, skeleton: Skeleton) -> tuple[np.ndarray, int]:
    """The motion of an .amc file for a skeleton.

    Args:
        text: of the file.
        where: the file, for messages.
        skeleton: its .asf; angles are in its unit unless the file says :DEGREES or :RADIANS.

    Returns:
        channels [F, D] as `positions` takes them, and the number of the first frame.

    Raises:
        ValueError: an unknown joint, wrong or missing numbers, frames or joints left out, a file that was cut off; the
            message names file, line, frame and joint.
    """
    motion, degrees = _Motion(where, skeleton), skeleton.degrees
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0].startswith(":"):
            degrees = {":degrees": True, ":radians": False}.get(words[0].lower(), degrees)
        elif len(words) == 1 and words[0].isdecimal():
            motion.begin(number, int(words[0]))
        else:
            motion.add(number, words)
    motion.close()
    if not motion.rows:
        raise _wrong(where, None, "the motion must have frames, got none", "give a whole .amc file")
    channels = np.array(motion.rows)
    if degrees:
        turning = [name in _TURNS for names in skeleton.dofs for name in names]
        channels[:, turning] *= math.pi / 180
    return channels, motion.first


class _Motion:
    """The frames of an .amc file as they come, checked."""

    def __init__(self, where: str, skeleton: Skeleton) -> None:
        self.where, self.rows, self.first, self.frame = where, [], 0, -1
        ends = np.cumsum([0, *map(len, skeleton.dofs)]).tolist()
        self._ends = dict(zip(skeleton.joints, zip(ends[:-1], ends[1:], strict=True), strict=True))
        self._moving = {name for name, (a, b) in self._ends.items() if b > a}
        self._width, self._seen, self._line = ends[-1], set(), 0

    def begin(self, line: int, frame: int) -> None:
        self.close()
        if self.rows and frame != self.frame + 1:
            raise _wrong(self.where, line, f"frame {self.frame} must be followed by frame {self.frame + 1}, got "
                                           f"{frame}", "get the file anew, or split it where frames are missing")
        if not self.rows:
            self.first = frame
        self.frame, self._seen, self._line = frame, set(), line
        self.rows.append([0.0] * self._width)

    def add(self, line: int, words: list[str]) -> None:
        name = words[0].lower()
        if not self.rows:
            raise _wrong(self.where, line, f"the motion must begin with the number of a frame, got {words[0]}",
                         "give a whole .amc file")
        if name not in self._ends:
            raise _wrong(self.where, line, f"frame {self.frame} must be of the joints of the skeleton, got {words[0]}",
                         "give the .asf file of the same subject")
        if name in self._seen:
            raise _wrong(self.where, line, f"frame {self.frame} must have each joint once, got {name} twice")
        first, last = self._ends[name]
        what = f"frame {self.frame}, joint {name}"
        if last == first and len(words) > 1:
            raise _wrong(self.where, line, f"{what} must have no numbers, as it has no degrees of freedom, got "
                                           f"{' '.join(words[1:])[:60]}", "give the .asf file of the same subject")
        self.rows[-1][first:last] = _numbers(words[1:], last - first, self.where, line, what)
        self._seen.add(name)

    def close(self) -> None:
        """Ends a frame."""
        missing = self._moving - self._seen
        if self.rows and missing:
            raise _wrong(self.where, self._line, f"frame {self.frame} must have all joints with degrees of freedom, "
                                                 f"got none of {', '.join(sorted(missing)[:4])}",
                         "where the file was cut off, get it anew or remove that frame")
