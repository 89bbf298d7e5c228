"""The report of a sampling run: what it says, what it shows, and what it does where something is missing."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.sdf import signed_distance
from evaluation import calibration
from evaluation.metrics import count
from evaluation.object_scores import object_scores
from report.layers import SIDE, ImageLayers, data_uri, draw_picture, error_scale, layers_of, outline
from report.page import PICTURES, USUAL, render_report
from report.scores import objects, raters, risk_sentence, uncertainty
from tests.conftest import Workspace

THRESHOLD = 0.03


def disc_layers(seed: int, size: int = 24, classes: int = 1, draws: int = 6) -> ImageLayers:
    """A disc of each class, and draws whose radius differs; a larger seed makes them worse."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]

    def sdf(k: int, radius: float) -> np.ndarray:
        centre = size * (k + 1) / (classes + 1)
        inside = np.hypot(rows - size / 2, columns - centre) < radius
        return signed_distance(inside, 6.0)

    radius = size / (3 * classes)
    truth_sdf = np.stack([sdf(k, radius) for k in range(classes)])
    shift = 0.1 * radius * seed
    stack = np.stack(
        [[sdf(k, radius + shift + rng.normal(0, 0.1 * radius)) for k in range(classes)] for _ in range(draws)]
    )

    def labels(maps: np.ndarray) -> np.ndarray:
        return np.where(maps.min(axis=0) < THRESHOLD, maps.argmin(axis=0) + 1, 0).astype(np.uint8)

    mmse = stack.mean(axis=0)
    probability = np.mean([labels(draw) > 0 for draw in stack], axis=0)
    image = (120 + 60 * truth_sdf.min(axis=0) + rng.normal(0, 8, (size, size))).clip(0, 255).astype(np.uint8)
    spread = stack.std(axis=0, ddof=1) if draws > 1 else None
    return ImageLayers(image, mmse, labels(mmse), probability, spread, labels(truth_sdf), truth_sdf)


def row_of(name: str, layers: ImageLayers) -> dict[str, Any]:
    assert layers.truth is not None
    counts = count(layers.labels > 0, layers.truth > 0)
    spread = 0.0 if layers.std is None else float(layers.std.mean())
    scores = object_scores(layers.truth, layers.labels)
    return {"image_id": name, "f1": counts.f1, "iou": counts.iou, "single_f1": counts.f1 - 0.02, "mean_std": spread,
            "aji": scores.aji, "pq": scores.pq, "objects": 1, "true_objects": 1}  # fmt: skip


def example(
    folder: Path,
    names: list[str],
    layers: Callable[[int], ImageLayers] = disc_layers,
    **changes: Any,
) -> str:
    """A page of these images, and the files that it links to in `folder`; changes of the summary."""
    images = {name: layers(seed) for seed, name in enumerate(names)}
    rows = [row_of(name, own) for name, own in images.items()]
    records = []
    for own in images.values():
        assert own.truth is not None
        assert own.truth_sdf is not None
        assert own.probability is not None
        std = np.zeros_like(own.mmse) if own.std is None else own.std
        records.append(calibration.measure(own.mmse, std, own.truth_sdf, own.probability, own.labels, own.truth))
    numbers = calibration.summary(records)
    (folder / "calibration.json").write_text(json.dumps(numbers))
    for name in names:
        (folder / name).mkdir()
        (folder / name / "mmse.npy").write_bytes(b"")
    f1 = float(np.mean([row["f1"] for row in rows]))
    scores = {"f1": f1, "iou": f1 - 0.1, "f1_std": 0.05, "f1_pooled": f1, "iou_pooled": f1 - 0.1}
    summary = {
        "images": len(rows), "draws": 6, "nfe_per_draw": 9, "sampler": "heun", "threshold": THRESHOLD, "split": "test",
        "mmse": scores, "single": {**scores, "f1": f1 - 0.02}, "seconds_per_image": 1.25, "peak_memory_mib": 300.0,
        "device": "cpu", "checkpoint": "runs/x/best.pt", "seed": 0,
        "objects": {"aji": 0.8, "pq": 0.7, "dq": 0.9, "sq": 0.78, "f1": 0.9, "dice": 0.85, "hausdorff": 2.5,
                    "area_interval": {"objects": 3, "level": 0.9, "coverage": 0.6, "expected": 0.71, "width": 0.1}},
        "uncertainty": {k: v for k, v in numbers.items() if not isinstance(v, list)} | {"risk_control": None},
    }  # fmt: skip
    return render_report("tiny: images", summary | changes, rows, images.__getitem__, folder, "name: tiny\n")


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


def decoded(uri: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))) as image:
        return np.asarray(image.convert("RGB"))


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
    assert len(page.all("figure")) == 1  # reliability; there is no error to remove, and two images are no cloud
    assert "nan" not in page.text.lower().split("const")[0]


