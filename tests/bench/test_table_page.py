"""The page of a table."""

from __future__ import annotations

import pandas as pd

from bench import table_page
from bench.table import scores_of
from tests.pages import SPREAD


def test_a_page_says_which_test_images_there_were() -> None:
    assert table_page.images_of("glas", "test", ["testA_1", "testA_2"]) == "test A (2)"
    assert table_page.images_of("glas", "test", ["testA_1", "testB_2"]) == "test A and B (2)"
    assert table_page.images_of("glas", "val", ["train_1"]) == "glas, val split (1)"
    assert table_page.images_of("phantom", "test", ["a", "b"]) == "phantom, test split (2)"


def test_a_page_names_no_folder_of_one_machine() -> None:
    words = [
        "--output",
        "/home/me/out",
        "--protocol",
        "glas64",
        "--set",
        "data.raw=/home/me/My GlaS",
        "--only",
        "VE paper",
    ]
    command = table_page.short_command(words)
    assert command == "python -m bench.table --protocol glas64 --set data.raw=... --only 'VE paper'"


def test_a_table_of_several_seeds_has_means_and_spread() -> None:
    row = {"system": "a", "sampling": "x", "iou": 0.5, "single_f1": 0.4, "single_iou": 0.3, "aji": 0.25, "pq": 0.2,
           "ause": 0.1, "ece": 0.1, "ged": None, "draws": 4, "nfe": 5, "seconds_per_image": 1.0,
           "training_seconds": 6000.0, "parameters": 1_600_000}  # fmt: skip
    rows = pd.DataFrame([{**row, "seed": seed, "f1": f1} for seed, f1 in enumerate((0.7, 0.8, 0.9))])
    one = {**row, "system": "b", "seed": 0, "f1": 0.6, "draws": 1, "ause": None, "ece": None}
    lines = table_page.markdown_table(table_page.combined(pd.concat([rows, pd.DataFrame([one])])))
    head = "| system | F1 / IoU of the mean | of single draws | AJI | PQ | AUSE | ECE | draws x NFE |"
    scores = "0.800 / 0.500 ± 0.100 | 0.400 / 0.300 | 0.250 | 0.200 | 0.100 | 0.100"
    assert lines[0].startswith(head)
    assert lines[2] == f"| a | {scores} | 4 x 5 | 1.00 | 1.6 M | 1.7 h | 3 |"
    assert lines[3] == "| b | 0.600 / 0.500 |  | 0.250 | 0.200 |  |  | 1 x 5 | 1.00 | 1.6 M | 1.7 h | 1 |"


def test_spread_of_rows_that_have_it() -> None:
    summary = {"uncertainty": {"ause": 0.1, "ece": 0.2}, "draws": 8, "mmse": {"f1": 0.8, "iou": 0.7},
               "single": {"f1": 0.7, "iou": 0.6}, "objects": {"aji": 0.6, "pq": 0.5}, "nfe_per_draw": 1,
               "seconds_per_image": 1.0, "images": 3, "threshold": 0.1}  # fmt: skip
    more = {"sampling": "its own", "parameters": 1_600_000, "training_seconds": 60.0}
    new = {"system": "new", **scores_of({**summary, "spread": SPREAD}), **more}
    unscored = {"system": "old", **scores_of(summary), **more}
    # Of a CSV file from before these columns.
    old = {name: value for name, value in unscored.items() if name not in ("ssr", "energy", "image_coverage", "lost")}
    lines = table_page.markdown_table(table_page.combined(pd.DataFrame([new, old])))
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    names = ["SSR", "images inside", "objects inside", "lost", "fair CRPS", "energy", "fair GED", "skill"]
    shown = [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]
    assert [shown[0][name] for name in names] == ["0.610", "0.40 (0.78)", "0.55 (0.78)", "0.080", "0.062", "0.613",
                                                  "0.131", "0.043"]  # fmt: skip
    assert [shown[1][name] for name in names] == [""] * 8
    rated = {"ged_4": 0.31, "ged_8": 0.25, "hm_iou_8": 0.5, "d_max_8": 0.8, "ncc": 0.7, "volume_crps": 12.0,
             "fair_diversity": 0.6, "fair_rater_diversity": 0.4, "diversity_ratio": 1.5,
             "consensus_dice": 0.9}  # fmt: skip
    row = {"system": "rated", **scores_of({**summary, "raters": rated}), **more}
    (heads, _, own) = table_page.markdown_table(table_page.combined(pd.DataFrame([row])))
    rated_cells = dict(zip(*([cell.strip() for cell in line.split("|")] for line in (heads, own)), strict=True))
    names = ["GED 16", "HM-IoU 16", "D_max 16", "diversity of draws / raters", "NCC", "consensus Dice", "area CRPS"]
    values = ["0.250", "0.500", "0.800", "0.600 / 0.400 (1.50)", "0.700", "0.900", "12.000"]
    assert [rated_cells[name] for name in names] == values
    assert "GED" not in rated_cells  # the same of all 8 draws
    (row["draws"], row["ged"]) = (32, 0.2)
    assert "| GED |" in table_page.markdown_table(table_page.combined(pd.DataFrame([row])))[0]
    bare = table_page.markdown_table(table_page.combined(pd.DataFrame([old])))
    assert not {"SSR", "NCC"} & {cell.strip() for cell in bare[0].split("|")}
