"""Skeletons and motions for tests: subject 35 of CMU's database, and small generated ones."""

import math
from pathlib import Path

import numpy as np

SHARED = Path(__file__).parents[2] / "shared" / "data"

# Name, direction, length, axis, degrees of freedom: 35.asf of the CMU Graphics Lab Motion Capture Database
# (mocap.cs.cmu.edu; created with funding from NSF EIA-0196217), numbers below 1e-10 as 0.
SUBJECT_35 = """
lhipjoint 0.673618 -0.716094 0.182886 2.63917 0 0 0
lfemur 0.34202 -0.939693 0 7.41015 0 0 20 rx ry rz
ltibia 0.34202 -0.939693 0 7.92551 0 0 20 rx
lfoot 0.0786834 -0.216181 0.973178 2.28657 -90 0 20 rx rz
ltoes 0 0 1 1.14687 -90 0 20 rx
rhipjoint -0.630561 -0.752002 0.192056 2.51315 0 0 0
rfemur -0.34202 -0.939693 0 7.61317 0 0 -20 rx ry rz
rtibia -0.34202 -0.939693 0 7.99175 0 0 -20 rx
rfoot -0.109419 -0.300625 0.947445 2.34126 -90 0 -20 rx rz
rtoes 0 0 1 1.16381 -90 0 -20 rx
lowerback 0.0168077 0.993836 -0.109583 2.02862 0 0 0 rx ry rz
upperback 0.0170634 0.999844 0.00461437 2.03044 0 0 0 rx ry rz
thorax 0.00813305 0.998421 0.0555897 2.05762 0 0 0 rx ry rz
lowerneck -0.00127547 0.992596 0.121455 1.7173 0 0 0 rx ry rz
upperneck 0.0144921 0.991716 -0.127628 1.73779 0 0 0 rx ry rz
head 0.00161449 0.998411 -0.0563246 1.74399 0 0 0 rx ry rz
lclavicle 0.952642 0.284773 -0.106664 3.53079 0 0 0 ry rz
lhumerus 1 0 0 5.06507 180 -30 -90 rx ry rz
lradius 1 0 0 3.60196 180 -30 -90 rx
lwrist 1 0 0 1.80098 0 90 90 ry
lhand 1 0 0 0.450346 0 90 90 rx rz
lfingers 1 0 0 0.363081 0 90 90 rx
lthumb 0.707107 0 0.707107 0.521313 -90 45 0 rx rz
rclavicle -0.955889 0.219434 -0.195256 3.66318 0 0 0 ry rz
rhumerus -1 0 0 5.36394 180 30 90 rx ry rz
rradius -1 0 0 3.58035 180 30 90 rx
rwrist -1 0 0 1.79017 0 -90 -90 ry
rhand -1 0 0 0.663747 0 -90 -90 rx rz
rfingers -1 0 0 0.53513 0 -90 -90 rx
rthumb -0.707107 0 0.707107 0.768342 -90 -45 0 rx rz
"""
HIERARCHY_35 = """
root lhipjoint rhipjoint lowerback
lhipjoint lfemur
lfemur ltibia
ltibia lfoot
lfoot ltoes
rhipjoint rfemur
rfemur rtibia
rtibia rfoot
rfoot rtoes
lowerback upperback
upperback thorax
thorax lowerneck lclavicle rclavicle
lowerneck upperneck
upperneck head
lclavicle lhumerus
lhumerus lradius
lradius lwrist
lwrist lhand lthumb
lhand lfingers
rclavicle rhumerus
rhumerus rradius
rradius rwrist
rwrist rhand rthumb
rhand rfingers
"""
# Frames 20 and 21 of 35_02.amc of the same data base.
MOTION_35_02 = """#!OML:ASF
:FULLY-SPECIFIED
:DEGREES
20
root 4.58243 18.1359 -25.7257 -3.33677 -1.15265 -4.14657
lowerback 12.5393 -1.11342 2.71482
upperback 0.647926 -0.888045 3.10082
thorax -6.35207 -0.468422 1.89764
lowerneck -16.4314 -2.90037 -2.60186
upperneck 19.6549 -3.4233 0.35282
head 8.92268 -1.76569 0.124501
rclavicle 1.58779e-014 -2.5842e-014
rhumerus -31.6145 -21.4099 -76.3216
rradius 20.2691
rwrist 9.8793
rhand -15.6578 22.022
rfingers 7.12502
rthumb 10.5303 -7.69423
lclavicle 1.58779e-014 -2.5842e-014
lhumerus -31.3646 1.9855 84.7676
lradius 29.5294
lwrist 2.69741
lhand -27.2528 27.4545
lfingers 7.12502
lthumb -0.664278 57.4332
rfemur -15.0626 6.93987 29.777
rtibia 30.4614
rfoot -9.88967 -4.37582
rtoes 9.69931
lfemur -13.358 3.01854 -15.9824
ltibia 66.7769
lfoot 5.22675 -11.3705
ltoes -11.0743
21
root 4.58071 18.1271 -25.563 -3.36457 -1.28419 -4.31597
lowerback 12.5025 -0.961287 2.99957
upperback 0.981887 -0.667435 3.01527
thorax -5.98388 -0.367125 1.59921
lowerneck -17.3938 -3.02683 -2.34068
upperneck 19.7504 -3.62329 0.279325
head 9.12637 -1.84296 0.0157844
rclavicle -7.30534e-015 -1.43125e-014
rhumerus -30.6308 -21.0509 -77.0289
rradius 20.4281
rwrist 9.27188
rhand -14.0692 20.0099
rfingers 7.12502
rthumb 12.0624 -9.62248
lclavicle -7.30534e-015 -1.43125e-014
lhumerus -30.7742 2.36284 84.6149
lradius 29.415
lwrist 2.35316
lhand -29.5879 21.2997
lfingers 7.12502
lthumb -2.91947 51.2595
rfemur -14.4063 7.10042 30.0836
rtibia 30.4269
rfoot -9.86478 -4.54258
rtoes 11.7202
lfemur -14.576 3.22202 -15.8015
ltibia 67.2509
lfoot 4.9686 -10.8082
ltoes -20.6457
"""

