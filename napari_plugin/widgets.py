"""The two widgets of napari: run given weights on an image layer, and correct labels for a training."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from magicgui.widgets import CheckBox, ComboBox, Container, FileEdit, Label, PushButton
from napari import current_viewer
from napari.layers import Image, Labels
from napari.qt.threading import thread_worker
from napari.utils.notifications import show_error

from napari_plugin.corrections import corrected, save_layers
from napari_plugin.layers import ERRORS, LayerData, predicted_layers
from napari_plugin.session import Session, add_layers


@contextmanager
def telling() -> Iterator[None]:
    """Errors of files and of what was chosen are a line in napari, not a traceback."""
    try:
        yield
    except ERRORS as error:
        show_error(str(error))


def _layer_box(viewer: Any, kind: Any, label: str) -> ComboBox:
    """A choice of the viewer's layers of a kind that are of one picture."""
    box = ComboBox(label=label, choices=lambda _: [own for own in viewer.layers if type(own) is kind and own.ndim == 2])
    for event in (viewer.layers.events.inserted, viewer.layers.events.removed):
        event.connect(lambda _: box.reset_choices())
    return box


def predict_widget(viewer: Any = None) -> Container:
    """Draw from given weights on an image layer, and add the layers of the result.

    viewer: a viewer or viewer model of napari; default: the current one.
    """
    viewer = viewer or current_viewer()
    image = _layer_box(viewer, Image, "image")
    weights = FileEdit(
        label="weights", value="nuclei", filter="*.safetensors", tooltip="a file, or the name of shipped weights"
    )
    button, status = PushButton(text="Run"), Label(value="")

    def draw(*given: Any) -> list[LayerData] | str:
        """The layers, or what went wrong: napari would show a traceback."""
        try:
            # A process of its own: torch's compiler and Mesa's drivers each bring an LLVM, and crash in one process.
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                return pool.submit(predicted_layers, *given).result()
        except (*ERRORS, RuntimeError, MemoryError) as error:
            return " ".join(str(error).split()) or type(error).__name__

    def done(drawn: list[LayerData] | str) -> None:
        button.enabled = True
        if isinstance(drawn, str):
            status.value = "failed"
            show_error(drawn)
        else:
            status.value = "done"
            add_layers(viewer, drawn)

    def run() -> None:
        if image.value is None:
            show_error("an image layer is needed; open a picture first")
            return
        button.enabled, status.value = False, "drawing ..."
        worker = thread_worker(draw)(Path(weights.value), np.asarray(image.value.data), image.value.name)
        worker.returned.connect(done)
        worker.start()

    button.changed.connect(run)
    return Container(widgets=[image, weights, button, status])


def correct_widget(
    viewer: Any = None, results: Path | None = None, pictures: Path | None = None, output: Path = Path("corrected")
) -> Container:
    """Open the pictures of results, those to look at first first, and save corrected labels for a training.

    viewer: as for `predict_widget`. results: the folder; default: that of the layers which are open. pictures: see
    `picture_layers`. output: the folder of the corrections.
    """
    viewer = viewer or current_viewer()
    open_results = [Path(own.metadata["results"]) for own in viewer.layers if own.metadata.get("results")]
    results = results or (open_results[-1] if open_results else None)
    where = FileEdit(label="results", mode="d", value=results or "", tooltip="an output folder of sample.py")
    originals = FileEdit(label="pictures", mode="d", value=pictures or "", tooltip="only if they have moved")
    folder = FileEdit(label="corrections", mode="d", value=output)
    session: Session | None = None

    def listing(_: Any) -> list[tuple[str, str]]:
        """Choices that napari, too, asks for anew whenever layers come and go."""
        done = corrected(Path(folder.value)) if session else set()
        names = session.names if session else []
        return [(f"{rank}  {name}{' *' if name in done else ''}", name) for rank, name in enumerate(names, 1)]

    about = "the first is the one to look at first; * has a correction"
    picture = ComboBox(label="picture", choices=listing, tooltip=about)
    discard = CheckBox(text="discard changes that are not saved")
    image, labels = _layer_box(viewer, Image, "image"), _layer_box(viewer, Labels, "labels")
    replace = CheckBox(text="replace a correction")
    save, following, status = PushButton(text="Save correction"), PushButton(text="Next picture"), Label(value="")

    def show() -> None:
        """The list, with what is open chosen in it; its own changes open nothing."""
        with picture.changed.blocked():
            picture.reset_choices()
            if session and session.name:
                picture.value = session.name
        if session and session.name:
            image.value, labels.value = session.image, session.labels

    def turn_to(name: str | None) -> None:
        if session and name and name != session.name:
            with telling():
                session.open(name, discard=discard.value)
                discard.value, status.value = False, ""
        show()

    def begin() -> None:
        nonlocal session
        if str(where.value) in ("", "."):
            return
        moved = None if str(originals.value) in ("", ".") else Path(originals.value)
        with telling():
            session = Session(viewer, Path(where.value), moved)
        if session and session.name is None:
            turn_to(session.names[0])
        show()

    def keep() -> None:
        with telling():
            chosen = image.value, labels.value
            if session and chosen == (session.image, session.labels):
                path = session.save(Path(folder.value), replace=replace.value)
            else:
                path = save_layers(*chosen, Path(folder.value), replace=replace.value)
            replace.value, status.value = False, f"saved {path}"
        show()

    def go_on() -> None:
        name = session.next(Path(folder.value)) if session else None
        if name is None:
            status.value = "no other picture without a correction after this one"
        turn_to(name)

    def follow() -> None:
        """What is selected is what is painted on, and saved."""
        if viewer.layers.selection.active in labels.choices:
            labels.value = viewer.layers.selection.active

    viewer.layers.selection.events.active.connect(follow)
    for widget, action in ((where, begin), (originals, begin), (save, keep), (following, go_on)):
        widget.changed.connect(action)
    picture.changed.connect(turn_to)
    begin()
    return Container(
        widgets=[where, originals, picture, discard, following, image, labels, folder, replace, save, status]
    )
