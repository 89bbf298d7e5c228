"""Correcting the pictures of a folder of results one after the other, in any viewer model of napari."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from napari_plugin.corrections import corrected, save_layers
from napari_plugin.layers import LayerData, picture_layers, ranked
from utils.errors import UsageError

AXES = ("draw", "row", "column")


def add_layers(viewer: Any, layers: list[LayerData]) -> list[Any]:
    """The layers that the viewer makes of these; the last one, whose labels a person corrects, is selected."""
    added = [getattr(viewer, f"add_{kind}")(data, **attributes) for data, attributes, kind in layers]
    viewer.layers.selection.active = added[-1]
    if viewer.dims.ndim == 3:
        viewer.dims.axis_labels = AXES
    return added


class Session:
    """The pictures of `results` in the order of `ranked`, one of them open at a time.

    pictures: see `picture_layers`. name: of what is open, or None. image, labels: its layers; image may be None.
    """

    def __init__(self, viewer: Any, results: Path, pictures: Path | None = None) -> None:
        self.viewer, self.results, self.pictures, self.names = viewer, results, pictures, ranked(results)
        self.name: str | None = None
        self.image: Any = None
        self.labels: Any = None
        self._layers: list[Any] = []
        self._before = np.zeros(0)
        # What napari's reader has opened already.
        known = [own.metadata for own in viewer.layers if own.metadata.get("results") == str(results.absolute())]
        if known:
            name = known[-1]["picture"]
            self._take(name, [own for own in viewer.layers if own.metadata.get("picture") == name])

    def _take(self, name: str, layers: list[Any]) -> None:
        self.name, self._layers, self.labels = name, layers, layers[-1]
        self.image = next((layer for layer in layers if "file" in layer.metadata), None)
        self._before = np.array(self.labels.data)

    @property
    def unsaved(self) -> bool:
        """Whether the open labels differ from what was opened or saved last."""
        return self.labels in self.viewer.layers and not np.array_equal(self.labels.data, self._before)

    def open(self, name: str, *, discard: bool = False) -> None:
        """Layers of a picture in place of those of the one before, as visible as they were. Raises UsageError where
        that has an unsaved correction, unless `discard`, and what `picture_layers` does; it stays open then."""
        if self.unsaved and not discard:
            raise UsageError(f"{self.name}: not saved; save or discard it first")
        layers = picture_layers(self.results / name, self.pictures)
        shown = {old.name: old.visible for old in self._layers}
        for _, attributes, _ in layers:
            attributes["visible"] = shown.get(attributes["name"], attributes.get("visible", True))
        for old in self._layers:
            if old in self.viewer.layers:
                self.viewer.layers.remove(old)
        self._take(name, add_layers(self.viewer, layers))

    def save(self, folder: Path, *, replace: bool = False) -> Path:
        """See `save_layers`."""
        path = save_layers(self.image, self.labels, folder, replace=replace)
        self._before = np.array(self.labels.data)
        return path

    def next(self, folder: Path) -> str | None:
        """The first picture after the open one that `folder` has no correction of, or None."""
        done = corrected(folder)
        later = self.names[self.names.index(self.name) + 1 :] if self.name else self.names
        return next((name for name in later if name not in done), None)
