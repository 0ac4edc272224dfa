"""What a report of the ModelNet task says and draws."""

import pytest

from ace_fast.train.tasks import modelnet


@pytest.mark.parametrize("source", ["zeros", "ModelNet40, sampled from its meshes"])
def test_other_data_never_pass_for_modelnet40(source):
    ((what, text), *_) = modelnet.summary({}, {"source": source})
    moved = modelnet.summary({"data": "zeros"}, {"source": "ModelNet40"})  # measured on other data than trained on
    assert moved == [("data", "zeros (not ModelNet40)"), ("trained on", "ModelNet40")]
    assert what == "data" and text == (source if "ModelNet" in source else "zeros (not ModelNet40)")


@pytest.mark.parametrize("modes", [("strict",), ("strict", "relaxed")])
def test_every_mode_has_its_bar_for_a_rotation_and_its_curve(modes):
    result = {f"{curve}_{mode}": {"0.00": 0.5, "0.15": 0.25} for curve in ("dropped", "rotated") for mode in modes}
    dropped, rotated = modelnet.plots([], result)[2:]
    assert [bar.label for bar in rotated.bars] == [f"{name}, {mode}" for name in ("0.00", "0.15") for mode in modes]
    assert [bar.value for bar in rotated.bars] == [0.5] * len(modes) + [0.25] * len(modes) and rotated.top == 1
    assert [(s.name, list(s.points)) for s in dropped.series] == [(mode, [(0.0, 0.5), (0.15, 0.25)]) for mode in modes]
