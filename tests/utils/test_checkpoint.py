from __future__ import annotations

import os
import pickle
import resource
from pathlib import Path

import pytest
import torch
from torch import nn

from utils.checkpoint import link_checkpoint, load_checkpoint, load_weights, save_checkpoint
from utils.errors import CheckpointError


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


def test_round_trip(tmp_path: Path) -> None:
    state = {"step": 3, "model": {"w": torch.randn(3)}, "best_f1": 0.5}
    save_checkpoint(state, tmp_path / "a.pt")
    loaded = load_checkpoint(tmp_path / "a.pt")
    assert torch.equal(loaded["model"]["w"], state["model"]["w"])  # type: ignore[index]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt"]


def test_full_disk_leaves_the_previous_checkpoint_whole(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint({"step": 1, "w": torch.zeros(10)}, path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # writes past it fail, as on a full disk
    try:
        with pytest.raises(CheckpointError, match=r"last\.pt: could not be saved .*previous last\.pt is whole"):
            save_checkpoint({"step": 2, "w": torch.zeros(1_000_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_truncated(tmp_path: Path) -> None:
    save_checkpoint({"step": 1, "w": torch.zeros(10_000)}, tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    for size in (0, 10, len(content) // 2, len(content) - 10):
        (tmp_path / "b.pt").write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r"b\.pt"):
            load_checkpoint(tmp_path / "b.pt")


@pytest.mark.parametrize("by", ["pickle", "torch"])
def test_code_is_refused_and_not_run(tmp_path: Path, by: str) -> None:
    evil = {"format": 1, "model": Evil(tmp_path / "ran")}
    if by == "torch":
        torch.save(evil, tmp_path / "evil.pt")
    else:
        (tmp_path / "evil.pt").write_bytes(pickle.dumps(evil))
    with pytest.raises(CheckpointError, match="refused"):
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
        load_weights(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1)), weights, Path("x.pt"))
    with pytest.raises(CheckpointError, match=r"unexpected 1\.weight"):
        load_weights(nn.Sequential(nn.Linear(2, 3)), weights, Path("x.pt"))
    with pytest.raises(CheckpointError, match=r"missing 2\.weight"):
        load_weights(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1), nn.Linear(1, 1)), weights, Path("x.pt"))


def test_second_name_replaces_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint({"step": 1}, tmp_path / "step.pt")
    (tmp_path / "last.pt").write_text("old")
    link_checkpoint(tmp_path / "step.pt", tmp_path / "last.pt")
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 1

    def no_links(*_: object) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    save_checkpoint({"step": 2}, tmp_path / "step.pt")
    link_checkpoint(tmp_path / "step.pt", tmp_path / "last.pt")
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 2
