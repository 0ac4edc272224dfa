"""Reading .off files, whole and broken, and points drawn from meshes."""

import math

import numpy as np
import pytest
from modelnet_toys import write

from ace_fast.data.meshes import read_off, sample

TETRAHEDRON = "OFF\n4 4 6\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 2\n3 0 1 3\n3 0 2 3\n3 1 2 3\n"
CORNERS = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
FACES = [[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]]


@pytest.mark.parametrize(
    "text",
    [
        TETRAHEDRON,
        TETRAHEDRON.replace("OFF\n", "OFF"),  # ModelNet's missing newline
        TETRAHEDRON.replace("OFF\n", "OFF "),
        TETRAHEDRON.replace("\n", "\r\n"),
        TETRAHEDRON.replace("\n", "\r"),
        "\ufeff" + TETRAHEDRON,
        TETRAHEDRON.rstrip("\n"),
        TETRAHEDRON.replace("4 4 6", "4 4"),
        "# a tetrahedron\n\n" + TETRAHEDRON.replace("\n", "  # 1 2 3\n\n"),
        TETRAHEDRON.replace("3 0 1 2\n", "3 0 1 2 255 0 0\n").replace("3 1 2 3\n", "\t3 1 2 3 0.5 0.5 nan 1\n"),
        TETRAHEDRON.replace("1 0 0\n", "1e0 -0.0 0.\n"),
    ],
)
def test_read_off(tmp_path, text):
    vertices, faces = read_off(write(tmp_path / "a.off", text))
    assert vertices.dtype == np.float64 and faces.dtype == np.int64
    assert vertices.tolist() == CORNERS and faces.tolist() == FACES


def test_read_off_with_polygons(tmp_path):
    """A square, a triangle and a pentagon with a colour, in one file."""
    lines = ["OFF", "6 3 0", *(f"{k} {k * k} 0" for k in range(6)), "4 0 1 2 3", "3 5 4 3", "5 1 2 3 4 5 0.1 0.2 0.3"]
    vertices, faces = read_off(write(tmp_path / "a.off", "\n".join(lines)))
    assert vertices[:, 1].tolist() == [0, 1, 4, 9, 16, 25]
    assert faces.tolist() == [[0, 1, 2], [0, 2, 3], [5, 4, 3], [1, 2, 3], [1, 3, 4], [1, 4, 5]]


def test_read_off_without_faces_or_vertices(tmp_path):
    vertices, faces = read_off(write(tmp_path / "a.off", "OFF\n1 0 0\n1 2 3\n"))
    assert vertices.shape == (1, 3) and faces.shape == (0, 3)
    assert read_off(write(tmp_path / "b.off", "OFF 0 0 0"))[0].shape == (0, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"must begin with OFF and be ASCII, got ''; convert it"),
        ("ply\nformat ascii\n", "must begin with OFF and be ASCII, got 'ply'"),
        ("COFF\n4 4 6\n", "must begin with OFF and be ASCII, got 'COFF'"),
        ("OFF BINARY\n" + "\0" * 40, "must begin with OFF and be ASCII, got 'OFF BINARY'"),
        (b"\x1f\x8b\x08\x00\xff\xfe", "must begin with OFF and be ASCII, got"),
        ("OFF\n", "must have a line with its counts, got nothing after OFF"),
        ("OFF\n4\n", "line 2: the counts must be 'vertices faces edges', got '4'; repair"),
        ("OFF\n4 -4 0\n", "line 2: the counts must be 'vertices faces edges', got '4 -4 0'"),
        ("OFF\n4 nan 0\n", "line 2: the counts must be 'vertices faces edges', got '4 nan 0'"),
        ("OFF\n1e300 4 0\n", r"line 2: the counts must be 'vertices faces edges', got '1e\+300 4 0'"),
        (TETRAHEDRON[:-8], r"line 2: 4 vertices and 4 faces must have 8 lines, got 7 \(a truncated file or a wrong"),
        (TETRAHEDRON + "3 0 1 2\n", "line 2: 4 vertices and 4 faces must have 8 lines, got 9"),
        ("OFF\n9000000000 4 0\n", "line 2: 9000000000 vertices and 4 faces must have 9000000004 lines, got 0"),
        (TETRAHEDRON.replace("1 0 0", "1 O 0"), "line 4: every word must be a number, got 'O'"),
        (TETRAHEDRON.replace("3 0 2 3", "3 0 2 x"), "line 9: every word must be a number, got 'x'"),
        (TETRAHEDRON.replace("1 0 0", "1 0"), "line 4: a vertex must be 3 numbers, got 2"),
        (TETRAHEDRON.replace("4 4 6", "5 3 6"), "line 7: a vertex must be 3 numbers, got 4"),
        (TETRAHEDRON.replace("1 0 0", "1 nan 0"), "line 4: a vertex must be finite, got NaN or infinity"),
        (TETRAHEDRON.replace("1 0 0", "1 0 1e999"), "line 4: a vertex must be finite, got NaN or infinity"),
        (TETRAHEDRON.replace("3 0 1 3", "3 0 1 4"), r"line 8: a face must consist of vertices in 0 \.\. 3, got 4"),
        (TETRAHEDRON.replace("3 0 1 3", "3 -1 1 3"), r"line 8: a face must consist of vertices in 0 \.\. 3, got -1"),
        (TETRAHEDRON.replace("3 0 1 3", "3 0 1.5 3"), r"line 8: a face must consist of vertices in 0 \.\. 3, got 1.5"),
        (TETRAHEDRON.replace("3 0 1 3", "3 0 nan 3"), r"line 8: a face must consist of vertices in 0 \.\. 3, got nan"),
        (TETRAHEDRON.replace("3 0 1 3", "2 0 1"), "line 8: a face must have at least 3 vertices, got 2"),
        (TETRAHEDRON.replace("3 0 1 3", "3.5 0 1 3"), "line 8: a face must have at least 3 vertices, got 3.5"),
        (TETRAHEDRON.replace("3 0 1 3", "nan 0 1 3"), "line 8: a face must have at least 3 vertices, got nan"),
        (TETRAHEDRON.replace("3 0 1 3", "4 0 1 3"), "line 8: a face of 4 vertices must list all, got 3"),
        (TETRAHEDRON.replace("3 0 1 3", "1e300 0 1 3"), r"line 8: a face of 1e\+300 vertices must list all, got 3"),
    ],
)
def test_wrong_off(tmp_path, text, message):
    with pytest.raises(ValueError, match=rf"read_off: .*bad\.off,? {message}"):
        read_off(write(tmp_path / "bad.off", text))


