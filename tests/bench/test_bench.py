from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from bench import large, moments, nfe, speed, table, table_page
from bench import noise_designs as ensembles
from bench.protocol import jobs_of, read_protocol
from models.unet import ImageEncoder
from tests.conftest import ROOT, Workspace
from utils.checkpoint import load_checkpoint
from utils.cli import run_command
from utils.config import dump_config, load_config
from utils.errors import UsageError
from utils.weights import read_header


def test_speed_prints_ratios_of_every_way(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    speed.main(["--config", "config.yaml", "--device", "cpu", "--rounds", "1", "--size", "16", "--draws", "2"])
    found = re.findall(r"([\d.]+) x +([\d.]+)% of ([\d.e-]+) TFLOP/s$", capsys.readouterr().out, re.MULTILINE)
    assert len(found) == 7
    assert all(float(number) > 0 for line in found for number in line)


def test_operations_are_those_of_convolutions_and_products() -> None:
    layer, matrix = torch.nn.Conv2d(3, 4, 3, padding=1), torch.ones(5, 5)
    assert speed.operations(lambda: layer(torch.zeros(2, 3, 8, 8))) == 2 * (2 * 4 * 8 * 8) * (3 * 3 * 3)
    assert speed.operations(lambda: matrix @ matrix) == 2 * 5**3


def test_large_prints_time_and_memory(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", "config.yaml", "--device", "cpu", "--size", "70", "--trained", "32"]
    large.main([*options, "--set", "sampling.draws=2"])
    out = capsys.readouterr().out
    assert "tiles of 32, 1 bands, 2 draws of 5 evaluations" in out
    assert re.search(r"^peak memory \d+ MiB; \d+ MiB before$", out, re.MULTILINE)
    moments = ["sampling.sampler=mean", "model.second_moment=true", "sde.prior_share=0.5"]
    large.main([*options, *(word for change in moments for word in ("--set", change))])
    assert "moments in one evaluation" in capsys.readouterr().out
    assert run_command(lambda: large.main([*options, "--size", "0"])) == 2


def test_the_plain_way_encodes_at_every_evaluation(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    config, cpu = load_config("config.yaml"), torch.device("cpu")
    calls: list[int] = []
    forward = ImageEncoder.forward

    def counting(self: ImageEncoder, image: torch.Tensor) -> list[torch.Tensor]:
        calls.append(len(image))
        return forward(self, image)

    monkeypatch.setattr(ImageEncoder, "forward", counting)
    images = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    results = []
    for way in (speed.Way("plain", False, False, cached=False), speed.Way("cached", False, False)):
        calls.clear()
        torch.manual_seed(0)
        draw = partial(speed.drawer_for(way, config, cpu), images, ["image"], 2)
        results.append(torch.stack([sdf for _, sdf in draw()]))
        assert len(calls) == (6 if way.name == "plain" else 1)
    torch.testing.assert_close(results[0], results[1])


def test_nfe_scores_every_sampler_and_goes_on(trained: Workspace) -> None:
    options = ["--config", "config.yaml", "--device", "cpu", "--nfe", "1", "2", "--split", "test"]
    samplers = ["--samplers", "heun", "pc", "mean", "flowsdf_released"]

    def run(*more: str) -> int:
        return run_command(lambda: nfe.main([*options, *more]))

    assert run("--samplers", "heun") == 0
    assert run(*samplers) == 0
    path = trained.run_folder() / "nfe_test.csv"
    table = pd.read_csv(path)
    rows = list(zip(table["sampler"], table["nfe"], table["draws"], strict=True))
    assert rows == [("heun", 1, 3), ("heun", 2, 3), ("mean", 1, 1), ("pc", 2, 3)]
    assert table["mmse_f1"].between(0, 1).all()
    assert path.with_suffix(".png").stat().st_size > 5000
    assert "| heun | 1 | 3 | 3 |" in path.with_suffix(".md").read_text()
    assert trained("sample", "--set", "sampling.steps=2").code == 0
    summary = json.loads((next((trained.run_folder() / "samples").iterdir()) / "summary.json").read_text())
    assert table["mmse_f1"][1] == pytest.approx(summary["mmse"]["f1"], abs=1e-6)
    assert table["single_f1"][1] == pytest.approx(summary["single"]["f1"], abs=1e-6)
    assert run("--nfe", "0") == 2


def test_noise_designs_are_compared(trained: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    ensembles.main(["--config", "config.yaml", "--device", "cpu", "--images", "1", "--many", "20"])
    out = capsys.readouterr().out
    for design in ("independent", "antithetic"):
        assert re.search(rf"^{design} +4 draws 0\.\d+ \(\d\.\d\d\)  ", out, re.MULTILINE)
    assert "one evaluation: 0." in out


def test_designed_draws_are_sampled(trained: Workspace) -> None:
    options = ["--set", "sampling.save_draws=true", "--set", "sampling.animate=false"]
    folders = []
    for design in ("independent", "antithetic"):
        assert trained("sample", *options, "--set", f"sampling.noise={design}").code == 0
        folders.append(sorted((trained.run_folder() / "samples").iterdir())[-1])
    one, two = (np.load(folder / "phantom_0010" / "draws.npz")["sdf"] for folder in folders)
    np.testing.assert_allclose(one[0::2], two[0::2], atol=2e-4)
    assert not np.allclose(one[1], two[1])


PROTOCOL = """
name: two
title: Two systems
config: config.yaml
set: [sampling.draws=2]
small: [training.steps=2]
systems:
  - {name: regression, set: [sde.prior_share=1, sampling.sampler=mean], sample_once: []}
  - {name: VE, set: []}
samplings:
  - {name: mean, set: [sampling.sampler=mean]}
  - {name: heun 5, set: []}
"""


@pytest.mark.slow
def test_table_trains_scores_and_goes_on(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace.path / "two.yaml").write_text(PROTOCOL)
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
    content = PROTOCOL.replace("[training.steps=2]", "[training.steps=400, training.validate_every=400]")
    (workspace.path / "two.yaml").write_text(content)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [sys.executable, "-m", "bench.table", "--protocol", "two.yaml", "--output", "two", "--small", "--only",
               "regression"]  # fmt: skip
    process = subprocess.Popen([*command, "--seconds", "500"])
    folder = Path("runs/two_small-regression-0")
    deadline = time.monotonic() + 90
    while not list(folder.glob("*/metrics.csv")) and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    (run,) = folder.iterdir()
    assert 0 < load_checkpoint(run / "checkpoints" / "last.pt")["step"] < 400
    assert subprocess.run(command).returncode == 0
    (row,) = pd.read_csv("two.csv").to_dict("records")
    assert row["folder"].startswith(str(run))
    assert row["steps"] == 400
    shutil.copytree(Path(row["folder"]), run / "samples" / "20990101-000000")  # a later one that was broken off
    (run / "samples" / "20990101-000000" / "summary.json").unlink()
    Path("two.csv").unlink()
    assert subprocess.run(command).returncode == 0
    assert pd.read_csv("two.csv")["folder"].tolist() == [row["folder"]]


def test_names_that_look_like_numbers_are_known_again(tmp_path: Path) -> None:
    rows = [{"system": "3", "sampling": "010", "config_hash": "12e4", "data_hash": "0012", "commit": "7", "f1": 0.5}]
    pd.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
    assert table.read_rows(tmp_path / "a.csv") == rows


def test_a_protocol_decides_on_names_and_seeds() -> None:
    with pytest.raises(UsageError, match="--set seed=3: the protocol decides"):
        list(jobs_of(read_protocol("glas64"), ["seed=3"], small=False))
    jobs = list(jobs_of(read_protocol("glas64"), ["data.raw=x", "sampling.draws=3"], small=False))
    draws = {job.system: job.resolved().sampling.draws for job in jobs}
    assert (draws["DDPM"], draws["regression MC dropout"]) == (3, 3)


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("network: nobody", "network: nobody is none of VE"),
        ("members: 3", "members: needs network"),
        ("network: VE, config: x.yaml", "network: has a config of its own"),
    ],
)
def test_a_protocol_whose_ensembles_have_no_networks(workspace: Workspace, change: str, message: str) -> None:
    systems = f"systems:\n  - {{name: VE}}\n  - {{name: both, {change}}}\nsamplings:\n  - {{name: own}}\n"
    (workspace.path / "bad.yaml").write_text(f"name: bad\ntitle: Bad\nconfig: config.yaml\n{systems}")
    workspace.capture.readouterr()
    assert run_command(lambda: table.main(["--protocol", "bad.yaml"])) == 2
    assert message in workspace.capture.readouterr().err


def test_only_takes_systems_of_the_protocol(workspace: Workspace) -> None:
    assert run_command(lambda: table.main(["--protocol", "glas64", "--only", "U-net"])) == 2
    assert "--only U-net: no such system; U-Net, U-Net++" in workspace.capture.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [("name: x", "title"), ("- 1", "--protocol"), (PROTOCOL.replace("systems:", "system:"), "systems")],
)
def test_a_protocol_with_mistakes(workspace: Workspace, text: str, message: str) -> None:
    (workspace.path / "bad.yaml").write_text(text)
    workspace.capture.readouterr()
    assert run_command(lambda: table.main(["--protocol", "bad.yaml"])) == 2
    error = workspace.capture.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "small", "count"),
    [("systems_phantom", False, 36), ("systems_glas64", False, 36), ("glas64", False, 13), ("glas128", False, 13),
     ("glas128", True, 13)],
)  # fmt: skip
def test_every_system_of_the_protocols_is_a_valid_config(
    name: str, small: bool, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    jobs = list(jobs_of(read_protocol(name), ["data.raw=here"], small))
    assert len({dump_config(job.resolved()) for job in jobs}) == len(jobs) == count


@pytest.mark.slow
def test_the_gpu_script_goes_on_and_leaves_weights(tmp_path: Path) -> None:
    for name in ("bench", "cfg", "data", "evaluation", "models", "sde", "utils"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("main.py", "sample.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    tiny = [
        "training.steps=2",
        "sampling.steps=2",
        "data.phantom.size=32",
        "data.phantom.train=4",
        "data.phantom.test=2",
    ]
    options = [word for change in tiny for word in ("--set", change)]
    speed_options = "--size 16 --draws 1 --rounds 1 --set model.channels=8 --set training.batch=2"
    settings = {"PYTHON": sys.executable, "SPEED": speed_options, "OMP_NUM_THREADS": "1"}

    def call(seconds: str) -> str:
        command = ["bash", "bench/gpu.sh", "out", seconds, "--small", *options]
        result = subprocess.run(command, cwd=tmp_path, env={**os.environ, **settings}, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr + (tmp_path / "out/log.txt").read_text()
        return result.stdout

    assert call("1").splitlines()[-1] == "0 of 5 rows; time is up, the same command goes on"
    assert call("400").splitlines()[-1] == "table: out/glas128.md"
    systems = pd.read_csv(tmp_path / "out/glas128.csv")["system"]
    assert set(systems) == {"VP recommended", "VP direct mean", "U-Net", "regression", "VE paper"}
    assert read_header(tmp_path / "out/glas.safetensors").config["name"] == "glas"
    (tmp_path / "out/speed.txt").unlink()
    settings["SPEED"] = "--no-such-option"  # a bench that fails is said, and stops nothing
    assert "unrecognized arguments: --no-such-option" in call("400")
    assert not (tmp_path / "out/speed.txt").exists()


@pytest.mark.slow
def test_moments_are_compared_with_draws(trained: Workspace) -> None:
    options = ["--set", "sde.prior_share=0.5", "--set", "model.second_moment=true"]
    assert trained("main", *options).code == 0
    trained.capture.readouterr()
    assert (
        run_command(lambda: moments.main(["--config", "config.yaml", "--device", "cpu", "--draws", "4", *options])) == 0
    )
    printed = dict(re.findall(r"^(\w+) +(-?[\d.]+)$", trained.capture.readouterr().out, re.MULTILINE))
    assert -1 <= float(printed["std_correlation"]) <= 1
    assert float(printed["std_ratio"]) > 0
    assert float(printed["rms_difference"]) > 0
