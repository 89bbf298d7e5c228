"""The report's script in a browser, where there is one."""

from __future__ import annotations

import html
import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.page_load import browser_there
from report.layers import ImageLayers
from tests.pages import disc_layers, example

BROWSER = browser_there()


# Runs before anything of the page.
LISTEN = """<script>
window.problems = [];
window.addEventListener("error", (event) => problems.push(String(event.message || "a resource did not load")), true);
for (const kind of ["error", "warn"]) console[kind] = (...said) => problems.push(said.join(" "));
</script>"""


def played(page: str, folder: Path, script: str, *options: str) -> dict[str, Any]:
    """What a reader saw of the page, who writes it into a `pre` of id seen; options: of the browser."""
    path, reader = folder / "played.html", f"<script>{script}</script>"
    path.write_text(page.replace("<head>", "<head>" + LISTEN, 1).replace("</body>", reader + "</body>", 1))
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1280,2000",
        f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=10000",
        "--dump-dom",
        *options,
        path.as_uri(),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = re.search(r'<pre id="seen">(.*?)</pre>', run.stdout, re.DOTALL)
    assert found, f"the browser ended with {run.returncode}: {run.stderr[-2000:]}"
    return json.loads(html.unescape(found[1]))


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the PATH")
def test_a_reader_sorts_filters_and_moves_the_slider(tmp_path: Path) -> None:
    names = ["one_10", "two", "one_9", "three"]  # from best to worst F1

    def layers(seed: int) -> ImageLayers:
        own = disc_layers(seed)
        return replace(own, std=np.full_like(own.mmse, (0.2, 0.4, 0.1, 0.3)[seed]))

    reader = Path(__file__).with_name("report_reader.js").read_text()
    seen = played(example(tmp_path, names, layers), tmp_path, reader)
    assert seen["problems"] == []
    assert seen["fetched"] == []
    by_name = ["one_9", "one_10", "three", "two"]
    assert seen["start"] == [by_name, by_name]
    assert seen["rising"] == [names[::-1], names[::-1], [["f1", "ascending"]], "f1"]
    assert seen["falling"] == [names, names, [["f1", "descending"]]]
    by_std = ["two", "three", "one_10", "one_9"]
    assert seen["std"] == [by_std, by_std]
    assert seen["turned"] == [by_std[::-1], by_std[::-1]]

    assert seen["text"] == [by_name[:2], by_name[:2], "2 of 4 images"]
    assert seen["both"] == [["one_9"], ["one_9"], "1 of 4 images"]
    assert seen["none"] == [[], [], "block"]
    assert seen["reset"] == [by_name, by_name, "4 of 4 images", "none"]

    assert seen["image"]["layers"] == [["image", 1]]
    assert (seen["image"]["name"], seen["image"]["scale"]) == ("image", [])
    blend, other = seen["blend"]
    assert blend["layers"] == [["mmse", 1], ["std", 0.25]]
    assert blend["name"] == blend["said"] == "75 % MMSE, 25 % std"
    assert blend["scale"] == ["-1", "0", "1"]
    assert other["layers"] == [["image", 1]]
    assert (seen["key"]["position"], seen["key"]["layers"]) == (2, [["std", 1]])
    assert seen["stop"]["layers"] == seen["beyond"]["layers"] == [["error", 1]]
    assert [card["layers"] for card in seen["every"][:2]] == 2 * [[["probability", 1]]]
    assert seen["every"][2] == "probability"
    assert seen["contours"] == [[True, True], [False, True], [True, True], [False, False], [True, False]]
    assert seen["target"] == "one_9"
    assert seen["sizes"] == 20 * [24]


