"""The look of figures, and that their titles state their content."""

import pytest

from daisy.calibration.intervals import Estimate
from daisy.evaluation import captions, page, style

pytest.importorskip("matplotlib", reason="needs matplotlib")
from daisy.evaluation import figures

MANY = [f"policy {index}" for index in range(12)]


def test_of_many_lines_eight_are_drawn_and_those_that_matter_stay():
    labels = [*MANY, "chance", "fixed", "entropy", "forecast", "hindsight", "oracle"]
    chosen = style.choose_lines(labels, black=("chance", "fixed", "oracle"))
    assert chosen == ["policy 0", "policy 1", "policy 2", "chance", "fixed", "entropy", "forecast", "hindsight"]
    assert style.choose_lines(MANY[:8]) == MANY[:8]
    figure = figures.draw_lines({label: [(0, 0), (1, 1)] for label in labels}, across="x", up="y", black=("chance",))
    assert len(figure.axes[0].lines) == style.MAX_LINES
    estimate = Estimate(1.0, 0.5, 1.5)
    figure = figures.draw_exit_layers_by_snr(
        [None, 0.0], {label: [estimate, estimate] for label in labels}, num_layers=4, title=""
    )
    assert len(figure.axes[0].lines) == len(figure.axes[0].collections) == style.MAX_LINES


def test_lines_are_told_apart_and_the_default_policy_is_strongest():
    labels = ["fixed", "oracle", "chance", "anything", "entropy", "forecast", "plateau", "margin"]
    styles = style.style_lines(labels, black=("chance",))
    assert list(styles) == labels
    looks = [(look["color"], look.get("linestyle")) for look in styles.values()]
    assert len(set(looks)) == len(looks)
    assert {styles[name]["color"] for name in ("fixed", "oracle", "chance")} == {"black"}
    widths = {name: look["linewidth"] for name, look in styles.items()}
    assert max(widths, key=widths.get) == "forecast"
    assert style.style_lines(["entropy"])["entropy"] == styles["entropy"]  # the same in every figure
    in_order = style.style_in_order(["clean", "10 dB", "0 dB"])
    assert [sum(look["color"][:3]) for look in in_order.values()] == sorted(
        sum(look["color"][:3]) for look in in_order.values()
    )


def test_intervals_are_drawn():
    figure = figures.draw_lines(
        {"entropy": [(0.5, 1.0), (0.7, 2.0)]}, across="x", up="y", bands={"entropy": [(0.8, 1.3), (1.5, 2.5)]}
    )
    (band,) = figure.axes[0].collections
    assert tuple(band.get_datalim(figure.axes[0].transData).intervaly) == (0.8, 2.5)
    curves = {name: [(0.5, 1.0), (0.7, 2.0)] for name in (*MANY[:4], "forecast")}
    bands = {name: [(0.8, 1.3), (1.5, 2.5)] for name in curves}
    collections = figures.draw_lines(curves, across="x", up="y", bands=bands).axes[0].collections
    assert [type(part).__name__ for part in collections] == [*["LineCollection"] * 4, "FillBetweenPolyCollection"]


@pytest.mark.parametrize(
    ("worst", "says"),
    [
        (Estimate(9.0, 8.0, 9.5), "forecast goes deeper on rain: layer 7.0 clean, 9.0 at -5 dB"),
        (Estimate(5.0, 4.0, 5.9), "forecast leaves earlier on rain: layer 7.0 clean, 5.0 at -5 dB"),
        (
            Estimate(7.8, 7.0, 8.5),
            "forecast shows no clear change on rain: layer 7.0 clean, 7.8 at -5 dB, intervals overlap",
        ),
    ],
)
def test_a_title_says_what_noise_does(worst, says):
    layers = [Estimate(7.0, 6.0, 7.5), Estimate(7.2, 6.0, 8.0), worst]
    assert captions.say_exits("forecast", layers, ["clean", "10 dB", "-5 dB"], "rain") == says


def test_a_title_speaks_of_the_policy_that_matters():
    assert captions.choose_spoken(["fixed", "confidence", "entropy", "oracle"]) == "entropy"
    assert captions.choose_spoken(["fixed", "score x"]) == "score x"
    assert captions.choose_spoken(["fixed", "hindsight"]) == ""
    says = captions.say_points("of the cost, errors:", 0.613, [("forecast", 0.12), ("static cut", 0.2)], ".2f")
    assert says == "At 61% of the cost, errors: 0.12 (forecast), 0.20 (static cut)"


def test_conditions_are_grouped_by_noise_with_clean_audio_in_each():
    noisy = [f"{kind} {snr} dB" for kind in ("white", "rain") for snr in (20, 10, 0)]
    groups = page._group_conditions(["clean", *noisy, "room"], ["white", "rain"])
    assert groups == {"white": ["clean", *noisy[:3]], "rain": ["clean", *noisy[3:]], "": ["room"]}
    of_strangers = page._group_conditions([f"set {index}" for index in range(10)], [])
    assert [len(group) for group in of_strangers.values()] == [8, 2]
