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
    box = _CorrectBox(viewer, results or (open_results[-1] if open_results else None), pictures, output)
    box.begin()
    return box


def _folder_of(edit: FileEdit) -> Path | None:
    """What was chosen, if anything was."""
    return None if str(edit.value) in ("", ".") else Path(edit.value)


class _CorrectBox(Container):  # type: ignore[misc]  # which is Any where magicgui is not installed
    """The widget of `correct_widget`; its methods are what happens in it."""

    def __init__(self, viewer: Any, results: Path | None, pictures: Path | None, output: Path) -> None:
        self._viewer = viewer
        self._session: Session | None = None
        self._results = FileEdit(
            label="results", mode="d", value=results or "", tooltip="an output folder of sample.py"
        )
        self._pictures = FileEdit(label="pictures", mode="d", value=pictures or "", tooltip="only if they have moved")
        about = "the first is the one to look at first; * has a correction"
        self._picture_box = ComboBox(label="picture", choices=self._listing, tooltip=about)
        self._discard = CheckBox(text="discard changes that are not saved")
        following = PushButton(text="Next picture")
        self._image_box = _layer_box(viewer, Image, "image")
        self._labels_box = _layer_box(viewer, Labels, "labels")
        self._output = FileEdit(label="corrections", mode="d", value=output)
        self._replace = CheckBox(text="replace a correction")
        save, self._status = PushButton(text="Save correction"), Label(value="")
        which = [self._results, self._pictures, self._picture_box, self._discard, following]
        what = [self._image_box, self._labels_box, self._output, self._replace, save, self._status]
        super().__init__(widgets=[*which, *what])
        for widget, action in (
            (self._results, self.begin),
            (self._pictures, self.begin),
            (self._picture_box, self.turn_to),
            (following, self.go_on),
            (save, self.save),
        ):
            widget.changed.connect(action)
        viewer.layers.selection.events.active.connect(self.follow)

    @property
    def _corrections(self) -> Path:
        return Path(self._output.value)

    def _listing(self, _: Any) -> list[tuple[str, str]]:
        """Choices that napari, too, asks for anew whenever layers come and go."""
        if self._session is None:
            return []
        done = corrected(self._corrections)
        marked = [(f"{name} *" if name in done else name, name) for name in self._session.names]
        return [(f"{rank}  {text}", name) for rank, (text, name) in enumerate(marked, 1)]

    def _show(self) -> None:
        """The list, with what is open chosen in it; its own changes open nothing."""
        session = self._session
        with self._picture_box.changed.blocked():
            self._picture_box.reset_choices()
            if session and session.name:
                self._picture_box.value = session.name
        if session and session.name:
            self._image_box.value, self._labels_box.value = session.image, session.labels

    def begin(self) -> None:
        """With the folder of results that is chosen."""
        if (results := _folder_of(self._results)) is None:
            return
        with telling():
            self._session = Session(self._viewer, results, _folder_of(self._pictures))
        if self._session and self._session.name is None:
            self.turn_to(self._session.names[0])
        self._show()

    def turn_to(self, name: str | None) -> None:
        """Open a picture of the list."""
        session = self._session
        if session and name and name != session.name:
            with telling():
                session.open(name, discard=self._discard.value)
                self._discard.value, self._status.value = False, ""
        self._show()

    def go_on(self) -> None:
        """To the next picture without a correction."""
        name = self._session.next(self._corrections) if self._session else None
        if name is None:
            self._status.value = "no other picture without a correction after this one"
        self.turn_to(name)

    def save(self) -> None:
        """What is chosen as image and labels."""
        session, chosen = self._session, (self._image_box.value, self._labels_box.value)
        with telling():
            if session and chosen == (session.image, session.labels):
                path = session.save(self._corrections, replace=self._replace.value)
            else:
                path = save_layers(*chosen, self._corrections, replace=self._replace.value)
            self._replace.value, self._status.value = False, f"saved {path}"
        self._show()

    def follow(self) -> None:
        """What is selected is what is painted on, and saved."""
        if (selected := self._viewer.layers.selection.active) in self._labels_box.choices:
            self._labels_box.value = selected
