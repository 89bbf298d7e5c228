"""Packages of the BioImage Model Zoo: what they say is so, and another program gets their outputs."""

from __future__ import annotations

from utils.command import run_command

import hashlib
import io
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from results import networks
from results.bioimageio import spdx
from tests.commands import TINY
from tests.results.test_graph_files import ONE, weights
from utils import export

PHANTOM: Any = TINY["data"]
DRAWS: dict[str, Any] = {**ONE, "data": {**PHANTOM, "stretch": True}}
MEAN: dict[str, Any] = {"sde": {"prior_share": 1.0}, "sampling": {"sampler": "mean"}}


@pytest.fixture(autouse=True)
def picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(60, 120, (45, 70, 3), np.uint8)
    Image.fromarray(noise).resize((140, 90), Image.Resampling.BICUBIC).save("picture.png")


def exports(source: Path, *more: str, image: str = "picture.png") -> int:
    words = ["--weights", str(source), "--output", "out/tiny.zip", "--format", "bioimageio"]
    given = ["--input", image, "--author", "Ada", "--author", "Bob"]
    return run_command(lambda: export.main([*words, *given, *more]))


def package(changes: Mapping[str, Any], *more: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The description and files of the package of an untrained network."""
    pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    assert exports(weights(Path("w.safetensors"), changes), *more) == 0
    with zipfile.ZipFile("out/tiny.zip") as file:
        files = {name: file.read(name) for name in file.namelist()}
    return yaml.safe_load(files["rdf.yaml"]), files


def array(files: Mapping[str, bytes], tensor: Mapping[str, Any]) -> np.ndarray:
    return np.load(io.BytesIO(files[tensor["test_tensor"]["source"]]))


def as_described(image: np.ndarray, steps: list[dict[str, Any]]) -> np.ndarray:
    """The preprocessing of an image (1, C, H, W), step by step, as readers do it."""
    for step in steps:
        kwargs = step["kwargs"]
        if step["id"] == "scale_range":
            assert kwargs["axes"] == ["channel", "y", "x"]
            low, high = np.percentile(image, (kwargs["min_percentile"], kwargs["max_percentile"]))
            image = (image - low) / (high - low + kwargs["eps"])
        elif step["id"] == "clip":
            image = image.clip(kwargs["min"], kwargs["max"])
        elif step["id"] == "scale_linear":
            image = image * kwargs["gain"] + kwargs["offset"]
        else:
            assert step == {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}}
    return image.astype(np.float32)


def sources(found: Any) -> list[dict[str, str]]:
    """Every file that a description names."""
    parts = found.values() if isinstance(found, dict) else found if isinstance(found, list) else []
    own = [found] if isinstance(found, dict) and "source" in found else []
    return [*own, *(one for part in parts for one in sources(part))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "outputs", "cover"),
    [(DRAWS, ["mean", "std", "probability"], (1024, 512)), (MEAN, ["sdf"], (512, 256))],
    ids=["draws", "mean"],
)
def test_another_program_gets_the_outputs(
    changes: Mapping[str, Any], outputs: list[str], cover: tuple[int, int]
) -> None:
    import onnxruntime

    said, files = package(changes, *(["--draws", "3"] if "std" in outputs else []))
    (image,) = said["inputs"]
    raw = array(files, image)
    assert raw.shape == (1, 1, 90, 90)
    session = onnxruntime.InferenceSession(files[said["weights"]["onnx"]["source"]])
    found = session.run(None, {image["id"]: as_described(raw, image["preprocessing"])})
    assert [output["id"] for output in said["outputs"]] == outputs
    for values, output in zip(found, said["outputs"], strict=True):
        expected = array(files, output)
        off = np.abs(values - expected) > 1e-3
        assert off.mean() < 1e-3  # a pixel whose SDF is on the threshold may change sides
        assert [axis["type"] for axis in output["axes"]] == ["batch", "channel", "space", "space"]
        assert len(output["axes"][1]["channel_names"]) == expected.shape[1]
        least, most = output["data"]["range"]
        assert least is None or least <= expected.min()
        assert most is None or expected.max() <= most
    assert (array(files, said["outputs"][0]).std()) > 1e-3
    shown = Image.open(io.BytesIO(files["cover.png"]))
    assert shown.size == cover
    assert len(files["cover.png"]) < 500_000


def test_what_is_said_of_the_package_is_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "USUAL_DRAWS", 2)
    Path("w.md").write_text("# w\n\nBlobs, in `noise`. Nothing else.\n\n## Limits\n\nMany.\n")
    said, files = package(ONE)
    assert said["format_version"].startswith("0.5.")
    assert said["type"] == "model"
    assert {one["source"]: one["sha256"] for one in sources(said)} == {
        name: hashlib.sha256(content).hexdigest() for name, content in files.items() if name != "rdf.yaml"
    }
    assert said["authors"] == [{"name": "Ada"}, {"name": "Bob"}]
    assert all(set(entry) == {"text", "doi"} for entry in said["cite"])
    assert said["description"].startswith("Blobs, in noise. Mean, std and foreground probability of 2 draws")
    assert said["license"]["source"] == "LICENSE.txt"  # "made up, free" is none that the zoo knows
    assert files["LICENSE.txt"] == b"made up, free\n"
    text = files["README.md"].decode()
    assert text.startswith("# w\n\nBlobs")
    assert "## Validation" in text
    sizes = [axis["size"] for axis in said["inputs"][0]["axes"] if axis["type"] == "space"]
    assert sizes == [{"min": 2, "step": 2}] * 2
    assert said["inputs"][0]["data"]["range"] == [0, 255]
    known = said["config"]["generative_segmentation_sdf"]
    assert (known["threshold"], known["draws"], known["step"]) == (0.5 / 6, 2, 2)
    assert b"&id" not in files["rdf.yaml"]


def test_the_zoo_accepts_the_package() -> None:
    pytest.importorskip("bioimageio.core", reason="bioimageio.core is not installed")
    spec, pydantic = (tuple(map(int, version(name).split(".")[:3])) for name in ("bioimageio.spec", "pydantic"))
    if spec < (0, 5, 14) and pydantic >= (2, 14):
        pytest.skip("this bioimageio.spec cannot describe files with pydantic 2.14")
    package(ONE, "--draws", "2")
    words = ["-m", "bioimageio.core", "test", "out/tiny.zip", "--weight-format", "onnx"]
    ended = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("licence", "known"),
    [
        ("CC0 data (BBBC038v1): free to use", "CC0-1.0"),
        ("LIDC-IDRI (Armato et al. 2011), CC BY 3.0: anybody who names the authors", "CC-BY-3.0"),
        ("CC BY-NC-SA 4.0", "CC-BY-NC-SA-4.0"),
        ("Apache-2.0", "Apache-2.0"),
        ("GlaS challenge data: research only, weights too", None),
        ("not CC", None),
    ],
)
def test_licences_that_have_a_name(licence: str, known: str | None) -> None:
    assert spdx(licence) == known


def test_errors_come_before_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    source = weights(Path("w.safetensors"), ONE)
    Image.fromarray(np.zeros((1, 70), np.uint8)).save("line.png")
    Path("broken.png").write_bytes(b"no picture")
    for image, problem in (("line.png", "70 x 1 pixels; 2 are needed"), ("broken.png", "cannot be read"),
                           ("absent.png", "no such file")):  # fmt: skip
        assert exports(source, image=image) == 2
        err = capsys.readouterr().err
        assert problem in err
        assert image in err
    assert exports(source, "--set", "sampling.threshold=-5") == 2
    assert "no object is found in its middle" in capsys.readouterr().err
    words = ["--weights", str(source), "--output", "out/tiny.zip", "--format", "bioimageio", "--author", "Ada"]
    assert run_command(lambda: export.main(words)) == 2
    assert "needs --input" in capsys.readouterr().err
    words = ["--weights", str(source), "--output", "x.onnx", "--format", "onnx", "--author", "Ada"]
    assert run_command(lambda: export.main(words)) == 2
    assert "--author goes with --format bioimageio" in capsys.readouterr().err
    assert not Path("out").exists()
