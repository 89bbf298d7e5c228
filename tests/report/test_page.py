"""The report of a sampling run: what it says, what it shows, and what it does where something is missing."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from report.layers import SIDE, ImageLayers, draw_picture, layers_of
from report.page import PICTURES, USUAL, axis, render_report
from tests.commands import Workspace
from tests.pages import disc_layers, example, row_of
from tests.pictures import decoded


class Page(HTMLParser):
    """Tags with their attributes, and the text of the page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, name: str = "") -> list[dict[str, str | None]]:
        return [attributes for own, attributes in self.tags if own == tag and name in str(attributes.get("class", ""))]

    def layers(self) -> list[str]:
        return [str(image["data-layer"]) for image in self.all("img") if "data-layer" in image]


def test_page_shows_every_image_and_layer_and_links_what_is_there(tmp_path: Path) -> None:
    page = Page(example(tmp_path, ["a", "b", "c d"]))
    assert page.layers() == 3 * ["image", "mmse", "std", "probability", "error"]
    assert len(page.all("article", "card")) == len(page.all("g", "truth")) == len(page.all("g", "prediction")) == 3
    links = [str(link["href"]) for link in page.all("a")]
    assert "c%20d/mmse.npy" in links
    assert "calibration.json" in links
    assert "a/draws.npz" not in links
    to_cards = ["#image-1", "#image-2", "#image-3"]
    assert [name for name in links if name.startswith("#image-")] == 2 * to_cards  # dots of the chart, table


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ([0.0302, 0.108], (0.025, 0.125)),
        ([0, 1], (0, 1)),
        ([0.43, 0.97], (0.4, 1.2)),
        ([3, 41], (0, 48)),
        ([7, 7.01], (7, 7.01)),
    ],
)
def test_an_axis_has_round_numbers_and_holds_all_values(values: list[float], ends: tuple[float, float]) -> None:
    assert axis(values) == pytest.approx(ends)


def test_raters_have_contours_above_the_image_and_a_std(tmp_path: Path) -> None:
    def rated(seed: int) -> ImageLayers:
        own = disc_layers(seed)
        raters = np.stack([own.labels > 0, np.zeros_like(own.labels, bool), own.mmse[0] < -0.5])
        return replace(own, raters=raters, rater_std=own.mmse.clip(0, 1))

    page = Page(example(tmp_path, ["a", "b"], rated))
    assert page.layers() == 2 * ["image", "raters", "mmse", "std", "rater_std", "probability", "error"]
    images = [tag for tag in page.all("img") if tag.get("data-layer") == "raters"]
    assert [tag["data-title"] for tag in images] == 2 * ["raters: 1 of 3 marked nothing"]
    assert not any("src" in tag for tag in images)  # that of the image
    paths = [tag["d"] for tag in page.all("path") if str(tag.get("id")).startswith("raters-1")]
    assert [bool(path) for path in paths] == [True, False, True]
    assert len({tag["stroke"] for tag in page.all("use", "line") if "raters" in str(tag["href"])}) == 3


def with_draws(seed: int) -> ImageLayers:
    """Two classes; the second draw of the first image is empty, its third has no second class."""
    own = disc_layers(seed, 48, classes=2, first=3)
    assert own.draws is not None
    if seed == 0:
        own.draws[1], own.draws[2][own.draws[2] == 2] = 0, 0
    return own


def test_draws_are_a_layer_that_turns(tmp_path: Path) -> None:
    page = Page(example(tmp_path, ["a", "b"], with_draws))
    assert page.layers() == 2 * ["image", "draws", "mmse", "std", "probability", "error"]
    assert not any("src" in tag for tag in page.all("img") if tag.get("data-layer") == "draws")
    turns = page.all("span", "turn")
    assert [tag["aria-label"] for tag in turns] == ["Draws of a", "Draws of b"]
    paths = [[draw.split(",") for draw in str(tag["data-paths"]).split("|")] for tag in turns]
    assert [[bool(path) for path in draw] for draw in paths[0]] == [[True, True], [False, False], [True, False]]
    first = [tag["d"] for tag in page.all("path") if str(tag.get("id")).startswith("draws-")]
    assert first == [*paths[0][0], *paths[1][0]]
    assert page.text.count("draw 1 of 3") == 2


def test_folders_of_before_have_no_layer_of_draws(tmp_path: Path) -> None:
    page = Page(example(tmp_path, ["a"]))
    assert "draws" not in page.layers()
    assert not page.all("span", "turn")
    assert not page.all("g", "draws")