def test_line_numbers_count_blank_lines_and_comments(tmp_path):
    text = "# 1\n\nOFF # 3\n# 4\n3 1 0\n0 0 0\n\n1 0 0\n# 9\n0 1\n3 0 1 2\n"
    with pytest.raises(ValueError, match="line 10: a vertex must be 3 numbers, got 2"):
        read_off(write(tmp_path / "a.off", text))


def test_points_are_spread_by_area():
    """Faces of areas 1/2, 4, 0 and 9/2 in planes of their own: the counts within five standard deviations."""
    size = np.array([1.0, np.sqrt(8.0), 0.0, 3.0])
    vertices = np.concatenate([[[0, 0, k], [s, 0, k], [0, s, k]] for k, s in enumerate(size)])
    n, p = 50_000, size**2 / np.sum(size**2)
    x = sample(vertices, np.arange(12).reshape(4, 3), n, np.random.default_rng(0))
    on = x[:, 2].astype(int)
    assert (np.abs(np.bincount(on, minlength=4) - n * p) <= 5 * np.sqrt(n * p * (1 - p))).all()
    for k in (0, 1, 3):
        inside = x[on == k, :2] / size[k]
        assert (inside >= 0).all() and (inside.sum(1) <= 1 + 1e-12).all()
        # Uniform in the triangle: each barycentric coordinate has mean 1/3 and variance 1/18; squares 1/6 and 7/180.
        shares = np.c_[inside, 1 - inside.sum(1)]
        count = len(shares)
        assert (np.abs(shares.mean(0) - 1 / 3) < 5 * math.sqrt(1 / 18 / count)).all()
        assert (np.abs((shares**2).mean(0) - 1 / 6) < 5 * math.sqrt(7 / 180 / count)).all()


def test_meshes_that_share_faces_are_sampled_together():
    shift = np.array([0.0, 10.0, 100.0])
    corners = np.array(CORNERS, dtype=float) + shift[:, None, None]
    x = sample(corners, np.array(FACES), 50, np.random.default_rng(1))
    assert x.shape == (3, 50, 3)
    assert ((x - shift[:, None, None] >= 0) & (x - shift[:, None, None] <= 1)).all()
    np.testing.assert_array_equal(x[:1], sample(corners[:1], np.array(FACES), 50, np.random.default_rng(1)))


@pytest.mark.parametrize(
    ("vertices", "faces", "message"),
    [
        (CORNERS, np.empty((0, 3), dtype=int), "a mesh must have faces, got none; leave it out"),
        (np.zeros((4, 3)), FACES, "the area of the faces must be positive and finite, got 0; repair"),
        (np.full((4, 3), np.nan), FACES, "the area of the faces must be positive and finite, got nan"),
        (np.array(CORNERS) * 1e200, FACES, "the area of the faces must be positive and finite, got inf"),
        (np.stack([CORNERS, np.zeros((4, 3))]), FACES, "positive and finite, got 0 in mesh 1; repair"),
    ],
)
def test_surface_without_area(vertices, faces, message):
    with pytest.raises(ValueError, match=message):
        sample(np.asarray(vertices), np.asarray(faces), 5, np.random.default_rng(0))
