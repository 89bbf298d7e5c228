"""docs/walk.md does what it says: its blocks run one after the other, on a smaller data set and network."""

from __future__ import annotations

from utils.command import run_command

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from tests.commands import ROOT
from tests.test_docs import module_of, words_of
from utils.config import load_config

TOY = {
    "base": str(ROOT / "cfg" / "quickstart.yaml"),
    "data": {"workers": 1, "phantom": {"train": 8, "val": 2, "test": 3, "size": 32}},
    "model": {"channels": 8, "multipliers": [1, 2], "encoder": {"channels": 8, "multipliers": [1, 2], "attention": []}},
    "training": {"steps": 6, "batch": 4, "warmup": 2, "log_every": 2, "checkpoint_every": 3, "validate_every": 3},
    "sampling": {"draws": 3, "animate": False},
    "evaluation": {"images": 2, "draws": 2},
}


@pytest.mark.slow
def test_the_blocks_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cfg").mkdir()
    (tmp_path / "cfg" / "quickstart.yaml").write_text(yaml.safe_dump(TOY))
    assert load_config(Path("cfg/quickstart.yaml"), []).training.steps == 6
    names: dict[str, Any] = {}
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "docs" / "walk.md").read_text(), re.M | re.S):
        if language == "python":
            exec(compile(block, "docs/walk.md", "exec"), names)
            continue
        for line in block.splitlines():
            own = re.sub(r"runs/quickstart/\d{8}-\d{6}", str(names.get("run")), line)
            module, words = module_of(words_of(own))
            assert run_command(lambda module=module, words=words: module.main(words)) == 0, line  # type: ignore[misc]

    assert names["curve"]["val_energy"].count() == 2
    assert sorted(pd.read_csv("predictions/results.csv")["look_rank"]) == [1, 2, 3]
    assert Path("prepared/quickstart/inspection.html").is_file()
    assert (names["samples"] / "report.html").is_file()
    assert Path("predictions/report.html").is_file()
    assert names["result"].mask.shape == (32, 96)
    assert names["probability"].shape == (1, 1, 32, 32)
    assert 0 <= names["probability"].min() <= names["probability"].max() <= 1
    assert Path("weights/mine.safetensors").is_file()
