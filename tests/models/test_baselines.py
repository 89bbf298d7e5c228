"""Baselines of one pass: networks, loss, dropout and ensembles, and the commands with them."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch import Tensor, nn

from bench import table
from bench.protocol import jobs_of, read_protocol
from models.baselines import Baseline, build_baseline, dice_cross_entropy
from models.uncertainty import DeepEnsemble, seeded_dropout
from sampling.drawer import drawer_of
from sampling.loading import load_denoiser
from sampling.sampler import sampler_of
from sampling.segmenter import Segmenter
from sde.process import VE
from tests.conftest import ROOT, Workspace
from tests.models.test_denoiser import shake
from utils.checkpoint import load_checkpoint
from utils.cli import run_command
from utils.config import load_config

OWN = ("resunet", "attention_unet")
LIBRARY = {"unet": "segmentation_models_pytorch", "unetplusplus": "segmentation_models_pytorch"}
KINDS = (*OWN, *LIBRARY, "fcn")
END = torch.tensor(1.0, dtype=torch.float64)


def small(kind: str, *, image_channels: int = 1, mask_channels: int = 1, dropout: float = 0.0) -> Baseline:
    if kind in LIBRARY:
        pytest.importorskip(LIBRARY[kind])
    torch.manual_seed(0)
    return build_baseline(
        VE(), kind, image_channels=image_channels, mask_channels=mask_channels, channels=8, multipliers=[1, 2, 2],
        blocks=1, dropout=dropout, backbone="resnet50" if kind == "fcn" else "resnet18",
    )  # fmt: skip


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", KINDS)
def test_maps_have_the_size_of_the_image(kind: str) -> None:
    for image_channels, mask_channels in ((1, 1), (3, 2)):
        model = small(kind, image_channels=image_channels, mask_channels=mask_channels).eval()
        with torch.no_grad():
            for size in ((32, 32), (21, 37)):
                features = model.encode(noise(2, image_channels, *size))
                sdf = model(noise(2, mask_channels, *size), END, features)
                assert sdf.shape == (2, mask_channels, *size)
                assert sdf.abs().max() <= 1


@pytest.mark.parametrize("kind", OWN)
def test_all_of_the_image_counts_for_a_pixel_far_away(kind: str) -> None:
    """The skips and the coarse levels are connected, gates included."""
    model = small(kind).eval()
    shake(model)
    image = noise(1, 1, 16, 16).requires_grad_()
    model.logits(image)[0, 0, 0, 0].backward()
    assert image.grad is not None
    assert image.grad[0, 0, -4:, -4:].abs().max() > 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name


def fixed(logits: Tensor, mask_channels: int, scale: float = 1.0) -> Baseline:
    """Whose network gives these logits for any image."""

    class Fixed(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return logits

    return Baseline(VE(), Fixed(), 1, mask_channels, scale)


def test_the_map_is_background_minus_class() -> None:
    p = torch.tensor([0.1, 0.5, 0.8]).view(1, 1, 1, 3)
    found = fixed(torch.logit(p), 1, scale=0.2).encode(torch.zeros(1, 1, 1, 3))[0]
    torch.testing.assert_close(found, 0.2 * (1 - 2 * p))
    p = torch.tensor([[0.5, 0.3, 0.2], [0.3, 0.25, 0.45], [0.4, 0.42, 0.18]]).T.reshape(1, 3, 1, 3)
    found = fixed(p.log(), 2).encode(torch.zeros(1, 1, 1, 3))[0]
    torch.testing.assert_close(found, p[:, :1] - p[:, 1:])
    likeliest = torch.where(found.min(dim=1).values < 0, found.argmin(dim=1) + 1, 0)
    torch.testing.assert_close(likeliest, p.argmax(dim=1))


def test_loss_by_hand() -> None:
    p = torch.tensor([[0.9, 0.2, 0.4, 0.1], [0.5, 0.5, 0.5, 0.5]]).view(2, 1, 2, 2)
    m = torch.tensor([[-1.0, 1.0, -1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]).view(2, 1, 2, 2)
    entropy = -(math.log(0.9) + math.log(0.8) + math.log(0.4) + math.log(0.9)) / 4
    expected = [entropy + 1 - (2 * 1.3 + 1) / (1.6 + 2 + 1), math.log(2) + 1 - 1 / 3]
    torch.testing.assert_close(dice_cross_entropy(torch.logit(p), m), torch.tensor(expected))


def test_loss_of_classes_by_hand() -> None:
    p = torch.tensor([[0.7, 0.1, 0.2], [0.2, 0.5, 0.3]]).T.reshape(1, 3, 1, 2)  # background, class 1, class 2
    m = torch.tensor([[1.0, -1.0], [1.0, 1.0]]).view(1, 2, 1, 2)  # the second pixel is of class 1
    entropy = -(math.log(0.7) + math.log(0.5)) / 2
    dice = ((2 * 0.5 + 1) / (0.6 + 1 + 1) + 1 / (0.5 + 1)) / 2
    torch.testing.assert_close(dice_cross_entropy(p.log(), m), torch.tensor([entropy + 1 - dice]))


@pytest.mark.parametrize("kind", ["unet", "attention_unet"])
def test_a_trivial_mask_is_learned(kind: str) -> None:
    """What is bright is inside."""
    model = small(kind).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)

    def batch() -> tuple[Tensor, Tensor]:
        coarse = torch.randn((4, 1, 4, 4), generator=generator)
        image = coarse.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
        return image.clamp(-1, 1), torch.where(image > 0, -1.0, 1.0)

    for _ in range(25):
        image, m = batch()
        loss = dice_cross_entropy(model.logits(image), m).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    image, m = batch()
    with torch.no_grad():
        right = (model.encode(image)[0] < 0) == (m < 0)
    assert right.float().mean() > 0.9


def test_dropout_belongs_to_the_draw() -> None:
    layers = nn.Sequential(nn.Dropout(0.25), nn.Dropout(0.0)).eval()
    ones = torch.ones(2, 1, 40, 40)
    with seeded_dropout(layers, [1, 2]):
        both = layers(ones)
    with seeded_dropout(layers, [2]):
        alone = layers(ones[:1])
    assert torch.equal(both[1:], alone)
    assert not torch.equal(both[:1], alone)
    torch.testing.assert_close(both.unique(), torch.tensor([0.0, 4 / 3]))
    assert both.mean().item() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(layers(ones), ones)


SIZES = ["model.channels=8", "model.multipliers=[1,2,2]"]
MASK = [*SIZES, "data.representation=binary", "sampling.sampler=mean"]
RESUNET = [*MASK, "model.kind=resunet", "model.dropout=0.2"]
UNET = [*MASK, "model.kind=unet", "model.backbone=resnet18"]
REGRESSION = ["sde.prior_share=1", "model.dropout=0.2", "sampling.sampler=mean"]
DROPOUT = ["sampling.sampler=mc_dropout", "sampling.draws=3"]


def sets(overrides: list[str]) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


def newest_samples(run: Path) -> Path:
    return sorted((run / "samples").iterdir(), key=lambda p: (p.name[:15], len(p.name), p.name))[-1]


def shake_checkpoint(run: Path, seed: int = 0) -> None:
    """Give short-trained weights something to say."""
    path = run / "checkpoints" / "best.pt"
    state = load_checkpoint(path)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in state["ema"].items():
        if tensor.ndim and "running" not in name:
            tensor += 0.05 * torch.randn(tensor.shape, generator=generator)
    path.unlink()  # a link to another name of the same file
    torch.save(state, path)


@pytest.mark.parametrize("kind", [RESUNET, UNET], ids=["resunet", "unet"])
def test_commands(trained: Workspace, kind: list[str]) -> None:
    if kind is UNET:
        pytest.importorskip(LIBRARY["unet"])
    result = trained("main", *sets(kind))
    assert result.code == 0, result.err
    run = trained.run_folder()
    shake_checkpoint(run)
    result = trained("sample", *sets(kind))
    assert result.code == 0, result.err
    assert "MMSE of 1 draws" in result.out
    folder = newest_samples(run)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["sampler"], summary["nfe_per_draw"], summary["threshold"]) == ("mean", 1, 0.0)
    assert summary["mmse"]["f1"] == summary["single"]["f1"]
    mmse = np.load(folder / "phantom_0010" / "mmse.npy")
    assert np.abs(mmse).max() <= 1
    assert (folder / "report.html").is_file()
    segmenter = Segmenter.from_run(run, device="cpu")
    found = segmenter(trained.path / "prepared" / "Test_patches" / "phantom_0010.png")
    np.testing.assert_allclose(found.mmse[0], mmse, atol=1e-5)
    assert np.array_equal(found.mask, mmse < 0)
    large = np.random.default_rng(0).integers(0, 255, (50, 70), dtype=np.uint8)
    assert segmenter(large).mask.shape == (50, 70)


@pytest.mark.parametrize("kind", [RESUNET, UNET], ids=["resunet", "unet"])
def test_interrupted_training_ends_the_same(trained: Workspace, kind: list[str]) -> None:
    if kind is UNET:
        pytest.importorskip(LIBRARY["unet"])
    assert trained("main", *sets(kind)).code == 0
    whole = load_checkpoint(trained.run_folder() / "checkpoints" / "last.pt")
    half = [*kind, "name=half"]
    assert trained("main", *sets([*half, "training.steps=3"])).code == 0
    run = next((trained.path / "runs" / "half").iterdir())
    result = trained("main", *sets(half), "--resume", str(run))
    assert result.code == 0, result.err
    resumed = load_checkpoint(run / "checkpoints" / "last.pt")
    for part in ("model", "ema"):
        for name, tensor in whole[part].items():
            assert torch.equal(tensor, resumed[part][name]), name


@pytest.mark.parametrize("kind", [RESUNET, REGRESSION], ids=["resunet", "regression"])
def test_dropout_draws_differ_and_do_not_depend_on_their_batch(trained: Workspace, kind: list[str]) -> None:
    assert trained("main", *sets(kind)).code == 0
    run = trained.run_folder()
    shake_checkpoint(run)
    config = load_config("config.yaml", [*kind, *DROPOUT])
    denoiser = load_denoiser(config, run / "checkpoints" / "best.pt", torch.device("cpu"))
    images = torch.randint(0, 255, (2, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def draw(batch: int) -> Tensor:
        drawer = drawer_of(config, denoiser, sampler_of(config.sampling))
        drawer.max_batch = batch
        return torch.stack([sdf for _, sdf in drawer(images, ["a", "b"], 3)])

    draws = draw(1)
    torch.testing.assert_close(draws, draw(4), atol=1e-5, rtol=0)
    different = (draws[:, None] - draws[None]).abs().flatten(2).amax(dim=2)
    assert different[~torch.eye(6, dtype=torch.bool)].min() > 1e-3
    plain = load_denoiser(load_config("config.yaml", kind), run / "checkpoints" / "best.pt", torch.device("cpu"))
    assert not torch.allclose(plain.encode(images[:1] / 127.5 - 1)[-1], draws[0], atol=1e-3)
    result = trained("sample", *sets([*kind, *DROPOUT]))
    assert result.code == 0, result.err
    summary = json.loads((newest_samples(run) / "summary.json").read_text())
    assert (summary["sampler"], summary["draws"], summary["nfe_per_draw"]) == ("mc_dropout", 3, 1)
    assert np.load(newest_samples(run) / "phantom_0010" / "std.npy").max() > 1e-3


def test_an_ensemble_tells_its_members_apart() -> None:
    members = [small("resunet", mask_channels=2).eval() for _ in range(3)]
    for i, member in enumerate(members):
        shake(member)
        torch.nn.init.normal_(member.encoder.get_parameter("head.2.bias"), generator=torch.Generator().manual_seed(i))
    ensemble, image = DeepEnsemble(members), noise(2, 1, 16, 16)
    features = [feature.repeat_interleave(2, dim=0) for feature in ensemble.encode(image)]
    numbers = torch.tensor([2.0, 0.0, 1.0, 2.0]).view(-1, 1, 1, 1).expand(4, 2, 16, 16)
    found = ensemble(numbers, END, features)
    means = torch.stack([member.encode(image)[0] for member in members])  # (members, images, 2, 16, 16)
    assert means.std(dim=0).min() > 1e-4
    torch.testing.assert_close(found, torch.stack([means[2, 0], means[0, 0], means[1, 1], means[2, 1]]))


def test_an_ensemble_draws_the_mean_of_every_member(trained: Workspace) -> None:
    kind = REGRESSION
    assert trained("main", *sets(kind)).code == 0
    first = trained.run_folder()
    runs = [first, *(first.with_name(f"{first.name}-{i}") for i in (71, 72))]
    for i, run in enumerate(runs):
        if i:
            shutil.copytree(first, run)
        shake_checkpoint(run, seed=i)
    means = []
    for run in runs:
        assert trained("sample", *sets(kind), "--run", str(run)).code == 0
        means.append(np.load(newest_samples(run) / "phantom_0011" / "mmse.npy"))
    members = f"sampling.members=[{runs[1]}, {runs[2]}]"
    together = [*kind, "sampling.sampler=ensemble", members, "sampling.save_draws=true"]
    result = trained("sample", *sets(together), "--run", str(first))
    assert result.code == 0, result.err
    folder = newest_samples(first)
    np.testing.assert_allclose(np.load(folder / "phantom_0011" / "draws.npz")["sdf"], means, atol=1e-5)
    np.testing.assert_allclose(np.load(folder / "phantom_0011" / "mmse.npy"), np.mean(means, axis=0), atol=1e-5)
    assert np.std(means, axis=0).max() > 1e-3
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["sampler"], summary["draws"], summary["nfe_per_draw"]) == ("ensemble", 3, 1)
    segmenter = Segmenter.from_run(first, device="cpu", overrides=["sampling.sampler=ensemble", members])
    found = segmenter(trained.path / "prepared" / "Test_patches" / "phantom_0011.png")
    np.testing.assert_allclose(found.mmse[0], np.mean(means, axis=0), atol=1e-5)
    assert found.draws == 3
    result = trained("sample", "--compare", str(first), str(runs[1]))
    assert result.code == 0, result.err
    # A member that is trained on is another ensemble.
    shake_checkpoint(runs[2], seed=9)
    assert "another members" in trained.fails("sample", *sets(together), "--run", str(first), "--resume")
    again = [*kind, "sampling.sampler=ensemble"]
    twice = f"sampling.members=[{first}]"
    assert "twice" in trained.fails("sample", *sets([*again, twice]), "--run", str(first))
    nowhere = "sampling.members=[nowhere]"
    assert "nowhere is not a run folder" in trained.fails("sample", *sets([*again, nowhere]), "--run", str(first))


def test_a_member_of_another_kind_is_refused(trained: Workspace) -> None:
    other = trained.run_folder()
    assert trained("main", *sets([*REGRESSION, "name=first"])).code == 0
    members = ["name=first", "sampling.sampler=ensemble", f"sampling.members=[{other}]"]
    line = trained.fails("sample", *sets([*REGRESSION, *members]))
    assert str(other) in line
    assert "sde.prior_share" in line


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["sampling.sampler=heun"], "mc_dropout or ensemble"),
        (["data.representation=sdf"], "data.representation: sdf"),
        (["sde.prior_share=0.5"], "sde.prior_share"),
        (["model.second_moment=true"], "model.second_moment"),
        (["training.noises=2"], "training.noises: 2"),
        (["model.backbone=resnet18"], "model.backbone"),
        (["model.dropout=0", *DROPOUT], "model.dropout"),
        (["model.kind=fcn", "model.backbone=resnet18"], "resnet50 or resnet101"),
        (["model.kind=unet", "model.dropout=0.1"], "model.dropout"),
        (["model.kind=unet", "model.dropout=0", "model.multipliers=[1,2]"], "model.multipliers"),
        (["model.kind=unet", "model.dropout=0", "training.batch=1"], "training.batch: 1"),
        (["model.kind=conditional", "model.multipliers=[1,2]", *DROPOUT], "sde.prior_share: 0"),
        (["model.kind=conditional", "model.multipliers=[1,2]", "model.backbone=resnet18"], "model.backbone"),
        (["sampling.sampler=ensemble"], "members"),
        (["sampling.members=[a]"], "members"),
        (["sampling.sampler=ensemble", "sampling.members=[a]", "sampling.draws=auto"], "draws: auto"),
        ([*DROPOUT, "sampling.noise=antithetic"], "noise: antithetic"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_refused(workspace: Workspace, changes: list[str], words: str) -> None:
    assert words in workspace.fails("main", *sets([*RESUNET, *changes]))


def test_an_absent_library_is_named(trained: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    runs = set((trained.path / "runs" / "tiny").iterdir())
    assert "pip install segmentation-models-pytorch" in trained.fails("main", *sets(UNET))
    assert set((trained.path / "runs" / "tiny").iterdir()) == runs


@pytest.mark.parametrize("path", sorted((ROOT / "cfg").glob("baseline_*.yaml")), ids=lambda p: p.stem)
def test_configs_are_valid(path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem
    assert config.data.root == load_config(ROOT / "cfg" / "glas.yaml").data.root


PROTOCOL = ROOT / "bench" / "protocols" / "glas128.yaml"


@pytest.mark.parametrize("small", [False, True])
def test_the_systems_of_the_protocol_share_their_data(small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    configs = [job.resolved() for job in jobs_of(read_protocol("glas128"), [], small)]
    data = [config.data for config in configs]
    assert len({(d.size, d.color, d.stain, d.rotations, d.validation_fraction, d.split_seed) for d in data}) == 1
    assert len({(d.root, d.truncation) for d in data}) == len({d.root for d in data}) == (1 if small else 2)


@pytest.mark.slow
def test_baselines_and_denoisers_in_one_table(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace.path / "cfg").symlink_to(ROOT / "cfg")
    content = yaml.safe_load(PROTOCOL.read_text())
    names = ["Res-UNet", "regression", "regression ensemble of 5", "DDPM"]
    content["systems"] = [system for system in content["systems"] if system["name"] in names]
    content["systems"][2]["members"] = 2
    content["small"] += ["training.steps=2", "sampling.steps=3", "data.phantom.size=32", "data.phantom.test=2"]
    (workspace.path / "four.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def run(*more: str) -> pd.DataFrame:
        assert run_command(lambda: table.main(["--protocol", "four.yaml", "--output", "four", "--small", *more])) == 0
        return pd.read_csv("four.csv")

    assert run("--only", "DDPM")["system"].tolist() == ["DDPM"]
    rows = run()
    assert rows["system"].tolist() == names
    assert rows["nfe"].tolist() == [1, 1, 1, 3]
    assert rows["draws"].tolist() == [1, 1, 2, 4]
    assert rows["ause"].notna().tolist() == [False, False, True, True]
    assert rows["parameters"][2] == 2 * rows["parameters"][1]
    assert len({str(folder).split("/samples")[0] for folder in rows["folder"]}) == 3
    page = (workspace.path / "four.md").read_text()
    assert "| regression ensemble of 5 |" in page
    assert "phantom, test split (2)" in page
    assert "the small form, which only shows that all of them run" in page
    assert (workspace.path / "four.png").is_file()
