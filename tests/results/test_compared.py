"""Runs side by side: text, CSV, page, command."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from evaluation.comparison import Run, compare_runs
from results.compared import render_comparison, to_csv, to_text
from tests.commands import Workspace, newest
from tests.pages import SPREAD, SUMMARY, scored_run

FIRST = scored_run("first", {"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5})


SECOND = scored_run("second", {"d": 0.5, "c": 0.4, "b": 0.7, "a": 0.8}, {**SUMMARY, "nfe_per_draw": 100})


def test_csv_has_a_line_a_run_in_full_precision() -> None:
    first, second = csv.DictReader(io.StringIO(to_csv(compare_runs([FIRST, SECOND]))))
    assert (first["run"], first["images"], first["nfe_per_draw"], first["difference_f1_mean"]) == (
        "first",
        "4",
        "9",
        "",
    )
    assert float(second["f1"]) == pytest.approx(0.6, abs=1e-15)
    assert float(second["difference_f1_mean"]) == pytest.approx(0.1, abs=1e-15)
    assert float(second["difference_f1_low"]) < 0.1 < float(second["difference_f1_high"])
    assert second["difference_iou_better"] == "0.5"


def test_text_is_aligned() -> None:
    text = to_text(compare_runs([FIRST, SECOND, scored_run("a longer name", {"a": 0.5})]))
    runs, pairs, note = text.split("\n\n")
    assert len({len(line) for line in runs.splitlines()}) == len({len(line) for line in pairs.splitlines()}) == 1
    assert runs.splitlines()[2].split()[:6] == ["second", "4", "8", "100", "1.50", "0.6000"]
    assert pairs.splitlines()[0].startswith("minus first")
    assert pairs.splitlines()[1].split()[:3] == ["second", "F1", "+0.1000"]
    assert pairs.splitlines()[5].split()[-1] == "–"  # one image: no p
    assert note.startswith("a longer name has 1 images")


class Tables(HTMLParser):
    """Cells of the tables of a page, and how wide each row is with its spans."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.buttons: list[list[int]] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append([])
            self.buttons.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag == "td":
            self.tables[-1][-1].append("")
            self.inside = True
        elif tag == "button":
            self.buttons[-1].append(int(dict(attrs)["data-column"] or ""))

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "td"

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.tables[-1][-1][-1] += data


def test_page_shows_runs_differences_and_images() -> None:
    page = render_comparison(compare_runs([FIRST, SECOND, scored_run("<b>third</b>", {"a": 0.45, "x": 0.3})]))
    assert "<b>" not in page
    assert "http" not in page
    parsed = Tables(page)
    runs, differences, images = ([row for row in table if row] for table in parsed.tables)
    assert [row[0] for row in runs] == ["R1first", "R2second", "R3<b>third</b>"]
    assert differences[0][:4] == ["F1", "R2second", "4", "+0.1000"]
    assert differences[1][:5] == ["F1", "R3<b>third</b>", "1", "-0.0500", "–"]
    assert images[0][:6] == ["a", "0.5000", "0.8000", "+0.3000", "0.4500", "-0.0500"]
    assert images[4][:6] == ["x", "–", "–", "–", "0.3000", "–"]
    for table, buttons in zip((runs, differences, images), parsed.buttons, strict=True):
        assert len(set(buttons)) == len(buttons)  # every title sorts a column of its own
        assert {len(row) for row in table} == {max(buttons) + 1}


def test_less_crps_is_better_on_the_page() -> None:
    first, second = (
        Run(name, FIRST.rows.assign(fair_crps=crps), {**SUMMARY, "spread": SPREAD})
        for name, crps in (("first", 0.3), ("second", [0.2, 0.2, 0.1, 0.1]))
    )
    comparison = compare_runs([first, second])
    page = render_comparison(comparison)
    (row,) = re.findall(r"<tr><td[^>]*>fair CRPS</td>.*?</tr>", page, re.DOTALL)
    assert '<td class=" better"' in row
    assert '<div class="chart better">' in row
    assert "worse" not in row
    runs, differences, _ = ([row for row in table if row] for table in Tables(page).tables)
    assert runs[0][-5:] == ["0.3000", "0.610", "0.400", "0.550", "0.778"]
    assert differences[-1][-4:-1] == ["100\xa0%", "0\xa0%", "0\xa0%"]
    assert to_text(comparison).splitlines()[1].split()[-5:] == runs[0][-5:]
    assert next(csv.DictReader(io.StringIO(to_csv(comparison))))["object_coverage"] == "0.55"


QUICK = ("--set", "sampling.animate=false")


@pytest.mark.slow
def test_runs_are_compared_image_by_image(trained: Workspace) -> None:
    folders = []
    for draws in (1, 3):
        assert trained("sample", *QUICK, "--set", f"sampling.draws={draws}").code == 0
        folders.append(str(newest(trained)))
    result = trained("sample", "--compare", *folders)
    assert result.code == 0, result.err
    tables = [pd.read_csv(Path(folder) / "metrics.csv")["f1"].mean() for folder in folders]
    for value in tables:
        assert f"{value:.4f}" in result.out
    page = next(line.split("page: ")[1] for line in result.out.splitlines() if line.startswith("page: "))
    assert Path(page).read_text().startswith("<!doctype html>")
    assert Path(page).with_suffix(".csv").is_file()


def test_compare_takes_run_folders_and_says_what_is_wrong(trained: Workspace) -> None:
    assert "not sampled" in trained.fails("sample", "--compare", str(trained.run_folder()), str(trained.run_folder()))
    assert trained("sample", *QUICK).code == 0
    assert "nowhere" in trained.fails("sample", "--compare", str(trained.run_folder()), "nowhere")
    assert "two" in trained.fails("sample", "--compare", str(trained.run_folder()))
    run = str(trained.run_folder())
    assert trained("sample", "--compare", run, str(newest(trained))).code == 2  # one and the same
