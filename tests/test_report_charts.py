"""Numbers as they are shown, scales and ticks, and drawings."""

import math
import xml.etree.ElementTree as tree

import pytest

from ace_fast.report import png, svg, units
from ace_fast.report.chart import Bar, Bars, Dots, Lines, Row, Scale, Series, scale, thin


@pytest.mark.parametrize(("shown", "expected"), [
    (units.time(348.06), "348 ms"), (units.time(2564.9), "2.56 s"), (units.time(999.9), "1.00 s"),
    (units.time(0.0748), "74.8 µs"), (units.time(2e-5), "20.0 ns"), (units.time(90_000.0), "1.50 min"),
    (units.time(None), "–"), (units.memory(14.63), "14.6 MiB"), (units.memory(3154.9), "3.08 GiB"),
    (units.memory(0.25), "256 KiB"), (units.ratio(4.377), "4.4×"), (units.ratio(0.64), "0.64×"),
    (units.ratio(231.2), "231×"), (units.percent(0.0049), "0.5 %"), (units.percent(0.167), "17 %"),
    (units.percent(0.0), "0.0 %"), (units.percent(1e-5), "< 0.1 %"), (units.power(4.3e-7), "4.3 × 10⁻⁷"),
    (units.power(0.0), "0"), (units.digits(1234.5), "1,234"), (units.digits(-0.0123), "-0.0123"),
    (units.digits(2.5e-5), "2.50 × 10⁻⁵"), (units.digits(math.inf), "inf"), (units.count(51_100.0), "51.1 k"),
    (units.count(3.5e9), "3.50 G"), (units.count(12), "12.0"), (svg.tick(1e-7), "10⁻⁷"), (svg.tick(50_000), "50k"),
    (svg.tick(-0.5), "−0.5"), (svg.tick(2e8), "2×10⁸"),
])
def test_numbers_have_three_digits_and_a_unit(shown, expected):
    assert shown == expected


def test_a_ratio_inside_the_noise_is_none():
    assert units.compared(1.04, 0.05) == units.compared(0.96, 0.05) == "within noise"
    assert units.compared(1.06, 0.05) == "1.1×" and units.compared(0.9, 0.05) == "0.90×"
    assert units.compared(1.001, None) == "1.0×" and units.compared(None, 0.1) == "–"


@pytest.mark.parametrize(("low", "high", "log", "expected"), [
    (0.0, 1.0, False, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), (-1.3, 1.3, False, [-1.0, 0.0, 1.0]),
    (1.0, 1000.0, True, [1.0, 10.0, 100.0, 1000.0]), (90.0, 1100.0, True, [100.0, 200.0, 500.0, 1000.0]),
    (26.0, 62.0, True, [30.0, 40.0, 50.0, 60.0]),
])
def test_ticks_are_round_numbers(low, high, log, expected):
    assert Scale(low, high, log).ticks() == pytest.approx(expected)


def test_ticks_stay_few_over_many_decades():
    found = Scale(1e-9, 1e3, True).ticks(5)
    assert 2 <= len(found) <= 5 and all(math.log10(t) == pytest.approx(round(math.log10(t))) for t in found)


def test_scales_hold_their_values_also_without_any():
    for values, log in (([3.0], False), ([0.0, 0.0], False), ([5.0], True), ([-1.0, math.nan, 2.0], False), ([], True)):
        found = scale(values, log)
        assert found.low < found.high and all(0 <= found(v) <= 1 for v in values if math.isfinite(v))
    assert scale([0.0, 4.0]).low == 0.0  # nothing below zero where nothing is negative
    assert scale([-1.0, 0.0, 10.0], log=True).low > 0  # what has no logarithm is left out


def test_long_curves_keep_their_ends_and_spikes():
    points = [(float(i), 100.0 if i == 777 else math.sin(i)) for i in range(5000)]
    kept = thin(points)
    assert len(kept) <= 260 and kept[0] == points[0] and kept[-1] == points[-1] and (777.0, 100.0) in kept
    assert thin(points[:50]) == points[:50]


BARS = Bars("Time", [Bar("eager", 100.0, "100 ms", "eager", 90.0, 110.0, href="#a"),
                     Bar("<peer>", None, "–", "c1", note="not installed & missing", state="missing"),
                     Bar("fast", 20.0, "20 ms", "ours", state="projected")])
LINES = Lines("Loss", "epoch", "loss", [Series("train", [(1, 2.0), (2, math.nan), (3, 0.5)]),
                                        Series("one", [(1, 0.0), (2, 1.0)], "c1", line=False, fill=False,
                                               links=["#x", "#y"]),
                                        Series("two", [(1, 1.0)], "c2", line=False)],
              log_y=True, rules=[("limit", 1.0)])
DOTS = Dots("Products", "ratio", [Row("mace", [(2.0, "eager 2 ms", "eager", "#m"), (0.5, "peer", "other", "")], "1 ms"),
                                  Row("bad", [], "wrong", "error")], [("eager", "eager"), ("peer", "other")])


@pytest.mark.parametrize("chart", [BARS, LINES, DOTS], ids=["bars", "lines", "dots"])
def test_drawings_are_sound_and_the_same_each_time(chart):
    drawn = svg.draw(chart)
    root = tree.fromstring(drawn)
    assert drawn == svg.draw(chart) and "nan" not in drawn and root.get("aria-label") == chart.title
    marks = [e for e in root.iter() if "mark" in (e.get("class") or "").split()]
    assert marks and all(mark.get("aria-label") for mark in marks)


def test_bars_say_their_numbers_and_why_one_is_missing():
    root = tree.fromstring(svg.draw(BARS))
    said = [e.get("aria-label") for e in root if e.get("aria-label")]
    assert said == ["eager: 100 ms", "<peer>: no value; not installed & missing", "fast: 20 ms"]
    assert root[0].tag == "a" and root[0].get("href") == "#a"
    lengths = [float(e.get("width")) for e in root.iter("rect") if "fill" in e.get("class").split()]
    assert lengths[1] / lengths[0] == pytest.approx(0.2, rel=1e-3) and "hollow" in svg.draw(BARS)


def test_points_without_a_logarithm_are_left_out():
    labels = [e.get("aria-label") for e in tree.fromstring(svg.draw(LINES)).iter() if e.get("class") == "mark"]
    assert labels == ["train: epoch 1.00, loss 2.00", "train: epoch 3.00, loss 0.500", "one: epoch 2.00, loss 1.00",
                      "two: epoch 1.00, loss 1.00"]
    assert 'href="#y"' in svg.draw(LINES) and 'href="#x"' not in svg.draw(LINES)  # a link belongs to its point


def test_a_picture_holds_every_kind_of_chart():
    content = png.picture("Title", [BARS, LINES, DOTS], "below")
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and len(content) > 10_000
