"""ModelNet in miniature, in each of the layouts it comes in."""

import h5py
import numpy as np

from ace_fast.data import modelnet

NAMES = ("cup", "night_stand")
SHAPES = {"train": ["cup_0001", "cup_0003", "night_stand_0001"], "test": ["cup_0002", "night_stand_0002"]}


def load(root, split="train", **options):
    return modelnet(root, split, **{"classes": 2, "points": 32, "cache": root.parent / "cache", **options})


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def kind(shape):
    return shape.rpartition("_")[0]


def mesh_text(number):
    """A flat box of its own proportions, far from the origin."""
    scale = np.array([1 + number, 2.0, 0.5])
    corners = np.array([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)]) * scale + 100
    quads = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    lines = ["OFF8 6 0", *(" ".join(map(str, c)) for c in corners), *("4 " + " ".join(map(str, q)) for q in quads)]
    return "\n".join(lines)


def princeton(root):
    for split, shapes in SHAPES.items():
        for number, shape in enumerate(shapes):
            write(root / kind(shape) / split / f"{shape}.off", mesh_text(number))
    write(root / "cup" / "train" / "._cup_0001.off", b"\0\5\26\7")  # what macOS leaves
    write(root / "README.txt", "ModelNet")
    (root / "__MACOSX").mkdir()
    return root


def resampled_points(shape, count=40):
    rng = np.random.default_rng(sum(map(ord, shape)))
    return rng.uniform(-1, 1, (count, 6)).round(6)


def resampled(root, count=40):
    for split, shapes in SHAPES.items():
        write(root / f"modelnet2_{split}.txt", "\n".join(shapes) + "\n")
        for shape in shapes:
            rows = "\n".join(",".join(f"{x:.6f}" for x in row) for row in resampled_points(shape, count))
            write(root / kind(shape) / f"{shape}.txt", rows + "\n")
    return root


def hdf5(root, names=NAMES, **changed):
    root.mkdir(parents=True, exist_ok=True)
    write(root / "shape_names.txt", "\n".join(names) + "\n")
    for split, shapes in SHAPES.items():
        for number, part in enumerate((shapes[:1], shapes[1:])):
            data = np.stack([resampled_points(shape)[:, :3] for shape in part]).astype(np.float32)
            label = np.array([[NAMES.index(kind(shape))] for shape in part], dtype=np.uint8)
            with h5py.File(root / f"ply_data_{split}{number}.h5", "w") as file:
                for name, array in {"data": data, "label": label, "faceId": label, **changed}.items():
                    if array is not None:
                        file[name] = array
    return root
