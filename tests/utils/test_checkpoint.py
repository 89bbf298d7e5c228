from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.commands import full_disk
from utils.checkpoint import check_weights, link_checkpoint, load_checkpoint, save_checkpoint
from utils.errors import CheckpointError


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


def test_round_trip(tmp_path: Path) -> None:
    state = {"step": 3, "model": {"w": torch.randn(3)}, "best_f1": 0.5}
    save_checkpoint(state, tmp_path / "a.pt")
    loaded = load_checkpoint(tmp_path / "a.pt", dict[str, Any])
    assert torch.equal(loaded["model"]["w"], state["model"]["w"])  # type: ignore[index]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt"]


def test_full_disk_leaves_the_previous_checkpoint_whole(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint({"step": 1, "w": torch.zeros(10)}, path)
    before = path.read_bytes()
    with full_disk(100_000), pytest.raises(CheckpointError, match=r"last\.pt: could not be saved .*last\.pt is whole"):
        save_checkpoint({"step": 2, "w": torch.zeros(1_000_000)}, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_truncated(tmp_path: Path) -> None:
    save_checkpoint({"step": 1, "w": torch.zeros(10_000)}, tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    for size in (0, 10, len(content) // 2, len(content) - 10):
        (tmp_path / "b.pt").write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r"b\.pt"):
            load_checkpoint(tmp_path / "b.pt")


@pytest.mark.parametrize(("by", "message"), [("pickle", "not a zip file"), ("torch", r"refused, .*\(code\)")])
def test_code_is_refused_and_not_run(tmp_path: Path, by: str, message: str) -> None:
    evil = {"format": 1, "model": Evil(tmp_path / "ran")}
    if by == "torch":
        torch.save(evil, tmp_path / "evil.pt")
    else:
        (tmp_path / "evil.pt").write_bytes(pickle.dumps(evil))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_absent_and_foreign(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "a.pt")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint of this program"):
        load_checkpoint(tmp_path / "other.pt")


def test_another_architecture_names_the_keys() -> None:
    weights = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)).state_dict()
    with pytest.raises(CheckpointError, match=r"0\.weight is \(3, 2\), the model has \(4, 2\)"):
        check_weights(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1)).state_dict(), weights, Path("x.pt"))
    with pytest.raises(CheckpointError, match=r"unexpected 1\.weight"):
        check_weights(nn.Sequential(nn.Linear(2, 3)).state_dict(), weights, Path("x.pt"))
    with pytest.raises(CheckpointError, match=r"missing 2\.weight"):
        check_weights(
            nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1), nn.Linear(1, 1)).state_dict(), weights, Path("x.pt")
        )


def test_second_name_replaces_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint({"step": 1}, tmp_path / "step.pt")
    (tmp_path / "last.pt").write_text("old")
    link_checkpoint(tmp_path / "step.pt", tmp_path / "last.pt")
    assert load_checkpoint(tmp_path / "last.pt", dict[str, Any])["step"] == 1

    def no_links(*_: object) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    save_checkpoint({"step": 2}, tmp_path / "step.pt")
    link_checkpoint(tmp_path / "step.pt", tmp_path / "last.pt")
    assert load_checkpoint(tmp_path / "last.pt", dict[str, Any])["step"] == 2


def test_what_unpacks_to_more_than_the_file_is_refused_unread(tmp_path: Path) -> None:
    save_checkpoint({"config": {}, "ema": {"w": torch.zeros(2**22)}}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as file,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as to,
    ):
        for name in file.namelist():
            to.writestr(name, file.read(name))
    assert (tmp_path / "b.pt").stat().st_size < 2**16
    with pytest.raises(CheckpointError, match=r"b\.pt: refused, it would unpack to 16 MiB"):
        load_checkpoint(tmp_path / "b.pt")


def test_a_changed_byte_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint({"config": {}, "ema": {"w": torch.ones(100)}}, path)
    content = bytearray(path.read_bytes())
    content[content.index(torch.ones(100).numpy().tobytes()) + 30] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="has another checksum than when written"):
        load_checkpoint(path)


ODD: list[dict[str, Any]] = [
    {"ema": None}, {"ema": {"w": "text"}}, {"ema": {"w": torch.zeros(3).to_sparse()}}, {"ema": [torch.zeros(3)]},
    {"ema": {"w": torch.zeros(1).expand(10**9)}}, {"config": None}, {"config": {"a": torch.zeros(1)}}, {"images": None},
    {"images": {"size": ""}}, {"images": {"size": [0, 3]}}, {"images": {"stain_target": [1]}}, {"step": -1},
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_values_of_another_kind_are_named(tmp_path: Path, odd: dict[str, Any]) -> None:
    good = {"config": {}, "ema": {"w": torch.zeros(3)}, "images": {"size": [3, 4]}, "step": 3}
    save_checkpoint(good, tmp_path / "a.pt")
    assert load_checkpoint(tmp_path / "a.pt")["images"] == good["images"]
    save_checkpoint(good | odd, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=rf"^[^\n]*a\.pt: damaged, or not of this program \({next(iter(odd))}"):
        load_checkpoint(tmp_path / "a.pt")


def test_nan_weights_say_so() -> None:
    weights = nn.Linear(2, 3).state_dict() | {"bias": torch.tensor([0.0, float("nan"), 0.0])}
    with pytest.raises(CheckpointError, match=r"x\.pt: bias is not finite"):
        check_weights(nn.Linear(2, 3).state_dict(), weights, Path("x.pt"))