def test_classes_have_their_contours_and_scores(tmp_path: Path) -> None:
    scores = {"f1": 0.8, "iou": 0.7, "f1_std": 0.1, "f1_pooled": 0.8, "iou_pooled": 0.7,
              "classes": {"7": {"f1": 0.81, "iou": 0.7}, "9": {"f1": 0.79, "iou": 0.6}}}  # fmt: skip
    two = example(tmp_path, ["a"], lambda seed: disc_layers(seed, 48, classes=2), mmse=scores, single=scores)
    page = Page(two)
    strokes = [tag["stroke"] for tag in page.all("use", "line") if "stroke" in tag]
    assert len(set(strokes)) == len(strokes) == 2
    assert "0.8100" in page.text
    assert len(page.all("i")) >= 2


def test_maps_and_their_colours() -> None:
    own = disc_layers(3, 32)
    uris = draw_picture(own, layers_of(0.5), 300_000).layers
    inside, outside = (16, 16), (0, 0)
    mmse = decoded(uris["mmse"]).astype(int)
    assert mmse[inside][0] > mmse[inside][2]  # red inside, blue outside
    assert mmse[outside][2] > mmse[outside][0]
    error, std = decoded(uris["error"]), decoded(uris["std"])
    assert own.error is not None
    assert own.spread is not None
    worst = np.unravel_index(own.error.argmax(), own.error.shape)
    assert error[worst].sum() == error.sum(-1).max()
    # One scale: a pixel with equal std and error has the same colour in both.
    same = np.abs(own.error - own.spread) < 1e-6
    assert same.any()
    np.testing.assert_array_equal(error[same], std[same])
    np.testing.assert_array_equal(decoded(uris["image"])[..., 0], own.image)


def test_scale_of_errors_is_round_and_bounded() -> None:
    assert error_scale([]) == 1.0
    own = disc_layers(1)
    perfect = ImageLayers(own.image, own.mmse, own.labels, truth_sdf=own.mmse)
    assert error_scale([perfect]) == 0.05
    wrong = ImageLayers(own.image, np.ones((1, 8, 8)), own.labels, truth_sdf=-np.ones((1, 8, 8)))
    assert error_scale([wrong]) == 2.0
    third = ImageLayers(own.image, np.full((1, 8, 8), 0.31), own.labels, truth_sdf=np.zeros((1, 8, 8)))
    assert error_scale([third]) == 0.4


def area(path: str) -> float:
    """In pixels, of closed rings; holes count negative."""
    total = 0.0
    for ring in re.findall(r"M([^M]*)z", path):
        start, moves = ring.split("l")
        numbers = [int(n) for n in re.findall(r"-?\d+", moves)]
        points = np.cumsum([[int(n) for n in start.split()], *np.reshape(numbers, (-1, 2)).tolist()], axis=0) / 2
        x, y = points.T
        total += float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2
    return abs(total)


def test_outline_follows_the_mask() -> None:
    rows, columns = np.mgrid[:96, :120]
    ring = np.abs(np.hypot(rows - 48, columns - 60) - 28) < 10
    path = outline(ring, 10_000)
    assert path.count("M") == path.count("z") == 2
    assert area(path) == pytest.approx(ring.sum(), rel=0.03)
    assert len(path) < 1200  # simplified
    square = np.zeros((40, 40), bool)
    square[10:20, 5:30] = True
    assert area(outline(square, 1000)) == pytest.approx(250, rel=0.02)
    assert outline(np.zeros((9, 9), bool), 100) == outline(np.ones((9, 9), bool), 100) == ""
    half = np.zeros((10, 10), bool)
    half[:, 5:] = True
    assert "z" not in outline(half, 100)  # open where it leaves the image


@pytest.mark.parametrize("most", [300, 3000])
def test_outline_of_noise_stays_small(most: int) -> None:
    mask = np.random.default_rng(0).random((200, 300)) < 0.5
    assert 0 < len(outline(mask, most)) <= most


def test_pictures_are_exact_where_they_fit_and_small_where_they_do_not() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8))
    np.testing.assert_array_equal(decoded(data_uri(noise, 60_000)), np.asarray(noise))
    lossy = data_uri(noise, 8000)
    assert len(lossy) <= 8000
    assert decoded(lossy).shape == (90, 70, 3)
    assert len(data_uri(noise, 900)) <= 900


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


def test_many_images_share_what_eighty_may_take() -> None:
    own = disc_layers(1, 128)
    few, many = (draw_picture(own, layers_of(1.0), PICTURES // n) for n in (USUAL, 2000))
    assert sum(map(len, many.layers.values())) <= PICTURES // 2000 < sum(map(len, few.layers.values()))


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
        "diversity of the raters",
    ]
    assert (lines[2].value, lines[2].why) == (None, "the draws are equal")
    random = uncertainty({"draws": 8, "uncertainty": {"pearson": 0.1, "ause": 0.2, "ause_random": 0.9}})
    ause = next(line for line in random if line.name == "AUSE")
    assert (ause.value, ause.best, ause.guess) == ("0.2000", "0", "0.9000")


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