# Flips through draws with buttons and keys, opens and closes files, looks at focus, sizes and shifts.
DRAWS = """addEventListener("load", () => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const card = $(".card"), [back, next] = $$(".turn button", card), see = {};
  card.style.contentVisibility = "visible";  // its own height, not an estimate until it is drawn: frames may never come
  const press = (element, key) => {
    element.focus();
    element.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  };
  const style = (kind) => getComputedStyle($(`.view .${kind}`, card));
  const look = () => ({
    said: $(".turn output", card).textContent, layer: $(".legend output", card).textContent,
    paths: $$(".draws path", card).map((path) => path.getAttribute("d") !== ""),
    opacity: ["truth", "prediction", "draws"].map((kind) => Number(style(kind).opacity)),
    height: card.offsetHeight, toolbar: $(".toolbar").offsetHeight,
  });
  const steps = [() => {}, () => next.click(), () => next.click(), () => press(next, "ArrowRight"),
    () => press(next, "ArrowRight"), () => press(back, "ArrowLeft"), () => back.click()];
  see.turned = steps.map((step) => { step(); return look(); });
  const blend = $(".blend", card), sizes = new Set();
  for (let k = 0; k <= 20 * blend.max; k++) {
    for (const slider of [blend, $("#layer")]) {
      slider.value = k / 20;
      slider.dispatchEvent(new Event("input"));
    }
    sizes.add(`${card.offsetHeight} ${$(".toolbar").offsetHeight}`);
  }
  see.sizes = sizes.size;
  const files = $("details", card);
  files.open = true;
  press($("a", files), "Escape");
  see.closed = [files.open, document.activeElement === $("summary", files)];
  const controls = [".blend", ".turn button", ".toggle input", "summary", "#layer", "#sort", "#turn", "th button"];
  see.rings = controls.map((name) => {
    $(name).focus({ focusVisible: true });
    return [name, getComputedStyle($(name)).outlineStyle, parseFloat(getComputedStyle($(name)).outlineWidth)];
  });
  const textContent = JSON.stringify({ ...see, problems });
  const pre = Object.assign(document.createElement("pre"), { id: "seen", textContent });
  document.body.replaceChildren(pre);
});"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the PATH")
def test_a_reader_turns_draws_with_mouse_and_keys_and_nothing_moves(tmp_path: Path) -> None:
    def layers(seed: int) -> ImageLayers:
        own = disc_layers(seed, 48, first=3)
        assert own.draws is not None
        own.draws[1] = 0
        return own

    seen = played(example(tmp_path, ["a", "b"], layers), tmp_path, DRAWS)
    assert seen["problems"] == []
    start, *turned = seen["turned"]
    assert (start["layer"], start["opacity"]) == ("image", [1, 1, 0])
    assert {step["layer"] for step in turned} == {"draws"}
    assert all(step["opacity"] == [1, 0, 1] for step in turned)
    names = ["draw 1 of 3", "draw 2 of 3, empty", "draw 3 of 3"]
    assert [step["said"] for step in turned] == [names[k] for k in (0, 1, 2, 0, 2, 1)]
    assert [step["paths"] for step in turned] == [[k != 1] for k in (0, 1, 2, 0, 2, 1)]
    assert len({(step["height"], step["toolbar"]) for step in seen["turned"]}) == 1
    assert seen["sizes"] == 1
    assert seen["closed"] == [False, True]
    assert [ring for ring in seen["rings"] if ring[1] not in ("solid", "auto") or ring[2] < 1] == []


RATERS = """addEventListener("load", () => {
  const look = (position) => {
    const card = document.querySelector(".card"), blend = card.querySelector(".blend");
    blend.value = position;
    blend.dispatchEvent(new Event("input"));
    return ["truth", "raters"].map((kind) => Number(getComputedStyle(card.querySelector(`.view .${kind}`)).opacity));
  };
  const [image, raters] = document.querySelectorAll(".card .view img");
  const pre = document.body.appendChild(document.createElement("pre"));
  pre.id = "seen";
  pre.textContent = JSON.stringify({ opacity: [0, 0.25, 1, 2].map(look), same: image.src === raters.src });
});"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the PATH")
def test_contours_of_raters_take_the_place_of_the_others(tmp_path: Path) -> None:
    page = example(tmp_path, ["a"], lambda seed: replace(disc_layers(seed), raters=disc_layers(seed).labels[None] > 0))
    assert played(page, tmp_path, RATERS) == {"opacity": [[1, 0], [0.75, 0.25], [0, 1], [1, 0]], "same": True}


NAMES = """addEventListener("load", () => {
  for (const card of document.querySelectorAll(".card")) card.style.contentVisibility = "visible";
  const wanted = "main, nav, article, [role], a[href], button, input, select, summary, img, [tabindex]";
  const shown = [...document.querySelectorAll(wanted)].filter((element) => element.checkVisibility());
  const said = shown.map((element) => [element.computedRole, element.computedName]);
  const pre = document.body.appendChild(document.createElement("pre"));
  pre.id = "seen";
  pre.textContent = JSON.stringify({ said });
});"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the PATH")
def test_the_browser_has_a_name_for_everything_that_can_be_used(tmp_path: Path) -> None:
    page = example(tmp_path, ["a", "b"], lambda seed: disc_layers(seed, first=3))
    option = "--enable-blink-features=ComputedAccessibilityInfo"
    said = [tuple(pair) for pair in played(page, tmp_path, NAMES, option)["said"]]
    assert [pair for pair in said if not pair[1] and pair[0] != "main"] == []
    assert {("main", ""), ("navigation", "Parts of the page"), ("article", "a"), ("slider", "Layer of a"),
            ("slider", "Layer of all images"), ("button", "next draw of a"), ("group", "Draws of a"),
            ("checkbox", "truth"), ("textbox", "Name contains"), ("spinbutton", "F1 below"), ("combobox", "Sort by"),
            ("region", "Scores of the images"), ("image", "image of a")} <= set(said)  # fmt: skip
