"""Tables of systems: trained, scored, interrupted, gone on with."""

from __future__ import annotations

from utils.command import run_command

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from bench import table
from bench.protocol import jobs_of, read_protocol
from tests.commands import ROOT, TWO_SYSTEMS, Workspace
from utils.checkpoint import load_checkpoint


@pytest.mark.slow
def test_table_trains_scores_and_goes_on(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace.path / "two.yaml").write_text(TWO_SYSTEMS)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    arguments = ["--protocol", "two.yaml", "--output", "out/two", "--small", "--set", "model.channels=4"]
    assert run_command(lambda: table.main(arguments)) == 0
    rows = pd.read_csv("out/two.csv")
    assert rows["sampling"].tolist() == ["its own", "mean", "heun 5"]
    assert rows["nfe"].tolist() == [1, 1, 5]
    assert rows["draws"].tolist() == [1, 1, 2]
    assert rows["f1"].between(0, 1).all()
    assert len(rows["folder"].str.split("/samples").str[0].unique()) == 2
    text = (workspace.path / "out/two.md").read_text()
    assert "| regression | its own |" in text
    assert (workspace.path / "out/two.png").is_file()
    rows["f1"] = 0.5  # what is there already is not computed again, and needs no data
    rows.to_csv("out/two.csv", index=False)
    shutil.rmtree("prepared")
    assert run_command(lambda: table.main(arguments)) == 0
    assert (pd.read_csv("out/two.csv")["f1"] == 0.5).all()
    assert run_command(lambda: table.main([*arguments[:4], "--only", "VE", "--seconds", "0"])) == 0
    assert len(pd.read_csv("out/two.csv")) == 3  # rows of other settings stay


@pytest.mark.slow
def test_a_table_goes_on_after_an_interruption(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    content = TWO_SYSTEMS.replace("[training.steps=2]", "[training.steps=200, training.validate_every=200]")
    (workspace.path / "two.yaml").write_text(content)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [sys.executable, "-m", "bench.table", "--protocol", "two.yaml", "--output", "two", "--small", "--only",
               "regression"]  # fmt: skip
    process = subprocess.Popen([*command, "--seconds", "500"])
    folder = Path("runs/two_small-regression-0")
    deadline = time.monotonic() + 90
    while not list(folder.glob("*/metrics.csv")) and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    (run,) = folder.iterdir()
    assert 0 < load_checkpoint(run / "checkpoints" / "last.pt")["step"] < 200
    assert subprocess.run(command).returncode == 0
    (row,) = pd.read_csv("two.csv").to_dict("records")
    assert row["folder"].startswith(str(run))
    assert row["steps"] == 200
    shutil.copytree(Path(row["folder"]), run / "samples" / "20990101-000000")  # a later one that was broken off
    (run / "samples" / "20990101-000000" / "summary.json").unlink()
    Path("two.csv").unlink()
    assert subprocess.run(command).returncode == 0
    assert pd.read_csv("two.csv")["folder"].tolist() == [row["folder"]]


def test_names_that_look_like_numbers_are_known_again(tmp_path: Path) -> None:
    rows = [
        {
            "split": "val",
            "system": "3",
            "sampling": "010",
            "config_hash": "12e4",
            "data_hash": "0012",
            "commit": "7",
            "f1": 0.5,
        }
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
    assert table.read_rows(tmp_path / "a.csv") == rows


PROTOCOL = ROOT / "bench" / "protocols" / "glas128.yaml"


def test_kept_rows_are_found_wherever_the_archive_lies() -> None:
    """Of the tables in docs/results; another training is another row."""
    protocol = read_protocol("raters_lidc64")
    rows = table.read_rows(ROOT / "docs/results/raters_lidc64.csv")

    def known(*sets: str) -> int:
        return len(table.known_rows(list(jobs_of(protocol, list(sets), False)), rows, split))

    split = "val"  # test rows are none of these
    assert known() == 0
    split = "test"
    assert known() == known("data.raw=/another/disk/lidc") == len(rows) > 0
    assert known("training.batch=3") == 0


@pytest.mark.slow
def test_baselines_and_denoisers_in_one_table(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace.path / "cfg").symlink_to(ROOT / "cfg")
    content = yaml.safe_load(PROTOCOL.read_text())
    names = ["Res-UNet", "regression", "regression ensemble of 5", "DDPM"]
    content["systems"] = [system for system in content["systems"] if system["name"] in names]
    content["systems"][2]["members"] = 2
    content["small"] += [
        "training.steps=2",
        "sampling.steps=3",
        "data.phantom.size=32",
        "data.phantom.test=2",
        "data.workers=1",
    ]
    (workspace.path / "four.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def run(*more: str) -> pd.DataFrame:
        assert run_command(lambda: table.main(["--protocol", "four.yaml", "--output", "four", "--small", *more])) == 0
        return pd.read_csv("four.csv")

    assert run("--only", "DDPM")["system"].tolist() == ["DDPM"]
    rows = run()
    assert rows["system"].tolist() == names
    assert rows["nfe"].tolist() == [1, 1, 1, 3]
    assert rows["draws"].tolist() == [1, 1, 2, 4]
    assert rows["ause"].notna().tolist() == [False, False, True, True]
    assert rows["parameters"][2] == 2 * rows["parameters"][1]
    assert len({str(folder).split("/samples")[0] for folder in rows["folder"]}) == 3
    page = (workspace.path / "four.md").read_text()
    assert "| regression ensemble of 5 |" in page
    assert "phantom, test split (2)" in page
    assert "the small form, which only shows that all of them run" in page
    assert (workspace.path / "four.png").is_file()
