"""The page of a table."""

from __future__ import annotations

import pandas as pd

from bench import table_page


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
    row = {"system": "a", "sampling": "x", "iou": 0.5, "single_f1": 0.4, "single_iou": 0.3, "pq": 0.2, "ause": 0.1,
           "ece": 0.1, "ged": None, "draws": 4, "nfe": 5, "seconds_per_image": 1.0, "training_seconds": 6000.0,
           "parameters": 1_600_000}  # fmt: skip
    rows = pd.DataFrame([{**row, "seed": seed, "f1": f1} for seed, f1 in enumerate((0.7, 0.8, 0.9))])
    one = {**row, "system": "b", "seed": 0, "f1": 0.6, "draws": 1, "ause": None, "ece": None}
    lines = table_page.markdown_table(table_page.combined(pd.concat([rows, pd.DataFrame([one])])))
    assert lines[0].startswith("| system | F1 / IoU of the mean | of single draws | PQ | AUSE | ECE | draws x NFE |")
    assert (
        lines[2]
        == "| a | 0.800 / 0.500 ± 0.100 | 0.400 / 0.300 | 0.200 | 0.100 | 0.100 | 4 x 5 | 1.00 | 1.6 M | 1.7 h | 3 |"
    )
    assert lines[3] == "| b | 0.600 / 0.500 |  | 0.200 |  |  | 1 x 5 | 1.00 | 1.6 M | 1.7 h | 1 |"
