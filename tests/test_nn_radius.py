"""ace_fast.nn.radius_graph: torch_geometric's signature."""

import pytest
import torch

from ace_fast.nn import radius_graph

SQUARE = torch.tensor([[-1.0, -1], [-1, 1], [1, -1], [1, 1]])  # the example of torch_geometric's documentation


def test_example_of_torch_geometric():
    assert radius_graph(SQUARE, 1.5, torch.tensor([0, 0, 0, 0]), False).shape == (2, 0)
    edges = radius_graph(SQUARE, 2.5, batch=torch.tensor([0, 0, 0, 0]), loop=False)
    assert edges.tolist() == [[1, 2, 0, 3, 0, 3, 1, 2], [0, 0, 1, 1, 2, 2, 3, 3]]
    assert radius_graph(SQUARE, 2.5, torch.tensor([0, 0, 1, 1])).tolist() == [[1, 0, 3, 2], [0, 1, 2, 3]]
    assert radius_graph(SQUARE, 1.5, loop=True, num_workers=4, batch_size=1).tolist() == [[0, 1, 2, 3]] * 2


def test_flow_exchanges_the_rows():
    one = radius_graph(SQUARE, 2.5, max_num_neighbors=1)
    other = radius_graph(SQUARE, 2.5, max_num_neighbors=1, flow="target_to_source")
    assert one.tolist() == [[1, 0, 0, 1], [0, 1, 2, 3]] and other.tolist() == [[0, 1, 2, 3], [1, 0, 0, 1]]


def test_thirty_two_neighbours_unless_asked_otherwise():
    x = torch.arange(100.0) / 100
    edges = radius_graph(x, 2.0)
    assert (edges[1].bincount() == 32).all()
    assert (edges[0] - edges[1]).abs()[edges[1] == 50].max() == 16
    assert (radius_graph(x[:, None], 2.0, max_num_neighbors=99)[1].bincount() == 99).all()


@pytest.mark.parametrize("x, options, message", [
    (SQUARE, {"flow": "back"}, "flow must be one of source_to_target, target_to_source, got 'back'"),
    (torch.zeros(2, 4), {}, r"x must be \[N\] or \[N, 1 to 3\], got \[2, 4\]; knn finds"),
    ([0.0], {}, r"x must be \[N\] or \[N, 1 to 3\], got list"),
    (SQUARE, {"batch": torch.tensor([0, 1, 0, 1])}, "batch must be sorted, got 0 after 1 at index 2"),
])
def test_wrong_arguments(x, options, message):
    with pytest.raises(ValueError, match=f"radius_graph: {message}"):
        radius_graph(x, 1.0, **options)
