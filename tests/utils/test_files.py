"""Files and folders that are whole or absent."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.commands import full_disk
from utils.files import naming, remove_leftovers, whole_file, whole_folder, write_array, write_text


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with whole_file(path, sync=True) as temporary:
        temporary.write_text("new")
        assert (temporary.suffix, path.read_text()) == (".txt", "old")
    assert path.read_text() == "new"

    def interrupted() -> None:
        with whole_file(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for content in ("one", "two"):
        with whole_folder(path) as temporary:
            assert not any(temporary.iterdir())
            (temporary / content).touch()

    def interrupted() -> None:
        with whole_folder(path) as temporary:
            (temporary / "three").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["a", "a/two"]


def test_a_folder_is_never_there_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every step of the replacement, where it may be killed, the old folder stands there, the new one, or none."""
    seen: list[list[str]] = []

    def watched(step: Callable[..., None]) -> Callable[..., None]:
        def run(*words: object, **options: object) -> None:
            seen.append(sorted(p.name for p in path.glob("*")))
            step(*words, **options)

        return run

    path = tmp_path / "a"
    for content in ("old", "new"):
        with whole_folder(path) as temporary:
            for n in range(3):
                (temporary / f"{content}{n}").touch()
            for name in ("unlink", "rename", "rmdir"):
                monkeypatch.setattr(os, name, watched(getattr(os, name)))
        monkeypatch.undo()
    wholes = [[], ["old0", "old1", "old2"], ["new0", "new1", "new2"]]
    assert all(names in wholes for names in seen)
    assert all(names in seen for names in wholes)


def test_a_full_disk_names_the_file_and_the_cause(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    with full_disk(1000), pytest.raises(OSError, match=re.escape(f"{os.strerror(errno.EFBIG)}: '{path}'")):
        write_array(path, np.zeros(1000))
    with full_disk(1000), pytest.raises(OSError, match=f"'{path}'"), naming(path), path.open("w") as file:
        file.write("x" * 2000)
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match=f"'{tmp_path / 'a'}'"):  # a folder is there; the hidden name helps nobody
        write_text(tmp_path / "a", "text")
    with pytest.raises(OSError, match="nowhere'"), whole_folder(tmp_path / "a") as temporary:
        (temporary / "nowhere").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "a.npy"]


def test_leftovers_of_killed_processes_go(tmp_path: Path) -> None:
    (tmp_path / "b/.12.deep").mkdir(parents=True)
    (tmp_path / "b/.12.deep/file").touch()
    (tmp_path / "samples/1").mkdir(parents=True)
    (tmp_path / "samples/1/.13.image").touch()  # of a process that holds that folder
    for name in (".12.a.png", ".old.a", ".mine", ".git", "12.a"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == [".13.image", ".git", ".mine", "1", "12.a", "b", "samples"]
