"""What a report of the ModelNet task says and draws."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from ace_fast.train.tasks import modelnet


@pytest.mark.parametrize("source", ["zeros", "ModelNet40, sampled from its meshes"])
def test_other_data_never_pass_for_modelnet40(source):
    ((what, text), *_) = modelnet.summary({}, {"source": source})
    moved = modelnet.summary({"data": "zeros"}, {"source": "ModelNet40"})  # measured on other data than trained on
    assert moved == [("data", "zeros (not ModelNet40)"), ("trained on", "ModelNet40")]
    assert what == "data" and text == (source if "ModelNet" in source else "zeros (not ModelNet40)")


@pytest.mark.parametrize("modes", [("strict",), ("strict", "relaxed")])
def test_the_bars_of_a_rotation_stand_about_its_name(modes):
    result = {f"{curve}_{mode}": {"0.00": 0.5, "0.15": 0.25} for curve in ("dropped", "rotated") for mode in modes}
    figure = Figure()
    modelnet.plots([], result)["dropped"](figure)
    axes = figure.axes[1]
    for tick in axes.get_xticks():
        bars = [bar for bar in axes.patches if abs(bar.get_x() + bar.get_width() / 2 - tick) < 0.5]
        assert len(bars) == len(modes)
        assert np.mean([bar.get_x() + bar.get_width() / 2 for bar in bars]) == pytest.approx(tick)