UNITS = "length 0.45\nangle deg"
ROOT = "order TX TY TZ RX RY RZ\naxis XYZ\nposition 0 0 0\norientation 0 0 0"
WALKER = """
trunk 0 1 0 2 0 0 0 rx ry rz
arm 1 0 0 1.5 0 0 0 rz
leg 0 -1 0 3 0 0 90 rx ry
"""
WALKER_TREE = "root trunk leg\ntrunk arm"


def asf(bones=WALKER, hierarchy=WALKER_TREE, units=UNITS, root=ROOT, order="XYZ"):
    """The text of an .asf file; bones as above, one a line."""
    blocks = []
    for number, line in enumerate(bones.strip().splitlines(), 1):
        name, x, y, z, length, a, b, c, *dofs = line.split()
        dof = [f"    dof {' '.join(dofs)}", "    limits (-160.0 20.0)", *["           (-70.0 70.0)"] * (len(dofs) - 1)]
        blocks += ["  begin", f"     id {number}", f"     name {name}", f"     direction {x} {y} {z}",
                   f"     length {length}", f"     axis {a} {b} {c}   {order}", *(dof if dofs else []), "  end"]
    return "\n".join([
        "# AST/ASF file", ":version 1.10", ":name VICON", ":units", "  mass 1.0", units, ":documentation",
        "   begin with anything", ":root", root, ":bonedata", *blocks, ":hierarchy", "  begin", hierarchy, "  end", ""])


def amc(frames, first=1, header="#!OML:ASF\n:FULLY-SPECIFIED\n:DEGREES"):
    """The text of an .amc file of WALKER: frames [F, 12], the root's six numbers, then trunk, arm and leg."""
    lines = [header]
    for number, row in enumerate(frames, first):
        values = [f"{x:.9g}" for x in row]
        lines += [str(number), f"root {' '.join(values[:6])}", f"trunk {' '.join(values[6:9])}", f"arm {values[9]}",
                  f"leg {' '.join(values[10:])}"]
    return "\n".join([*lines, ""])


def motion(frames, seed=0):
    """[F, 12] angles (degrees) and root positions of somebody who strides along z."""
    g, t = np.random.default_rng(seed), np.arange(frames)[:, None]
    phase, size = g.uniform(0, 2 * math.pi, (1, 12)), g.uniform(5, 30, (1, 12))
    rows = size * np.sin(0.1 * t + phase)
    rows[:, :3] = np.concatenate([0.1 * rows[:, :1] / 30, 5 + 0.01 * rows[:, 1:2], 0.1 * t + seed], 1)
    return rows


def acclaim(folder, trials=11, frames=95, subject="09"):
    """A folder of one skeleton and its motions."""
    folder.mkdir(parents=True)
    (folder / f"{subject}.asf").write_text(asf())
    for k in range(trials):
        (folder / f"{subject}_{k + 1:02}.amc").write_text(amc(motion(frames, k)))
    return folder


def npz(path, trials=5, frames=24, split=(0, 0, 0, 1, 2), starts=8, **changed):
    """The same motions as an .npz file with a split and start frames."""
    from ace_fast.data.mocap_files import read_motion
    from ace_fast.data.mocap_skeleton import read_asf

    skeleton = read_asf(asf(), "walker.asf")
    pos = [read_motion(amc(motion(frames, k)), "walker.amc", skeleton) for k in range(trials)]
    arrays = {
        "pos": np.concatenate(pos).astype(np.float32), "offsets": np.arange(trials + 1) * frames,
        "edges": skeleton.bones, "joint_names": np.array(skeleton.joints), "unit_cm": np.float32(skeleton.unit_cm),
        "trial": np.array([f"09_{k + 1:02}" for k in range(trials)]), "split": np.array(split, dtype=np.uint8),
        "start_frames": np.stack([np.random.default_rng(k).permutation(frames - 8)[:starts] for k in range(trials)]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{name: a for name, a in {**arrays, **changed}.items() if a is not None})
    return path
