"""The widgets, in Qt without a screen; skipped where napari or Qt is not installed."""

from __future__ import annotations

from utils.command import run_command

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.commands import exported
from tests.pictures import picture

if sys.platform == "linux":
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
pytest.importorskip("napari", reason="needs napari")
pytest.importorskip("qtpy", reason="needs Qt", exc_type=ImportError)

from napari.components import ViewerModel
from npe2 import PluginManager, PluginManifest
from qtpy.QtWidgets import QApplication

from napari_plugin import correct as command
from napari_plugin import widgets
from napari_plugin.widgets import correct_widget, predict_widget
from tests.commands import ROOT


@pytest.fixture
def app() -> QApplication:
    return QApplication.instance() or QApplication([])


@pytest.fixture
def errors(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    shown: list[str] = []
    monkeypatch.setattr(widgets, "show_error", shown.append)
    return shown


def part(container: Any, label: str) -> Any:
    """The widget of a label, or with a text."""
    return next(own for own in container if label in (own.label, getattr(own, "text", None)))


def press(container: Any, text: str) -> None:
    part(container, text).changed.emit(True)


def wait(app: QApplication, until: Callable[[], bool]) -> None:
    for _ in range(1200):
        app.processEvents()
        if until():
            return
        time.sleep(0.05)
    raise AssertionError("took longer than a minute")


def test_a_person_goes_through_the_list(work: Path, app: QApplication, errors: list[str]) -> None:
    viewer = ViewerModel()
    box = correct_widget(viewer, Path("predictions"), output=Path("corrected"))
    first, second, third = part(box, "picture").choices
    box.reset_choices()  # as napari does when it docks a widget
    assert part(box, "picture").value == viewer.layers[0].name == first
    viewer.layers["objects"].paint((10, 10), 42)
    press(box, "Next picture")
    assert errors == [f"{first}: not saved; save or discard it first"]
    assert part(box, "picture").value == first
    press(box, "Save correction")
    assert (np.asarray(Image.open(f"corrected/labels/{first}.png")) == viewer.layers["objects"].data).all()
    press(box, "Next picture")
    assert viewer.layers[0].name == second
    part(box, "picture").value = first
    assert viewer.layers[0].name == first
    viewer.layers["objects"].data[:] = 0
    press(box, "Save correction")
    assert "is there already" in errors[-1]
    part(box, "replace a correction").value = True
    press(box, "Save correction")
    assert not np.asarray(Image.open(f"corrected/labels/{first}.png")).any()
    assert not part(box, "replace a correction").value  # once each
    part(box, "picture").value = third
    press(box, "Next picture")
    assert "no other picture" in box[-1].value
    assert len(errors) == 2


def test_what_is_selected_is_what_is_saved(work: Path, app: QApplication, errors: list[str]) -> None:
    viewer = ViewerModel()
    viewer.add_image(picture(20, 30), name="mine")
    box = correct_widget(viewer, output=Path("corrected"))
    press(box, "Save correction")
    assert "a labels layer" in errors[-1]
    viewer.add_labels(np.zeros((20, 30), int), name="first")
    viewer.add_labels(np.ones((20, 30), int), name="second")
    viewer.add_labels(np.ones((4, 20, 30), int), name="draws")
    for layer in ("first", "second", "draws"):
        viewer.layers.selection.active = viewer.layers[layer]
    press(box, "Save correction")
    assert np.asarray(Image.open("corrected/labels/mine.png")).all()


def test_results_that_are_none_are_a_line(work: Path, app: QApplication, errors: list[str]) -> None:
    viewer = ViewerModel()
    box = correct_widget(viewer)
    part(box, "results").value = work / "pictures"
    assert "no results of sample.py" in errors[-1]
    part(box, "results").value = work / "predictions"
    assert part(box, "picture").value == viewer.layers[0].name
    assert len(errors) == 1


@pytest.mark.slow
def test_weights_draw_what_sample_draws(
    work: Path, app: QApplication, errors: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = exported(SimpleNamespace(run_folder=lambda: next((work / "runs" / "tiny").iterdir())), "--full")  # type: ignore[arg-type]
    viewer = ViewerModel()
    box = predict_widget(viewer)
    press(box, "Run")
    assert "open a picture first" in errors[-1]
    viewer.add_image(np.asarray(Image.open("pictures/grey.png")), name="grey")
    for path in (Path("nowhere.safetensors"), given):
        part(box, "weights").value = path
        press(box, "Run")
        assert not part(box, "Run").enabled
        wait(app, lambda: part(box, "Run").enabled)
    assert "nowhere.safetensors" in errors[-1]
    np.testing.assert_allclose(viewer.layers["mean"].data, np.load("predictions/grey/mmse.npy"), atol=1e-4)
    assert viewer.layers["objects"].ndim == 2
    correct = correct_widget(viewer, output=Path("corrected"))
    viewer.layers.selection.active = viewer.layers["objects"]
    press(correct, "Save correction")
    assert {path.name for path in Path("corrected/images").iterdir()} == {"grey.png"}


def test_the_command_opens_results(work: Path, app: QApplication, monkeypatch: pytest.MonkeyPatch) -> None:
    docked: list[str] = []
    viewer = ViewerModel()
    window = SimpleNamespace(add_dock_widget=lambda box, name, **options: docked.append(name))
    with_window = SimpleNamespace(layers=viewer.layers, dims=viewer.dims, add_image=viewer.add_image,
                                  add_labels=viewer.add_labels, window=window)  # fmt: skip
    monkeypatch.setattr("napari.Viewer", lambda title: with_window)
    monkeypatch.setattr("napari.run", lambda: docked.append("run"))
    assert run_command(lambda: command.main(["predictions"])) == 0
    assert docked == ["Run weights", "Correct results", "run"]
    assert "objects" in viewer.layers


def test_napari_reads_results_by_the_manifest(work: Path) -> None:
    text = (ROOT / "napari_plugin" / "napari.yaml").read_text().replace("segsdf.napari_plugin", "napari_plugin")
    (work / "napari.yaml").write_text(text)
    manager = PluginManager()
    manager.register(manifest := PluginManifest.from_file(work / "napari.yaml"))
    for path in ("predictions", "predictions/results.csv"):
        assert [reader.plugin_name for reader in manager.iter_compatible_readers([path])] == [manifest.name]
    assert not list(manager.iter_compatible_readers(["pictures/grey.png"]))
    assert [widget.display_name for widget in manager.iter_widgets()] == ["Correct results", "Run weights"]
