"""Acclaim files: positions in closed form and of CMU's subject 35, and what is wrong with a file."""

import math

import numpy as np
import pytest
from mocap_toys import HIERARCHY_35, MOTION_35_02, SHARED, SUBJECT_35, amc, asf, motion

from ace_fast.data.mocap_files import read_motion
from ace_fast.data.mocap_skeleton import positions, read_amc, read_asf, rotation

ARM = "upper 1 0 0 2 0 0 0 rz\nlower 1 0 0 1 0 0 0 rz"


def turned(axis, degrees):
    """A rotation matrix, written out."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array({"x": [[1, 0, 0], [0, c, -s], [0, s, c]], "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
                     "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]]}[axis])


def moved(skeleton, *lines, header=":DEGREES"):
    """[J, 3], the joints in one frame."""
    return read_motion("\n".join([header, "1", *lines]), "one.amc", skeleton)[0]


def test_an_arm_of_two_bones():
    skeleton = read_asf(asf(ARM, "root upper\nupper lower"), "arm.asf")
    a, b = math.radians(30), math.radians(50)
    found = moved(skeleton, "root 3 4 5 0 0 0", "upper 30", "lower 20")
    elbow = np.array([3 + 2 * math.cos(a), 4 + 2 * math.sin(a), 5])
    np.testing.assert_allclose(found, [[3, 4, 5], elbow, elbow + [math.cos(b), math.sin(b), 0]], atol=1e-14)
    assert skeleton.joints == ("root", "upper", "lower") and skeleton.bones.tolist() == [[1, 0], [2, 1]]


def test_a_bone_turns_about_its_own_axes():
    skeleton = read_asf(asf("bone 1 0 0 2 0 0 90 rx", "root bone"), "bone.asf")
    found = moved(skeleton, "root 0 0 0 0 0 0", "bone 40")  # its x axis is the world's y axis
    np.testing.assert_allclose(found[1], 2 * turned("y", 40)[:, 0], atol=1e-14)


@pytest.mark.parametrize(("order", "wanted"), [("XYZ", ["z", "y", "x"]), ("ZYX", ["x", "y", "z"]),
                                               ("yxz", ["z", "x", "y"])])
def test_axes_are_turned_in_their_order(order, wanted):
    angles = {"x": 10, "y": 20, "z": 30}
    skeleton = read_asf(asf("bone 0.6 0 -0.8 1 10 20 30 rx", "root bone", order=order), "bone.asf")
    matrix = np.linalg.multi_dot([turned(axis, angles[axis]) for axis in wanted])
    np.testing.assert_allclose(skeleton.axes[1], matrix, atol=1e-15)
    mine = rotation(order.lower(), np.radians([angles[axis] for axis in order.lower()]))
    np.testing.assert_allclose(mine, matrix, atol=1e-15)
    found = moved(skeleton, "root 0 0 0 0 0 0", "bone 70")
    np.testing.assert_allclose(found[1], matrix @ turned("x", 70) @ matrix.T @ [0.6, 0, -0.8], atol=1e-14)


def test_degrees_of_freedom_act_in_their_order():
    skeleton = read_asf(asf("bone 0 1 0 3 0 0 0 ry rx", "root bone", root="order RZ TY RX TX\naxis XYZ"), "bone.asf")
    found = moved(skeleton, "root 10 7 20 5", "bone 30 40")
    np.testing.assert_allclose(found[0], [5, 7, 0])
    matrix = turned("x", 20) @ turned("z", 10) @ turned("x", 40) @ turned("y", 30)
    np.testing.assert_allclose(found[1] - found[0], matrix @ [0, 3, 0], atol=1e-14)


def test_radians_units_and_the_preset_root():
    root = "order TX TY TZ RX RY RZ\naxis XYZ\nposition 1 2 3\norientation 0 0 1.5"
    text = asf("bone 1 0 0 2 0 0 0.5 rx", "root bone", "length 2.54\nangle rad", root)
    skeleton = read_asf(text, "bone.asf")
    assert not skeleton.degrees and skeleton.unit_cm == pytest.approx(1.0)
    for header, factor in (("", 1), (":RADIANS", 1), (":DEGREES", 180 / math.pi)):
        found = moved(skeleton, f"root 1 1 1 0 0 {0.2 * factor}", f"bone {0.7 * factor}", header=header)
        own = turned("z", math.degrees(0.5))
        local = own @ turned("x", math.degrees(0.7)) @ own.T
        wanted = [2, 3, 4] + turned("z", math.degrees(1.7)) @ local @ [2, 0, 0]
        np.testing.assert_allclose(found, [[2, 3, 4], wanted], atol=1e-14)


def test_comments_case_and_order_do_not_matter():
    plain = read_asf(asf(), "a.asf")
    text = asf(hierarchy="trunk arm  # the arm\nroot, (trunk leg)").replace("name arm", "NAME Arm")
    other = read_asf(text.replace(":bonedata", ":BONEDATA").replace("\n", "\r\n"), "b.asf")
    for mine, theirs in zip(plain, other, strict=True):
        assert np.array_equal(mine, theirs) if isinstance(mine, np.ndarray) else mine == theirs
    frames = amc(motion(3))
    np.testing.assert_array_equal(read_motion(frames, "a.amc", plain),
                                  read_motion(frames.replace("leg", "LEG").replace("\n", "\r\n"), "b.amc", other))
    assert read_amc(frames.replace("\n1\n", "\n# a comment\n\n1\n"), "c.amc", plain)[1] == 1
    assert read_amc(amc(motion(3), first=17), "d.amc", plain)[1] == 17


def test_bone_lengths_are_those_of_the_file():
    skeleton = read_asf(asf(), "walker.asf")
    found = read_motion(amc(motion(50)), "walker.amc", skeleton)
    child, parent = skeleton.bones.T
    lengths = np.linalg.norm(found[:, child] - found[:, parent], axis=-1)
    np.testing.assert_allclose(lengths, np.broadcast_to([2, 1.5, 3], (50, 3)), rtol=1e-14)


@pytest.fixture(scope="module")
def subject():
    return read_asf(asf(SUBJECT_35, HIERARCHY_35), "35.asf")


def test_cmu_positions(subject):
    """Two frames of 35_02 against the positions of an independent conversion (float32)."""
    found = read_motion(MOTION_35_02, "35_02.amc", subject)
    assert found.shape == (2, 31, 3) and subject.unit_cm == pytest.approx(2.54 / 0.45)
    np.testing.assert_allclose(found[0, 0], [4.58243, 18.1359, -25.7257])
    file = SHARED / "mocap_walk.npz"
    if not file.exists():
        pytest.skip("shared/data is not beside this checkout")
    with np.load(file) as data:
        k = data["trial"].tolist().index("35_02")
        assert data["first_frame"][k] == 20 and tuple(data["joint_names"]) == subject.joints
        np.testing.assert_array_equal(data["edges"], subject.bones)
        np.testing.assert_allclose(found, data["pos"][data["offsets"][k] :][:2], atol=2e-5)


@pytest.mark.skipif(not (SHARED / "mocap_walk.npz").exists(), reason="shared/data is not beside this checkout")
@pytest.mark.parametrize("name", ["walk", "run", "subject49"])
def test_converted_data_have_the_skeletons_bones(subject, name):
    with np.load(SHARED / f"mocap_{name}.npz") as data:
        pos, edges = data["pos"].astype(np.float64), data["edges"]
    np.testing.assert_array_equal(edges, subject.bones)
    lengths = np.linalg.norm(pos[:, edges[:, 0]] - pos[:, edges[:, 1]], axis=-1)
    np.testing.assert_allclose(lengths, np.broadcast_to(lengths[0], lengths.shape), atol=2e-5)
    if name == "walk":
        np.testing.assert_allclose(lengths[0], np.linalg.norm(subject.offsets[1:], axis=1), atol=2e-5)
    # a skeleton of these lengths, in the directions of one frame, is in that pose without turns
    rest = pos[0, edges[:, 0]] - pos[0, edges[:, 1]]
    rows = [f"{name} {' '.join(map(repr, x.tolist()))} {float(np.linalg.norm(x))!r} 0 0 0 rx ry rz"
            for name, x in zip(subject.joints[1:], rest, strict=True)]
    skeleton = read_asf(asf("\n".join(rows), HIERARCHY_35), "made.asf")
    channels = np.zeros((1, 6 + 3 * 30))
    channels[0, :3] = pos[0, 0]
    np.testing.assert_allclose(positions(skeleton, channels)[0], pos[0], atol=1e-12)


CUT = asf().replace("     length 1.5\n", "")


@pytest.mark.parametrize(("text", "message"), [
    ("", "a.asf: the skeleton must have :root, :bonedata, :hierarchy, got no :root, :bonedata, .*; give"),
    (asf()[:400], "a.asf.* must .*, got"),
    (CUT, r"a.asf, line 27: a bone must have name, direction, length and axis, got no length"),
    (asf(units="angle grad"), "line 6: angle must be deg or rad, got grad"),
    (asf(units="length 0"), "line 6: length must be positive, got 0.0"),
    (asf(root="axis XYZ"), "a.asf: the root must have an order, got none"),
    (asf(root="order TX TY TZ RX RX RZ"), "order of the root must be of tx ty tz rx ry rz, each once, got TX TY"),
    (asf("trunk 0 1 0 2 0 0 0 tx", "root trunk"), "dof of trunk must be of rx ry rz, each once, got tx; other degrees"),
    (asf("trunk 0 nan 0 2 0 0 0", "root trunk"), "line 19: direction of trunk must be 3 finite numbers, got 0 nan 0"),
    (asf("trunk 0 0 0 2 0 0 0", "root trunk"), "direction of trunk must not be zero where it has a length, got 2.0"),
    (asf("trunk 0 1 0 -2 0 0 0", "root trunk"), "length of trunk must not be negative, got -2.0"),
    (asf("trunk 0 1 0 two 0 0 0", "root trunk"), "length of trunk must be a finite number, got two"),
    (asf(order="XYY"), "axis of trunk must end with an order of the axes such as XYZ, got XYY"),
    (asf("arm 0 1 0 1 0 0 0\narm 0 1 0 1 0 0 0", "root arm"), "line 25: name must be given once, got arm twice"),
    (asf().replace("  end\n  begin", "  begin", 1), "a bone must stand between begin and end, .*, got begin"),
    (asf(hierarchy="root trunk leg wing\ntrunk arm"), "a joint of the hierarchy must be root or a bone, got wing"),
    (asf(hierarchy="root trunk leg"), "a.asf: each joint must have a parent, got none for arm"),
    (asf(hierarchy="root trunk leg arm\ntrunk arm"), "one parent, got trunk for arm, which has the parent root"),
    (asf(hierarchy="root leg\ntrunk root arm"), "got trunk for root, which is the root"),
    (asf(hierarchy="root leg\ntrunk arm\narm trunk"), "must form a tree below root, got a cycle through trunk, arm"),
])
def test_wrong_skeletons_are_named(text, message):
    with pytest.raises(ValueError, match=f"mocap: {message}" if message.startswith("a.asf") else message):
        read_asf(text, "a.asf")


GOOD = amc(motion(3))


@pytest.mark.parametrize(("text", "message"), [
    ("", "a.amc: the motion must have frames, got none; give a whole .amc file"),
    (GOOD.replace("\n2\n", "\n4\n"), "a.amc, line 9: frame 1 must be followed by frame 2, got 4; get the file anew"),
    (GOOD.replace("leg", "tail"), "a.amc, line 8: frame 1 must be of the joints of the skeleton, got tail; give the"),
    (GOOD.replace("trunk", "trunk 1 "), "a.amc, line 6: frame 1, joint trunk must be 3 finite numbers, got 1 "),
    (GOOD.rsplit(" ", 1)[0], "a.amc, line 18: frame 3, joint leg must be 2 finite numbers, got "),
    ("\n".join(GOOD.splitlines()[:-1]), "a.amc, line 14: frame 3 must have all joints .*, got none of leg; where the "),
    (GOOD.replace("\narm", "\narm nan #"), "line 7: frame 1, joint arm must be a finite number, got nan # "),
    (GOOD.replace("\narm", "\ntrunk 1 2 3\narm"), "line 7: frame 1 must have each joint once, got trunk twice"),
    ("root 0 0 0 0 0 0\n", "line 1: the motion must begin with the number of a frame, got root"),
])
def test_wrong_motions_are_named(text, message):
    skeleton = read_asf(asf(), "a.asf")
    with pytest.raises(ValueError, match=message):
        read_amc(text, "a.amc", skeleton)


def test_a_joint_that_cannot_move_has_no_numbers(subject):
    text = MOTION_35_02.replace("lowerback 12.5393", "lhipjoint 1\nlowerback 12.5393")
    with pytest.raises(ValueError, match="frame 20, joint lhipjoint must have no numbers, .* got 1; give the .asf"):
        read_amc(text, "a.amc", subject)
