"""Networks as files of other programs: the same numbers without this program, and errors before anything is written."""

from __future__ import annotations

from utils.command import run_command

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.build import denoiser_of
from results import graph_files
from sampling.graph import graph_of
from tests.commands import ROOT, TINY
from tests.networks import shake
from tests.test_docs import fences
from utils import export
from utils.config import override_config, parse_config
from utils.errors import UsageError
from utils.weights import Header, read_header, weights_bytes

ONE = {"sde": {"process": "vp", "objective": "distribution", "prior_share": 1.0},
       "sampling": {"sampler": "ancestral", "steps": 1, "spread": 1.25}}  # fmt: skip


def weights(path: Path, changes: Mapping[str, Any]) -> Path:
    """Of a small network that was never trained."""
    raw = {**TINY, **changes, "training": {"steps": 2}, "evaluation": {}}
    config = parse_config(raw, path)
    torch.manual_seed(0)
    model = denoiser_of(config)
    shake(model)
    header = Header(config.model_dump(mode="json"), {"size": [32, 32]}, "made up, free", "abc", 2)
    path.write_bytes(weights_bytes(model.state_dict(), header))
    return path


def exports(source: Path, output: str, *more: str) -> int:
    words = ["--weights", str(source), "--output", output, *more]
    return run_command(lambda: export.main(words))


def test_onnx_runs_without_this_program_as_the_documents_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    monkeypatch.chdir(tmp_path)
    source = weights(tmp_path / "w.safetensors", ONE)
    assert exports(source, "network.onnx", "--format", "onnx") == 0
    (example,) = fences(ROOT / "docs" / "export.md", "python")
    check = """
import sys
assert "torch" not in sys.modules
np.savez("found.npz", image=image, draws=draws, xi=noise(np.random.default_rng(4), 90, 70)[None], mask=mask)
np.save("again.npy", session.run(["sdf"], {"image": image, "xi": noise(np.random.default_rng(4), 90, 70)[None]})[0])
json.dump(known, open("known.json", "w"))
"""
    subprocess.run([sys.executable, "-c", example + check], check=True, cwd=tmp_path)
    found, known = np.load("found.npz"), json.loads(Path("known.json").read_text())
    graph = graph_of(parse_config(json.loads(known["config"]), source), source, None)
    with torch.no_grad():
        expected = graph(torch.from_numpy(found["image"]), torch.from_numpy(found["xi"]))
    assert np.abs(np.load("again.npy") - expected.numpy()).max() < 1e-4
    assert expected.std() > 0.01
    assert np.std(found["draws"], axis=0).mean() > 0.001
    assert found["mask"].shape == (1, 90, 70)
    assert known["licence"] == "made up, free"
    assert (float(known["threshold"]), json.loads(known["stride"]), known["commit"]) == (0.5 / 6, 2, "abc")


@pytest.mark.slow
def test_onnx_has_the_maps_of_draws_in_all_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnx", reason="onnx is not installed")
    monkeypatch.chdir(tmp_path)
    source = weights(tmp_path / "w.safetensors", ONE)
    more = ["--set", "sampling.augment=true", "--draws", "2"]
    assert exports(source, "maps.onnx", "--format", "onnx", *more) == 0
    image = 255.0 * np.random.default_rng(0).random((1, 1, 21, 34), dtype=np.float32)
    found = onnxruntime.InferenceSession("maps.onnx").run(None, {"image": image})
    graph = graph_of(override_config(read_header(source).config, source, more[1:2]), source, 2)
    with torch.no_grad():
        mean, std, _ = graph(torch.from_numpy(image))
    assert np.abs(found[0] - mean.numpy()).max() < 1e-4
    assert np.abs(found[1] - std.numpy()).max() < 1e-4
    assert set(np.unique(found[2])) <= {0.0, 0.5, 1.0}


def test_pictures_in_colours_and_their_stretch_may_be_in_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnx", reason="onnx is not installed")
    monkeypatch.chdir(tmp_path)
    data: Any = TINY["data"]
    stretched = weights(tmp_path / "w.safetensors", {**ONE, "data": {**data, "stretch": True}})
    assert exports(stretched, "network.onnx", "--format", "onnx", "--stretch") == 0
    session = onnxruntime.InferenceSession("network.onnx")
    known = session.get_modelmeta().custom_metadata_map
    assert json.loads(known["preparation"]) == []
    assert "made grey" in known["input"]
    grey = np.random.default_rng(0).integers(40, 90, (1, 1, 21, 34)).astype(np.float32)
    zero = np.zeros((1, 10, 1, 1), np.float32)
    (one,) = session.run(None, {"image": grey, "xi": zero})
    (colours,) = session.run(None, {"image": np.repeat(3 * grey - 40, 3, axis=1), "xi": zero})
    np.testing.assert_allclose(one, colours, atol=1e-3)
    assert one.std() > 0.01
    plain = weights(tmp_path / "p.safetensors", ONE)
    assert exports(plain, "x.onnx", "--format", "onnx", "--stretch") == 2
    assert "--stretch: p.safetensors" in capsys.readouterr().err.replace(f"{tmp_path}/", "")
    assert not Path("x.onnx").exists()


def test_torchscript_is_the_graph_at_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = weights(tmp_path / "w.safetensors", ONE)
    assert exports(source, "maps.pt", "--format", "torchscript", "--draws", "3") == 0
    extra = {graph_files.METADATA: ""}
    loaded = torch.jit.load("maps.pt", _extra_files=extra)
    known = json.loads(extra[graph_files.METADATA])
    graph = graph_of(parse_config(json.loads(known["config"]), source), source, 3)
    assert json.loads(known["outputs"]) == ["mean", "std", "probability"]
    for shape in ((1, 1, 20, 31), (3, 1, 8, 8)):
        image = 255.0 * torch.rand(shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            assert all(map(torch.equal, loaded(image), graph(image)))


def test_what_gives_no_draw_in_one_evaluation_gives_its_mean_or_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    regression = weights(tmp_path / "r.safetensors", {"sde": {"prior_share": 1.0}, "sampling": {"sampler": "mean"}})
    assert exports(regression, "mean.pt", "--format", "torchscript") == 0
    assert torch.jit.load("mean.pt")(torch.zeros(1, 1, 9, 8)).shape == (1, 1, 9, 8)
    assert exports(regression, "x.pt", "--format", "torchscript", "--draws", "2") == 2
    assert "--draws: 2 is for networks whose draws take one evaluation" in capsys.readouterr().err
    many = weights(tmp_path / "m.safetensors", {})
    assert exports(many, "x.pt", "--format", "torchscript") == 2
    assert "trains no direct mean to export" in capsys.readouterr().err
    assert not Path("x.pt").exists()


def test_a_difference_is_an_error() -> None:
    class Off:
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1.0

    with pytest.raises(RuntimeError, match="nothing was written"):
        graph_files._compare(Off(), (torch.zeros(1),), torch.zeros(1), "another")  # type: ignore[arg-type]


def test_a_missing_library_is_one_line() -> None:
    with pytest.raises(UsageError, match="no_such_library: not installed; pip install nothing"):
        graph_files.need("export", "nothing", "no_such_library")
