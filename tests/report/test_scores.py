"""Lines of scores and their sentences."""

from __future__ import annotations

from report.scores import objects, raters, risk_sentence, spread, uncertainty
from tests.pages import SPREAD


def test_risk_control_is_one_plain_sentence() -> None:
    control = {"alpha": 0.1, "attainable": True, "validation_images": 20, "test_images": 60, "missed": 0.08,
               "missed_error": 0.012, "images_over_alpha": 0.25, "size": 0.3, "sdf_below": 0.21}  # fmt: skip
    said = risk_sentence({"split": "test", "uncertainty": {"risk_control": control}})
    for part in ("at most 10 %", "below 0.21 SDF units", "20 validation images", "misses 8 %", "30 % of the pixels"):
        assert part in said
    few = {**control, "sdf_below": None, "attainable": False, "validation_images": 4}
    assert "at least 9" in risk_sentence({"uncertainty": {"risk_control": few}})
    assert "--split val" in risk_sentence({"split": "test", "uncertainty": {"risk_control": None}})
    assert "These are the validation images" in risk_sentence({"split": "val", "uncertainty": {}})


def test_lines_of_scores() -> None:
    assert (objects({}), raters({}), uncertainty({"draws": 3})) == ([], [], [])
    lines = raters({"raters": {"ged_4": 0.2, "ged_16": 0.1, "ncc": None, "ece_rater_1": 0.3, "rater_diversity": 0.4}})
    energy = "generalised energy distance"
    assert [line.name for line in lines] == [
        f"{energy}, 4 draws",
        f"{energy}, 16 draws",
        "NCC",
        "diversity of the raters, one with itself too",
    ]
    assert (lines[2].value, lines[2].why) == (None, "the draws are equal")
    random = uncertainty({"draws": 8, "uncertainty": {"pearson": 0.1, "ause": 0.2, "ause_random": 0.9}})
    ause = next(line for line in random if line.name == "AUSE")
    assert (ause.value, ause.best, ause.guess) == ("0.2000", "0", "0.9000")


def test_lines_of_the_draws() -> None:
    assert spread({}) == spread({"spread": None}) == []
    lines = {line.name: line for line in spread({"spread": SPREAD})}
    assert lines["spread-skill ratio (SSR)"].value == "0.610"
    inside = lines["true image areas inside the draws' range"]
    assert (inside.value, inside.best) == ("0.400", "0.778")
    assert "60 masks of raters" in inside.hint  # of three images
    assert lines["evenness of the image areas' ranks (p)"].value == "< 0.0001"
    assert "evenness of the object areas' ranks (p)" not in lines
    assert "on the validation images" in lines["skill over a constant std"].hint
    assert "0.1440" in lines["fair GED"].hint
    nothing = {**SPREAD, "ssr": None, "energy": None, "ged": None, "fair_ged": None, "skill": None}
    assert sum(line.value is None for line in spread({"spread": nothing})) == 4
