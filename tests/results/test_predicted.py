"""Predictions on anybody's images, as a user types them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from PIL import Image

from results import predicted as predicting
from results import sampled as results
from tests.commands import Workspace
from tests.pictures import picture
from utils.locks import held

FILES = {"mmse.npy", "std.npy", "probability.png", "mask.png", "overlay.png", "mmse.png", "std.png", "instances.png",
         "objects.csv", "objects.geojson", "draws.png", "result.json"}  # fmt: skip


def predict(workspace: Workspace, *more: str, output: str = "out") -> Callable[[], tuple[int, str]]:
    run = str(workspace.run_folder())
    result = workspace("sample", "--run", run, "--input", "inbox", "--output", output, *more)
    return lambda: (result.code, result.err)


def test_every_picture_gets_its_maps_in_its_own_size(trained: Workspace, inbox: Path) -> None:
    assert predict(trained)() == (0, "")
    table = pd.read_csv("out/results.csv", dtype={"image_id": str})
    assert sorted(table["image_id"]) == ["colour", "deep", "grey", "large"]
    page = Path("out/report.html").read_text()
    assert all(name in page for name in table["image_id"])
    assert re.search(r"\bnan\b", page.split("<script")[0].lower()) is None
    assert sorted(table["look_rank"]) == [1, 2, 3, 4]
    assert table.loc[table["look_rank"] == 1, "mean_std"].item() == table["mean_std"].max()
    for _, row in table.iterrows():
        folder = Path("out") / row["image_id"]
        assert {p.name for p in folder.iterdir()} == FILES
        mmse = np.load(folder / "mmse.npy")
        assert mmse.shape == (row["height"], row["width"])
        assert mmse.dtype == np.float32
        mask = np.asarray(Image.open(folder / "mask.png")) > 0
        np.testing.assert_array_equal(mask, mmse < 0.5 / 6)
        assert mask.sum() == row["area"]
        draws = np.asarray(Image.open(folder / "draws.png")).reshape(-1, *mmse.shape)
        assert len(draws) == row["draws"]
        probability = np.asarray(Image.open(folder / "probability.png")) / 255
        np.testing.assert_allclose(draws.mean(axis=0), probability, atol=0.01)
        assert (
            np.asarray(Image.open(folder / "instances.png")).max()
            == row["objects"]
            == len(pd.read_csv(folder / "objects.csv"))
        )


BAD: dict[str, Callable[[Path], object]] = {
    "empty.png": lambda p: p.write_bytes(b""),
    "noise.png": lambda p: p.write_bytes(os.urandom(300)),
    "truncated.png": lambda p: p.write_bytes((p.parent / "grey.png").read_bytes()[:400]),
    "animated.tif": lambda p: tifffile.imwrite(p, np.zeros((3, 20, 20), np.uint8), photometric="minisblack"),
    "nan.tif": lambda p: tifffile.imwrite(p, np.full((20, 20), np.nan, np.float32)),
    "nan.npy": lambda p: np.save(p, np.full((20, 20), np.nan)),
}


def test_bad_pictures_have_a_line_each_and_the_others_are_done(trained: Workspace, inbox: Path) -> None:
    for name, make in BAD.items():
        make(inbox / name)
    code, err = predict(trained)()
    assert code == 2
    for name in BAD:
        assert sum(name in line for line in err.splitlines()) == 1, name
    assert "Traceback" not in err
    assert sorted(pd.read_csv("out/results.csv")["image_id"]) == ["colour", "deep", "grey", "large"]
    assert not [p for p in Path("out").iterdir() if p.name.startswith(".")]
    assert not (Path("out") / "noise").exists()


@pytest.mark.parametrize("shape", [(1, 1), (1, 200), (7, 3), (20, 20, 4)])
def test_odd_pictures_are_predicted(trained: Workspace, shape: tuple[int, ...]) -> None:
    (trained.path / "inbox").mkdir()
    Image.fromarray(np.full(shape, 90, np.uint8)).save(trained.path / "inbox" / "a.png")
    assert predict(trained)() == (0, "")
    assert np.load("out/a/mmse.npy").shape == shape[:2]


@pytest.mark.slow
def test_nothing_to_read_and_nowhere_to_write(trained: Workspace, inbox: Path) -> None:
    run = ["--run", str(trained.run_folder())]
    (trained.path / "nothing").mkdir()
    assert "no pictures" in trained.fails("sample", *run, "--input", "nothing", "--output", "out")
    assert "absent" in trained.fails("sample", *run, "--input", "absent", "--output", "out")
    assert "needs --output" in trained.fails("sample", *run, "--input", "inbox", "--resume")
    assert not (trained.path / "predictions").exists()
    assert "--input" in trained.fails("sample", *run, "--output", "out")
    assert not (trained.path / "out").exists()
    assert predict(trained)()[0] == 0
    assert "--overwrite" in trained.fails("sample", *run, "--input", "inbox", "--output", "out")
    (trained.path / "mine").mkdir()
    (trained.path / "mine" / "thesis.txt").write_text("precious")
    assert "thesis" not in trained.fails("sample", *run, "--input", "inbox", "--output", "mine")
    assert "not written here" in trained.fails("sample", *run, "--input", "inbox", "--output", "mine", "--overwrite")
    assert (trained.path / "mine" / "thesis.txt").read_text() == "precious"
    assert predict(trained, "--overwrite", "--set", "sampling.draws=2")()[0] == 0
    assert (pd.read_csv("out/results.csv")["draws"] == 2).all()


def test_a_full_disk_ends_it_with_one_line(trained: Workspace, inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = results.write_objects

    def full(folder: Path, *rest: object) -> None:
        if "grey" in folder.name:
            raise OSError(28, "No space left on device")
        write(folder, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(predicting, "write_objects", full)
    assert predict(trained)() == (2, "error: out/grey: No space left on device\n")
    assert sorted(p.name for p in Path("out").iterdir()) == ["colour", "deep", "results.csv", "settings.json"]
    assert len(pd.read_csv("out/results.csv")) == 2
    monkeypatch.setattr(predicting, "write_objects", write)

    def written() -> list[int]:
        return [Path("out", name, "mmse.npy").stat().st_mtime_ns for name in ("colour", "deep")]

    before = written()
    os.utime(inbox / "deep.tif", ns=(1, 1))  # as another file of this name would have it
    assert predict(trained, "--resume")()[0] == 0
    assert [now == then for now, then in zip(written(), before, strict=True)] == [True, False]
    assert len(pd.read_csv("out/results.csv")) == 4
    assert "another seed" in trained.fails("sample", "--run", str(trained.run_folder()), "--input", "inbox",
                                           "--output", "out", "--resume", "--set", "seed=5")  # fmt: skip


@pytest.mark.parametrize(
    ("names", "readable"),
    [
        (["x(1).png", "x[1].png"], []),
        (["a b.png", "a_b.png"], ["a_b"]),
        (["図.png", "像.png", "é.png", "ü.png"], ["図", "像", "é", "ü"]),
        (["a.png", "a.bmp", "b.png"], ["a_png", "a_bmp", "b"]),
        (["results.csv.png", "report.html.png", "=1+1.png"], []),
    ],
)
def test_every_picture_is_predicted_whatever_its_name(
    trained: Workspace, names: list[str], readable: list[str]
) -> None:
    (trained.path / "inbox").mkdir()
    for seed, name in enumerate(names):
        Image.fromarray(picture(16, 16, seed=seed)).save(trained.path / "inbox" / name)
    assert predict(trained)() == (0, "")
    table = pd.read_csv("out/results.csv", dtype={"image_id": str})
    assert sorted(name.removeprefix("'") for name in table["file"]) == sorted(names)
    assert not table["file"].str.startswith("=").any()
    assert table["image_id"].is_unique
    assert set(readable) <= set(table["image_id"])
    assert len({np.load(f"out/{key}/mmse.npy").tobytes() for key in table["image_id"]}) == len(names)


@pytest.mark.slow
def test_an_output_is_held_and_leftovers_do_not_block_it(trained: Workspace, inbox: Path) -> None:
    Path("out").mkdir()
    Path("out/.7.settings.json").touch()  # of a process that was killed at its first file
    assert predict(trained)()[0] == 0
    assert not list(Path("out").glob(".*"))
    words = ["--run", str(trained.run_folder()), "--input", "inbox", "--output", "out"]
    with held(Path("out/.lock"), "this test"):
        for more in ("--overwrite", "--resume"):
            assert f"out is in use by process {os.getpid()} on" in trained.fails("sample", *words, more)
    assert predict(trained, "--overwrite")()[0] == 0


def test_a_second_command_leaves_the_files_of_the_first_alone(trained: Workspace, inbox: Path) -> None:
    """Alone or as a share, with any option: while a share of the folder is at work, or the whole."""
    words = ["--run", str(trained.run_folder()), "--input", "inbox", "--output", "out"]
    assert trained("sample", *words, "--shard", "1/2").code == 0
    Path("out/.7.deep").mkdir()  # that the other one is writing
    before = {p: p.read_bytes() for p in Path("out").rglob("*") if p.is_file()}
    attempts = [("--overwrite",), ("--resume",), ("--shard", "2/3"), ("--shard", "2/2")]
    with held(Path("out/.shard-2-of-2.lock"), "this test"):
        for more in attempts:
            assert f"in use by process {os.getpid()} on" in trained.fails("sample", *words, *more)
            assert {p: p.read_bytes() for p in before} == before
            assert Path("out/.7.deep").is_dir()


@pytest.mark.slow
def test_large_pictures_are_streamed(trained: Workspace, inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same maps as in one piece, as tiled TIFF."""
    assert predict(trained)()[0] == 0
    monkeypatch.setattr(predicting, "LARGE", 2000)
    assert predict(trained, output="streamed")()[0] == 0
    folder = Path("streamed") / "large"
    maps, objects = ["mmse.tif", "std.tif", "probability.tif", "mask.tif"], ["objects.csv", "objects.geojson"]
    assert {p.name for p in folder.iterdir()} == {*maps, *objects, "instances.tif", "overlay.png", "result.json"}
    np.testing.assert_allclose(tifffile.imread(folder / "mmse.tif"), np.load("out/large/mmse.npy"), atol=1e-5)
    np.testing.assert_array_equal(
        tifffile.imread(folder / "instances.tif"), np.asarray(Image.open("out/large/instances.png"))
    )
    rows = [json.loads((Path(o) / "large/result.json").read_text()) for o in ("out", "streamed")]
    assert rows[0]["mean_std"] == pytest.approx(rows[1]["mean_std"], rel=1e-4)
    assert rows[0]["objects"] == rows[1]["objects"]
    tables = [pd.read_csv(Path(o) / "large/objects.csv") for o in ("out", "streamed")]
    seen = ["label", "area", "row", "column"]
    pd.testing.assert_frame_equal(tables[1][seen], tables[0][seen])
    np.testing.assert_allclose(tables[1]["mean_std"], tables[0]["mean_std"], rtol=1e-3)
    assert tables[1]["probability"].isna().all()
    shapes = [json.loads((Path(o) / "large/objects.geojson").read_text())["features"] for o in ("out", "streamed")]
    assert [f["geometry"] for f in shapes[1]] == [f["geometry"] for f in shapes[0]][: len(shapes[1])]


def test_old_checkpoints_that_cannot_predict_say_so(trained: Workspace, inbox: Path) -> None:
    path = trained.run_folder() / "checkpoints" / "best.pt"
    state = torch.load(path, weights_only=True)
    del state["images"]
    torch.save(state, path)
    run = str(trained.run_folder())
    assert "train again" in trained.fails("sample", "--run", run, "--input", "inbox", "--output", "out")
    assert not (trained.path / "out").exists()
