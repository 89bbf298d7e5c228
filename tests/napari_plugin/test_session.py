"""One picture after the other, in napari's viewer model where napari is installed, and in one that stands for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from napari_plugin.layers import get_reader, ranked
from napari_plugin.session import Session, add_layers
from utils.errors import UsageError


def names(viewer: Any) -> list[str]:
    return [layer.name for layer in viewer.layers]


def test_pictures_take_each_others_place_in_their_order(work: Path, viewer: Any) -> None:
    viewer.add_image(np.zeros((5, 5)), name="mine", metadata={})
    session = Session(viewer, Path("predictions"))
    seen = []
    while name := session.next(Path("corrected")):
        session.open(name)
        assert names(viewer) == ["mine", name, "mean", "std", "probability", "draws", "objects"]
        assert viewer.layers.selection.active is session.labels
        seen.append(name)
    assert seen == ranked(Path("predictions"))


def test_what_was_shown_stays_shown(work: Path, viewer: Any) -> None:
    session = Session(viewer, Path("predictions"))
    session.open(session.names[0])
    for layer in viewer.layers:
        layer.visible = layer.name == "std"
    session.open(session.names[1])
    assert [layer.name for layer in viewer.layers if layer.visible] == [session.names[1], "std"]


def test_a_correction_is_neither_lost_nor_written_unasked(work: Path, viewer: Any) -> None:
    session = Session(viewer, Path("predictions"))
    first, second, _ = session.names
    session.open(first)
    assert not session.unsaved
    session.labels.data[:4, :6] = 99
    with pytest.raises(UsageError, match=f"{first}: not saved"):
        session.open(second)
    assert session.labels in viewer.layers
    assert session.name == first
    path = session.save(Path("corrected"))
    assert not session.unsaved
    np.testing.assert_array_equal(np.asarray(Image.open(path)), session.labels.data)
    session.open(second)
    session.labels.data[:] = 0
    session.open(first, discard=True)
    assert session.next(Path("corrected")) == second
    assert {p.name for p in Path("corrected/labels").iterdir()} == {path.name}


def test_damaged_results_leave_what_is_open(work: Path, viewer: Any) -> None:
    session = Session(viewer, Path("predictions"))
    session.open(session.names[0])
    before = names(viewer)
    Path("predictions", session.names[1], "std.npy").write_bytes(b"x")
    with pytest.raises(UsageError, match="damaged"):
        session.open(session.names[1])
    assert names(viewer) == before


def test_what_the_reader_has_opened_is_gone_on_with(work: Path, viewer: Any) -> None:
    read = get_reader("predictions")
    assert read is not None
    add_layers(viewer, read("predictions"))
    session = Session(viewer, Path("predictions"))
    assert session.name == session.names[0]
    session.labels.data[0, 0] += 1
    assert session.unsaved
    session.save(Path("corrected"))
    session.open(session.names[1])
    assert names(viewer)[0] == session.names[1]
