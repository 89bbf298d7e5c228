"""Several processes that share the images of one sampling leave what one process leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from results.sampled import write_image
from tests.commands import ROOT, Workspace, content, exported, newest, sampled, sets
from utils.locks import held

TWO_AT_ONCE = sets(["sampling.draws=2"])  # images in a batch of 4: of the three one is alone
ONCE = ("metrics.csv", "summary.json", "calibration.json", "report.html", "trajectory.gif")
SUMS = ("seconds_per_image", "peak_memory_mib")


def samples(workspace: Workspace) -> list[Path]:
    return sorted((workspace.run_folder() / "samples").glob("[0-9]*"))


def same_results(first: Path, second: Path) -> None:
    assert content(first) == content(second)
    tables = [pd.read_csv(folder / "metrics.csv").drop(columns="seconds") for folder in (first, second)]
    pd.testing.assert_frame_equal(*tables)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (first, second)]
    assert {k: v for k, v in summaries[0].items() if k not in SUMS} == {
        k: v for k, v in summaries[1].items() if k not in SUMS
    }
    assert {path.name for path in first.iterdir()} == {path.name for path in second.iterdir()}


@pytest.mark.slow
def test_two_shards_leave_what_one_process_leaves(trained: Workspace) -> None:
    assert trained("sample", *TWO_AT_ONCE).code == 0
    whole = newest(trained)
    result = trained("sample", *TWO_AT_ONCE, "--shard", "2/2")
    assert (result.code, "shard 2/2 of" in result.out, "MMSE of" in result.out) == (0, True, False)
    shared = newest(trained)
    assert len(list(shared.glob("*/scores.json"))) == 1
    assert not [name for name in ONCE if (shared / name).exists()]
    assert "MMSE of 2 draws" in trained("sample", *TWO_AT_ONCE, "--shard", "1/2").out
    assert samples(trained) == [whole, shared]
    same_results(whole, shared)
    assert trained("sample", *TWO_AT_ONCE, "--shard", "1/2").code == 0  # what has a report is not begun again
    assert len(samples(trained)) == 3


@pytest.mark.slow
def test_devices_that_take_other_batches_share_the_images_alike(
    trained: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trained("sample", *TWO_AT_ONCE, "--shard", "1/2").code == 0
    monkeypatch.setattr("sampling.drawer.max_batch_of", lambda *_: 2)  # each image by itself: of three the second
    assert trained("sample", *TWO_AT_ONCE, "--shard", "2/2").code == 0
    assert len(list(newest(trained).glob("*/scores.json"))) == 3
    assert (newest(trained) / "report.html").is_file()


@pytest.mark.slow
def test_a_shard_that_was_killed_goes_on(trained: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trained("sample").code == 0
    whole = newest(trained)
    written: list[bool] = []

    def killed(*arguments: object) -> None:
        if written:
            raise RuntimeError("killed")
        write_image(*arguments)  # type: ignore[arg-type]
        written.append(True)

    with monkeypatch.context() as patch:
        patch.setattr("results.modes.write_image", killed)
        with pytest.raises(RuntimeError, match="killed"):
            trained("sample", "--shard", "1/2")
    assert trained("sample", "--shard", "2/2").code == 0
    shared = newest(trained)
    assert len(list(shared.glob("*/scores.json"))) == 2
    (shared / ".4711.phantom_000010").mkdir()
    assert trained("sample", "--shard", "1/2", "--resume").code == 0
    assert samples(trained) == [whole, shared]
    same_results(whole, shared)


@pytest.mark.slow
def test_one_process_can_do_what_is_left_of_all_shards(trained: Workspace) -> None:
    assert trained("sample").code == 0
    whole = newest(trained)
    for shard in ("3/9", "2/9"):
        assert trained("sample", "--shard", shard).code == 0
    shared = newest(trained)
    with held(shared / ".shard-1-of-9.lock", "it"):
        assert f"{shared.relative_to(trained.path)} is in use by process" in trained.fails("sample", "--resume")
    assert trained("sample", "--resume").code == 0
    same_results(whole, shared)


def test_what_shards_cannot_do_is_one_line(trained: Workspace) -> None:
    for wrong in ("3/2", "0/2", "2", "a/b", "-1/2", "1/0"):
        assert "I/N is expected" in trained.fails("sample", f"--shard={wrong}")
    assert "--shard, which --generate does not go with" in trained.fails("sample", "--shard=1/2", "--generate=pairs")
    assert "needs --output" in trained.fails("sample", "--shard", "1/2", "--input", "config.yaml")
    assert not (trained.run_folder() / "samples").exists()
    assert trained("sample", "--shard", "1/2").code == 0
    folder = newest(trained)
    with held(folder / ".shard-2-of-2.lock", "it"):
        line = trained.fails("sample", "--shard", "2/2")
    assert f"shard 2/2 of {folder.relative_to(trained.path)} is in use by process" in line
    line = trained.fails("sample", "--shard", "2/2", "--resume", "--set", "seed=5")
    assert "was made with another seed" in line


@pytest.mark.slow
def test_shards_of_weights_share_a_folder(trained: Workspace) -> None:
    weights = ["--weights", str(exported(trained))]
    for shard in ("1/2", "2/2"):
        assert sampled(trained, *weights, "--shard", shard).code == 0
    (report,) = Path("runs/weights").glob("*/*/samples/*/report.html")
    assert len(list(report.parent.glob("*/scores.json"))) == 3


def predict(workspace: Workspace, output: str, *words: str) -> tuple[int, str]:
    result = workspace("sample", "--run", str(workspace.run_folder()), "--input", "inbox", "--output", output, *words)
    return result.code, result.err


@pytest.mark.slow
def test_shards_predict_on_a_folder_of_pictures(trained: Workspace, inbox: Path) -> None:
    assert predict(trained, "whole") == (0, "")
    assert predict(trained, "out", "--shard", "1/2") == (0, "")
    assert len(list(Path("out").glob("*/result.json"))) == 2
    assert not Path("out/results.csv").exists()
    code, err = predict(trained, "out", "--shard", "2/2", "--set", "sampling.draws=2")
    assert (code, "--output: out was made with another sampling" in err) == (2, True)
    assert predict(trained, "out", "--shard", "2/2") == (0, "")
    skipped = {"results.csv", "result.json"}
    whole, shared = (
        {name: data for name, data in content(Path(folder)).items() if Path(name).name not in skipped}
        for folder in ("whole", "out")
    )
    assert whole == shared
    tables = [pd.read_csv(f"{folder}/results.csv").drop(columns="seconds") for folder in ("whole", "out")]
    pd.testing.assert_frame_equal(*tables)
    assert Path("out/report.html").is_file()


def test_bad_pictures_of_all_shards_are_told_by_the_last(trained: Workspace, inbox: Path) -> None:
    for name in ("a.png", "b.png"):
        (inbox / name).write_bytes(b"no picture")
    code, err = predict(trained, "out", "--shard", "1/2")
    assert code == 0
    assert "a.png" in err
    code, err = predict(trained, "out", "--shard", "2/2")
    assert code == 2
    assert "2 problems" in err
    assert all(name in err for name in ("a.png", "b.png"))
    assert len(pd.read_csv("out/results.csv")) == 4
    Path("strange").mkdir()
    Path("strange/file").touch()
    assert "not written here" in predict(trained, "strange", "--shard", "1/2")[1]


@pytest.mark.slow
def test_torchrun_shares_out_the_images(trained: Workspace) -> None:
    assert trained("sample").code == 0
    whole = newest(trained)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = ["--config", "config.yaml", "--device", "cpu", "--quiet"]
    ended = subprocess.run(
        [*command, str(ROOT / "sample.py"), *words],
        cwd=trained.path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert (ended.stdout.count("MMSE of"), ended.stdout.count("the last one to be done")) == (1, 1)
    assert len(samples(trained)) == 2
    same_results(whole, newest(trained))