class Named(HTMLParser):
    """Controls without an accessible name: no aria-label, no text, no label around them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[list[Any]] = []  # of button, a, summary, label: tag, its attributes, its text
        self.count, self.nameless = 0, list[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        if tag in ("input", "select"):
            self.count += 1
            if not own.get("aria-label") and not any(tag == "label" for tag, _, _ in self.open):
                self.nameless.append(f"{tag} {own}")
        if tag in ("button", "a", "summary", "label"):
            self.open.append([tag, own, ""])

    def handle_data(self, data: str) -> None:
        for item in self.open:
            item[2] += data.strip()

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1][0] == tag:
            _, own, text = self.open.pop()
            self.count += 1
            if not own.get("aria-label") and not text:
                self.nameless.append(f"{tag} {own}")


def test_controls_have_names_and_pictures_have_boxes(tmp_path: Path) -> None:
    Image.new("L", (30, 20)).save(tmp_path / "trajectory.gif")
    text = example(tmp_path, ["a", "b", "c"], with_draws)
    named, page = Named(text), Page(text)
    assert named.count > 60
    assert named.nameless == []
    assert all(tag.get("alt") for tag in page.all("img"))
    assert all(tag.get("aria-label") or tag.get("aria-hidden") for tag in page.all("svg"))
    for tag in page.all("img"):  # those of a card fill its view
        assert "data-layer" in tag or (tag["width"], tag["height"]) == ("30", "20")
        assert "data-layer" not in tag or tag["loading"] == "lazy"
    assert all(str(tag["style"]) == "aspect-ratio: 48 / 48" for tag in page.all("div", "view"))
    rules = text[text.index("<style>") : text.index("</style>")]
    assert ":focus-visible { outline: 2px solid" in rules
    assert "all: unset" not in rules  # takes the ring away
    assert len(re.findall(r"outline: none", rules)) == 1  # dots of a chart have a stroke instead
    # What is not a tab stop has another way to it: stops the slider, dots the table, cards the links.
    skipped = {tag for tag, own in page.tags if own.get("tabindex") == "-1"}
    assert skipped == {"button", "a", "article"}
    assert len([own for tag, own in page.tags if tag == "button" and own.get("tabindex") == "-1"]) == len(page.layers())


def test_nothing_comes_from_elsewhere(tmp_path: Path) -> None:
    page = Page(example(tmp_path, ["a"]))
    assert not page.all("link")
    sources = [str(tag[name]) for _, tag in page.tags for name in ("src", "srcset", "data", "action") if name in tag]
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert not any(str(link["href"]).startswith(("http", "//", "file")) for link in page.all("a"))
    assert not any(name.startswith("on") for _, tag in page.tags for name in tag)


def test_names_and_settings_cannot_add_markup(tmp_path: Path) -> None:
    evil = '"><script>alert(1)<\\script> & b'
    layers = disc_layers(1)
    rows = [row_of(evil, layers)]
    summary = {"draws": 2, "nfe_per_draw": 3, "sampler": evil, "threshold": 0.1, "seed": 0, "checkpoint": evil,
               "raters": {"ged_4": 0.1}, "device": evil}  # fmt: skip
    text = render_report(evil, summary, rows, lambda _: layers, tmp_path, f"</pre>{evil}</script><b>")
    page = Page(text)
    assert len(page.all("script")) == 1
    assert not page.all("b", "evil")
    assert text.count("</script>") == 1
    assert page.all("tr")[-1]["data-image_id"] == evil
    assert evil in page.text


def test_without_a_truth_the_page_has_maps_and_costs_only(tmp_path: Path) -> None:
    known = disc_layers(1)
    own = ImageLayers(known.image, known.mmse, known.labels, known.probability, known.std)
    summary = {"draws": 4, "nfe_per_draw": 9, "sampler": "heun", "threshold": 0.03, "seconds_per_image": 2.0}
    row = {"image_id": "mine", "mean_std": 0.1, "objects": 3}
    page = Page(render_report("mine", summary, [row], lambda _: own, tmp_path, ""))
    assert page.layers() == ["image", "mmse", "std", "probability"]
    assert not page.all("g", "truth")
    assert page.all("g", "prediction")
    assert not any(tag.get("id") in ("uncertainty", "objects", "below") for _, tag in page.tags)
    assert "F1" not in page.text.split("const")[0].replace("F1 below", "")
    assert [option["value"] for option in page.all("option")] == ["image_id", "mean_std", "objects"]


def test_one_draw_has_no_std_and_says_why(tmp_path: Path) -> None:
    page = Page(example(tmp_path, ["a", "b"], lambda seed: disc_layers(seed, draws=1), draws=1))
    assert page.layers() == 2 * ["image", "mmse", "probability", "error"]
    assert "a single draw has no spread" in page.text
    assert "– one draw has no spread" in page.text


def test_no_error_at_all_is_a_dash_with_its_reason(tmp_path: Path) -> None:
    def perfect(seed: int) -> ImageLayers:
        own = disc_layers(seed)
        assert own.truth_sdf is not None
        return ImageLayers(own.image, own.truth_sdf, own.labels * 0, own.probability, own.std, own.truth, own.truth_sdf)

    page = Page(example(tmp_path, ["a", "b"], perfect))
    assert "– the MMSE has no error at all" in page.text
    # Ranks, spread and reliability; there is no error to remove, and two images are no cloud.
    assert len(page.all("figure")) == 3
    assert "nan" not in page.text.lower().split("const")[0]


def test_draws_have_a_section_of_their_own_where_they_were_scored(tmp_path: Path) -> None:
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    page, bare = Page(example(tmp_path / "with", ["a"])), Page(example(tmp_path / "without", ["a"], spread=None))
    assert "Are the draws true?" in page.text
    assert [tag["height"] for tag in page.all("rect", "dot")][:2] == ["200.0", "60.0"]  # 20 and 6 of at most 20
    labels = [str(tag["aria-label"]) for tag in page.all("svg") if "aria-label" in tag]
    assert labels[:2] == ["Rank histogram of image areas", "Error over standard deviation"]  # too few objects
    assert "Are the draws true?" not in bare.text
    assert not bare.all("rect", "dot")


def test_classes_have_their_contours_and_scores(tmp_path: Path) -> None:
    scores = {"f1": 0.8, "iou": 0.7, "f1_std": 0.1, "f1_pooled": 0.8, "iou_pooled": 0.7,
              "classes": {"7": {"f1": 0.81, "iou": 0.7}, "9": {"f1": 0.79, "iou": 0.6}}}  # fmt: skip
    two = example(tmp_path, ["a"], lambda seed: disc_layers(seed, 48, classes=2), mmse=scores, single=scores)
    page = Page(two)
    strokes = [tag["stroke"] for tag in page.all("use", "line") if "stroke" in tag]
    assert len(set(strokes)) == len(strokes) == 2
    assert "0.8100" in page.text
    assert len(page.all("i")) >= 2


@pytest.mark.slow
def test_eighty_images_of_noise_stay_under_30_mb(tmp_path: Path) -> None:
    """Per image, as the other 79 would be the same."""
    rng = np.random.default_rng(0)
    sdf, other = rng.uniform(-1, 1, (2, 1, 512, 512)).astype(np.float32)
    image, probability = rng.integers(0, 256, (512, 512, 3), dtype=np.uint8), rng.random((512, 512))
    own = ImageLayers(image, sdf, sdf[0] < 0, probability, np.abs(other), other[0] < 0, other)
    picture = draw_picture(own, layers_of(1.0), PICTURES // USUAL)
    assert max(decoded(picture.layers["mmse"]).shape) <= SIDE
    bare = disc_layers(0, 8)
    row = row_of("a", bare)
    summary = {"draws": 2, "nfe_per_draw": 3, "sampler": "heun", "threshold": 0.1}

    def size(rows: int) -> int:
        named = [{**row, "image_id": f"image_{k:03d}"} for k in range(rows)]
        return len(render_report("t", summary, named, lambda _: bare, tmp_path, ""))

    paths = sum(len(contour.path) for contour in (*picture.truth, *picture.prediction))
    assert 80 * (sum(map(len, picture.layers.values())) + paths) + size(80) < 30_000_000


@pytest.mark.slow
def test_report_of_a_sampling(trained: Workspace) -> None:
    quick = ("--set", "sampling.steps=1", "--set", "sampling.animate=false")
    for split, draws in (("val", 1), ("test", 2)):
        result = trained("sample", "--split", split, "--set", f"sampling.draws={draws}", *quick)
        assert result.code == 0, result.err
        report = Path(re.findall(r"report: (.*)", result.out)[0])
        page = Page(report.read_text())
        assert ("std" in page.layers()) == (draws > 1)
        for link in page.all("a"):
            target = str(link["href"])
            assert target.startswith("#") or (report.parent / target).exists()
        assert ("These are the validation images" in page.text) == (split == "val")
