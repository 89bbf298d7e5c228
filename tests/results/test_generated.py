"""Pairs and images from a joint model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from data.dataset import load_split
from tests.commands import Workspace, joint_config, newest, section


def sdfs(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.load(path) for path in sorted((folder / "sdf").iterdir())}


def test_pairs(joint: Workspace) -> None:
    result = joint("sample", "--generate", "pairs", "--count", "5")
    assert result.code == 0, result.err
    folder = newest(joint, "generated")
    assert str((folder / "sheet.png").relative_to(joint.path)) in result.out
    assert not (joint.run_folder() / "samples").exists()
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["samples"], summary["generated"], summary["nfe_per_sample"]) == (5, "pairs", 5)
    found = sdfs(folder)
    assert sorted(found) == [f"pair_{i:04d}" for i in range(5)]
    shares = []
    for name, sdf in found.items():
        assert sdf.shape == (32, 32)
        assert sdf.dtype == np.float32
        image = np.asarray(Image.open(folder / "images" / f"{name}.png"))
        assert image.shape == (32, 32)
        assert image.dtype == np.uint8
        mask = np.asarray(Image.open(folder / "masks" / f"{name}.png"))
        np.testing.assert_array_equal(mask, (sdf < summary["threshold"]) * 255)
        shares.append((mask > 0).mean())
    assert summary["foreground"] == pytest.approx(np.mean(shares))
    assert len({sdf.tobytes() for sdf in found.values()}) == 5


def test_images_for_the_test_masks(joint: Workspace) -> None:
    assert joint("sample", "--generate", "images", "--count", "5").code == 0
    folder = newest(joint, "generated")
    patches = load_split(section(root=joint.path / "prepared", truncation=6), "test")
    found = sdfs(folder)
    assert sorted(found) == sorted(f"{patches[i % 3].key}_{i // 3}" for i in range(5))
    for patch in patches:
        np.testing.assert_allclose(found[f"{patch.key}_0"], patch.sdf[0, 0], atol=1e-6)
        mask = np.asarray(Image.open(folder / "masks" / f"{patch.key}_0.png"))
        np.testing.assert_array_equal(mask > 0, patch.mask)
    first, again = ((folder / "images" / f"{patches[0].key}_{d}.png").read_bytes() for d in (0, 1))
    assert first != again
    assert joint("sample", "--generate", "images").code == 0
    assert len(sdfs(newest(joint, "generated"))) == 3


@pytest.mark.parametrize("what", ["pairs", "images"])
def test_generated_samples_do_not_depend_on_their_batch(joint: Workspace, what: str) -> None:
    results = []
    for batch, count in ((1, 3), (4, 5)):
        options = ["--set", f"sampling.max_batch={batch}", "--set", "sampling.sampler=pc", "--set", "sampling.steps=8"]
        assert joint("sample", "--generate", what, "--count", str(count), *options).code == 0
        folder = newest(joint, "generated")
        results.append({path.stem: np.asarray(Image.open(path)).astype(int) for path in folder.glob("images/*.png")})
        results[-1] |= {f"{name} sdf": sdf * 255 for name, sdf in sdfs(folder).items()}
    common = results[0].keys() & results[1].keys()
    assert len(common) == 6
    for name in common:
        np.testing.assert_allclose(results[0][name], results[1][name], atol=1)


def test_interrupted_generation_goes_on(joint: Workspace) -> None:
    options = ["--generate", "pairs", "--count", "6"]
    assert joint("sample", *options).code == 0
    folder = newest(joint, "generated")
    before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.suffix in (".png", ".npy")}
    kept = (folder / "sdf" / "pair_0000.npy").stat().st_mtime_ns
    for path in [*folder.glob("*/pair_0005.*"), folder / "summary.json", folder / "sheet.png"]:
        path.unlink()
    assert joint("sample", *options, "--resume").code == 0
    assert newest(joint, "generated") == folder
    assert {path: path.read_bytes() for path in before} == before
    assert (folder / "sdf" / "pair_0000.npy").stat().st_mtime_ns == kept
    assert "another count" in joint.fails("sample", "--generate", "pairs", "--count", "7", "--resume")


@pytest.mark.slow
def test_generated_pairs_are_data_to_train_on(joint: Workspace) -> None:
    assert joint("sample", "--generate", "pairs", "--count", "8").code == 0
    folder, run = newest(joint, "generated"), joint.run_folder()
    own = ["--set", "data.source=prepared", "--set", f"data.root={folder}", "--set", "name=own"]
    result = joint("main", *own)
    assert result.code == 0, result.err
    scored = joint("sample", *own, "--run", str(run))
    assert scored.code == 0, scored.err
    assert "8 images" in scored.out
    patches = load_split(section(root=folder, truncation=6), "test")
    np.testing.assert_array_equal(patches[3].mask, patches[3].sdf[0, 0] < 0.5 / 6)


def test_two_classes_in_colour(workspace: Workspace) -> None:
    (workspace.path / "config.yaml").write_text(yaml.safe_dump(joint_config()))
    own = ["--set", "data.classes=[2, 1]", "--set", "data.color=rgb", "--set", "data.phantom.objects=glands_and_lumina"]
    assert workspace("prepare", *own).code == 0
    assert workspace("main", *own).code == 0
    for what in ("pairs", "images"):
        result = workspace("sample", "--generate", what, "--count", "2", *own)
        assert result.code == 0, result.err
        folder = newest(workspace, "generated")
        for name, sdf in sdfs(folder).items():
            assert sdf.shape == (2, 32, 32)
            assert np.asarray(Image.open(folder / "images" / f"{name}.png")).shape == (32, 32, 3)
            mask = np.asarray(Image.open(folder / "masks" / f"{name}.png"))
            load_split(section(root=folder, truncation=6, classes=(2, 1), color="rgb"), "test")
            clear = sdf[0] != sdf[1]  # not both at the limit of -1
            for k, value in enumerate((2, 1)):
                expected = (sdf.min(axis=0) < 0.5 / 6) & (sdf.argmin(axis=0) == k)
                np.testing.assert_array_equal((mask == value)[clear], expected[clear])


def test_generation_that_cannot_be(joint: Workspace, trained_folder: Path) -> None:
    for options, needle in (
        (("--generate", "pairs", "--count", "0"), "--count 0"),
        (("--count", "3"), "goes with --generate"),
        (("--generate", "pairs", "--set", "sampling.sampler=mean"), "sampling.sampler: mean"),
        (
            ("--generate", "images", "--set", "model.kind=conditional", "--set", "sde.clean_share=0"),
            "model.kind: joint",
        ),
        (("--generate", "pairs", "--resume"), "nothing to go on with"),
    ):
        assert needle in joint.fails("sample", *options)
    assert not (joint.run_folder() / "generated").exists()
    other = next((trained_folder / "runs" / "tiny").iterdir())
    assert "another architecture" in joint.fails("sample", "--run", str(other))
