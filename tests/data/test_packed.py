"""Packed copies: the same batches as from memory, made anew where they do not fit the files, resumable."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from data import packed as module
from data.batches import Batch, Batches, InMemory, Mapped
from data.dataset import data_state, image_array, load_split, mean_square, rater_counts, sdf_array
from data.packed import Packed, open_training, packed
from data.rows import Patch
from data.sdf import signed_distance
from tests.commands import Workspace, rows, same_state, section, sets
from training.session import source_of
from utils.data_schema import DataConfig
from utils.errors import DataError

CPU = torch.device("cpu")


def prepared(root: Path, raters: list[int], *, rgb: bool = False, smooth: bool = False, size: int = 12) -> DataConfig:
    """A folder of patches with so many raters, 0 for a single annotation. smooth: SDFs of ever other values."""
    rng, root = np.random.default_rng(0), Path(root)
    root.mkdir(exist_ok=True)
    lines = ["filename,maskname,maskdtname,image_id,raternames,raterdtnames"]
    for i, count in enumerate(raters):
        Image.fromarray(rng.integers(0, 255, (size, size, 3) if rgb else (size, size), np.uint8)).save(
            root / f"i{i}.png"
        )
        names = []
        for k in range(max(1, count)):
            mask = np.zeros((size, size), bool)
            if i % 3:
                mask[2 : 4 + k, 3 : 5 + i % 5] = True
            sdf = signed_distance(mask, 4)
            if smooth:
                sdf = np.where(sdf == 0, 0, sdf + rng.uniform(-0.1, 0.1, sdf.shape)).clip(-1, 1).astype(np.float32)
            Image.fromarray(mask.astype(np.uint8) * 255).save(root / f"m{i}_{k}.png")
            np.save(root / f"s{i}_{k}.npy", sdf)
            names.append(f"{i}_{k}")
        masks, sdfs = (";".join(f"{letter}{n}.{end}" for n in names) for letter, end in (("m", "png"), ("s", "npy")))
        lines.append(f"i{i}.png,m{i}_0.png,s{i}_0.npy,image {i // 2},{masks if count else ''},{sdfs if count else ''}")
    (root / "train.csv").write_text("\n".join(lines) + "\n")
    return section(root=root, truncation=4, color="rgb" if rgb else "grey", workers=1, validation_fraction=0.3)


def both_ways(data: DataConfig, batch: int, seed: int) -> tuple[Batches, Batches]:
    sources = source_of(load_split(data, "train"), data.sdf_scale), source_of(packed(data, "train"), data.sdf_scale)
    assert isinstance(sources[0], InMemory)
    assert isinstance(sources[1], Mapped)
    assert sources[0].mean_square() == sources[1].mean_square()
    return Batches(sources[0], batch, seed, CPU, data), Batches(sources[1], batch, seed, CPU, data)


def same_batch(one: Batch, other: Batch) -> None:
    for a, b in zip(one, other, strict=True):
        assert type(a) is type(b)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b


FOLDERS = {"single": [0] * 7, "four": [4] * 7, "unequal": [2, 0, 3, 1, 3, 0, 2]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], DataConfig]:
    return {(name, rgb): prepared(tmp_path_factory.mktemp(name) / "p", raters, rgb=rgb)
            for name, raters in FOLDERS.items() for rgb in (False, True)}  # fmt: skip


@settings(
    max_examples=15, deadline=None, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck)
)
@given(name=st.sampled_from(sorted(FOLDERS)), rgb=st.booleans(), seed=st.integers(0, 2**32), batch=st.integers(1, 16),
       crop=st.sampled_from([None, (8, 9)]), raters=st.sampled_from(["one", "all"]), share=st.sampled_from([None, 0.4]),
       scale=st.sampled_from([1.0, 0.2]), before=st.integers(0, 4))  # fmt: skip
def test_batches_are_those_from_memory_bit_for_bit_and_after_an_interruption(
    folders: dict[tuple[str, bool], DataConfig], name: str, rgb: bool, seed: int, batch: int, crop: Any, raters: Any,
    share: float | None, scale: float, before: int,
) -> None:  # fmt: skip
    """Orders, raters, symmetries, brightness and crops; a state of either way is one of the other."""
    changes = {"crop": crop, "raters": raters, "foreground_share": None if crop else share, "sdf_scale": scale,
               "rotations": True, "augment": {"brightness": 0.2}}  # fmt: skip
    data = DataConfig.model_validate({**folders[name, rgb].model_dump(), **changes})
    held, mapped = both_ways(data, batch, seed)
    for _ in range(before):
        same_batch(held.next(), mapped.next())
    state = mapped.state_dict()
    for key, value in held.state_dict().items():
        assert torch.equal(value, state[key])
    _, again = both_ways(data, batch, seed + 1)
    again.next()
    again.load_state_dict(state)
    for _ in range(3):
        expected = held.next()
        same_batch(expected, mapped.next())
        same_batch(expected, again.next())


@pytest.mark.parametrize("divisor", [1, 5])
@pytest.mark.parametrize(("size", "count", "smooth", "codes"), [
    (12, 7, False, "|u1"), (24, 7, True, "<u2"), (64, 40, True, "<f4"),
])  # fmt: skip
def test_nothing_is_rounded(tmp_path: Path, size: int, count: int, smooth: bool, codes: str, divisor: int) -> None:
    """With few values, with many, and with too many to number, also on the published scale."""
    data = prepared(tmp_path / "p", [0] * count, smooth=smooth, size=size)
    for path in (tmp_path / "p").glob("*.npy"):
        np.save(path, np.load(path) / np.float32(divisor))
    copy, patches = packed(data, "train"), load_split(data, "train")
    assert copy.about["codes"] == codes
    for one, other in zip(copy, patches, strict=True):
        assert (one.key, one.image_id, one.filename, one.group) == (
            other.key,
            other.image_id,
            other.filename,
            other.group,
        )
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.sdf.view(np.uint32), other.sdf.view(np.uint32))
    assert data_state(data, copy, []) == data_state(data, patches, [])


def test_the_hash_of_a_split_holds_one_patch_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = prepared(tmp_path / "p", [0] * 12)
    made: list[weakref.ref[Patch]] = []
    copy, patch, most = packed(data, "train"), Packed.patch, 0

    def counted(self: Packed, index: int) -> Patch:
        nonlocal most
        made.append(weakref.ref(new := patch(self, index)))
        most = max(most, sum(ref() is not None for ref in made))
        return new

    monkeypatch.setattr(Packed, "patch", counted)
    data_state(data, copy, [])
    assert len(made) == 12
    assert most <= 2


def test_numbers_that_are_all_different_signs_of_zero(tmp_path: Path) -> None:
    data = prepared(tmp_path / "p", [0, 0])
    sdf = np.load(tmp_path / "p" / "s1_0.npy")
    np.save(tmp_path / "p" / "s1_0.npy", np.where(sdf == 0, np.float32(-0.0), sdf))
    assert np.signbit(packed(data, "train")[1].sdf[sdf[None, None] == 0]).all()


def made(data: DataConfig) -> bool:
    """Whether the copy was made anew."""
    about = Path(data.root, "packed/train/about.json")
    before = about.stat().st_ino if about.exists() else None
    patches = load_split(data, "train")
    for one, other in zip(packed(data, "train"), patches, strict=True):
        np.testing.assert_array_equal(one.sdf, other.sdf)
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.labels, other.labels)
    assert sorted(os.listdir(Path(data.root, "packed"))) == ["train"]
    assert not list(Path(data.root).glob(".*"))
    return about.stat().st_ino != before


def test_a_copy_of_other_files_is_made_anew(tmp_path: Path) -> None:
    root = tmp_path / "p"
    data = prepared(root, [0] * 4)
    assert made(data)
    assert not made(data)
    Image.fromarray(np.full((12, 12), 7, np.uint8)).save(root / "i1.png")
    assert made(data)
    image = root / "i2.png"
    pixels = image.read_bytes()
    Image.fromarray(np.full((12, 12), 9, np.uint8)).save(image)
    again = image.read_bytes() + bytes(max(0, len(pixels) - image.stat().st_size))
    image.write_bytes(again[: len(pixels)])  # of the same size, at another time
    os.utime(image, ns=(time.time_ns(), time.time_ns()))
    assert made(data)
    table = root / "train.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]) + "\n")
    assert made(data)
    assert made(DataConfig.model_validate({**data.model_dump(), "color": "rgb"}))
    assert not made(DataConfig.model_validate({**data.model_dump(), "color": "rgb", "flips": False}))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", [*module.FILES, "about.json"])
@pytest.mark.parametrize("harm", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:-3]), flip])
def test_a_torn_copy_is_made_anew(tmp_path: Path, name: str, harm: Callable[[Path], object]) -> None:
    data = prepared(tmp_path / "p", [0] * 3)
    assert made(data)
    harm(tmp_path / "p" / "packed" / "train" / name)
    assert made(data)


def test_an_interrupted_packing_leaves_nothing_and_a_killed_one_is_cleared_away(tmp_path: Path) -> None:
    data = prepared(tmp_path / "p", [0] * 40)

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packed(data, "train", stop)
    assert not (tmp_path / "p" / "packed" / "train").exists()
    left = tmp_path / "p" / "packed" / ".123.train"
    left.mkdir(parents=True)
    (left / "images.bin").touch()
    assert made(data)


def test_errors_are_those_of_the_files(tmp_path: Path) -> None:
    data = prepared(tmp_path / "p", [0] * 3)
    (tmp_path / "p" / "i1.png").write_text("no picture")
    with pytest.raises(DataError, match=r"train\.csv row 3"):
        packed(data, "train")
    assert list((tmp_path / "p" / "packed").iterdir()) == []


def test_validation_patches_are_held_out_as_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = prepared(tmp_path / "p", [0, 2, 1, 0, 0, 0, 3, 0])
    held = open_training(data)
    monkeypatch.setattr(module, "HELD", 0)
    mapped = open_training(data)
    for one, other in zip(mapped, held, strict=True):
        assert isinstance(one, Packed)
        assert [patch.key for patch in one] == [patch.key for patch in other]
    assert data_state(data, *mapped) == data_state(data, *held)
    copy = mapped[0]
    assert isinstance(copy, Packed)
    sdfs = sdf_array(held[0])
    own = sdfs[np.arange(sdfs.shape[1]) < rater_counts(held[0])[:, None]].reshape(-1)
    np.testing.assert_array_equal(copy.flat_values(100, own.size - 50), own[100:-50])
    np.testing.assert_array_equal(copy.images_of([3, 0]), image_array([held[0][3], held[0][0]]))
    np.testing.assert_array_equal(copy.sdfs_of([3, 0], None, sdfs.shape[1]), sdfs[[3, 0]])


@pytest.mark.parametrize("size", [1, 1000, 2**20 + 1, 3 * 2**20 + 12345])
def test_the_mean_square_is_that_of_numpy_to_the_last_bit(size: int) -> None:
    values = np.random.default_rng(size).uniform(-1, 1, size).astype(np.float32)
    assert mean_square(lambda start, stop: values[start:stop], size) == float((values.astype("float64") ** 2).mean())


@pytest.mark.slow
def test_a_training_from_a_packed_copy_is_that_from_memory(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoints, rows and validation; and gone on with from a checkpoint of the other way."""
    assert workspace("prepare").code == 0
    assert workspace("main").code == 0
    held = workspace.run_folder()
    assert workspace("main", *sets(["training.steps=4"])).code == 0
    cut = workspace.run_folder()
    assert not (workspace.path / "prepared" / "packed").exists()
    monkeypatch.setattr(module, "HELD", 0)
    assert workspace("main").code == 0
    mapped = workspace.run_folder()
    assert workspace("main", "--resume", str(cut), *sets(["training.steps=6"])).code == 0
    for run in (mapped, cut):
        for name in ("last.pt", "best.pt") if run == mapped else ():
            same_state(held / "checkpoints" / name, run / "checkpoints" / name)
    assert [row["loss"] for row in rows(mapped)] == [row["loss"] for row in rows(held)]
    assert workspace("prepare", "--set", "data.truncation=5").code == 0
    assert not (workspace.path / "prepared" / "packed" / "train").exists()
