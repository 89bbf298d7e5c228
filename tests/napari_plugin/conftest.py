"""Results of a tiny network on pictures of several formats; a viewer, napari's and one that stands for it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.commands import COMMANDS, shake_checkpoint
from tests.pictures import picture


@pytest.fixture(scope="session")
def predicted_folder(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, predictions of them, and samples of a run's data set."""
    folder = shutil.copytree(trained_folder, tmp_path_factory.mktemp("napari") / "work")
    (folder / "pictures").mkdir()
    Image.fromarray(picture(40, 56)).save(folder / "pictures" / "grey.png")
    Image.fromarray(picture(32, 44, 3)).save(folder / "pictures" / "colour.jpg")
    tifffile.imwrite(folder / "pictures" / "deep.tif", picture(33, 47).astype(np.uint16) * 200)
    shake_checkpoint(next((folder / "runs" / "tiny").iterdir()))
    common = ["--config", "config.yaml", "--device", "cpu", "--quiet"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        COMMANDS["sample"]([*common, "--input", "pictures", "--output", "predictions"])
        COMMANDS["sample"]([*common, "--set", "sampling.animate=false"])
    return folder


@pytest.fixture
def work(predicted_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as the working folder. The pictures stay where they were read."""
    shutil.copytree(predicted_folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Layers(list[Any]):
    def __init__(self) -> None:
        super().__init__()
        self.selection = SimpleNamespace(active=None)


class Layer(SimpleNamespace):
    """Equal to itself alone, as napari's are."""

    __eq__, __hash__ = object.__eq__, object.__hash__  # type: ignore[assignment]


class StandIn:
    """What a session uses of napari's viewer."""

    def __init__(self) -> None:
        self.layers, self.dims = Layers(), SimpleNamespace(ndim=2)

    def add_image(self, data: np.ndarray, *, name: str, metadata: Any, visible: bool = True, **others: Any) -> Any:
        source = SimpleNamespace(path=None)
        layer = Layer(data=data, name=name, metadata=metadata, visible=visible, source=source, **others)
        self.layers.append(layer)
        return layer

    add_labels = add_image


def napari_viewer() -> Any:
    return pytest.importorskip("napari", reason="needs napari").components.ViewerModel()


@pytest.fixture(params=[StandIn, napari_viewer], ids=["stand-in", "napari"])
def viewer(request: pytest.FixtureRequest) -> Any:
    make: Callable[[], Any] = request.param
    return make()
