"""Encoders of timm, their weights, and trainings with them as a user types them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from models.denoiser import Denoiser
from models.pyramid import PYRAMID, Pretrained, PyramidEncoder, source_weights
from models.unet import Sizes, Trunk
from tests.commands import Workspace, exported, newest, same_state, sets
from tests.networks import small_denoiser
from training.parallel import Team
from training.state import optimizer_of
from utils.checkpoint import load_checkpoint
from utils.errors import UsageError
from utils.sections import TrainingConfig
from utils.share import Share

timm = pytest.importorskip("timm", reason="needs timm: pip install timm")

NAME = "test_resnet"  # 0.4 M parameters, maps from 1/2 to 1/32
TIMM = ["model.encoder.kind=timm", f"model.encoder.name={NAME}"]
FROZEN = [*TIMM, "model.encoder.pretrained=given.safetensors", "model.encoder.frozen=true"]


def given(path: str = "given.safetensors", name: str = NAME) -> Any:
    """A file of the whole network's weights, and the network."""
    network = timm.create_model(name)
    for key, w in network.state_dict().items():
        if "running" in key:
            w += torch.rand(w.shape)
    if path.endswith(".pth"):
        torch.save(network.state_dict(), path)
    else:
        save_file(network.state_dict(), path)
    return network.eval()


@pytest.mark.parametrize("name", [NAME, "test_convnext", "test_efficientnet", "test_vit"])
@pytest.mark.parametrize(("levels", "unshuffle"), [(3, 1), (7, 1), (2, 8)])
def test_any_size_gives_a_map_for_every_level(name: str, levels: int, unshuffle: int) -> None:
    trunk = Trunk(1, Sizes(8, [1] * levels, unshuffle=unshuffle))
    encoder = PyramidEncoder(1, Pretrained(name), 8, trunk)
    rows, columns = (-(-size // trunk.scales[-1]) * trunk.scales[-1] for size in (41, 70))
    expected = [(2, 8, rows // scale, columns // scale) for scale in trunk.scales]
    assert [tuple(x.shape) for x in encoder(torch.rand(2, 1, 41, 70))] == expected


def test_maps_whose_channels_come_last_are_turned() -> None:
    encoder = PyramidEncoder(1, Pretrained("swin_tiny_patch4_window7_224"), 8, Trunk(1, Sizes(8, [1] * 3)))
    assert [tuple(x.shape) for x in encoder(torch.rand(1, 1, 40, 36))] == [
        (1, 8, 40, 36),
        (1, 8, 20, 18),
        (1, 8, 10, 9),
    ]


def test_every_level_sees_far() -> None:
    """A change reaches the finest map 32 pixels away, where its own convolutions do not."""
    encoder = PyramidEncoder(1, Pretrained("test_efficientnet"), 8, Trunk(1, Sizes(8, [1, 1]))).eval()
    encoder.project = torch.nn.ModuleList(torch.nn.Identity() for _ in range(2))  # whose norm would see it
    for norm in (module for module in encoder.lateral.modules() if isinstance(module, torch.nn.GroupNorm)):
        norm.forward = lambda x: x  # type: ignore
    image = torch.rand(1, 1, 128, 128)
    other = image.clone()
    other[..., :32] = 0
    assert (encoder(image)[0] - encoder(other)[0])[..., 64:].abs().max() > 0


def test_images_get_the_statistics_of_the_weights() -> None:
    encoder = PyramidEncoder(1, Pretrained("resnet18"), 8, Trunk(1, Sizes(8, [1, 1]))).eval()
    seen = []
    encoder.pyramid.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    encoder(torch.full((1, 1, 32, 32), 0.2))
    expected = [(0.6 - mean) / std for mean, std in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)]
    assert seen[0][0, :, 5, 7].tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("path", ["given.safetensors", "given.pth"])
def test_features_are_those_of_a_file(tmp_path: Path, path: str) -> None:
    network = given(str(tmp_path / path))
    encoder = PyramidEncoder(3, Pretrained(NAME, str(tmp_path / path)), 8, Trunk(1, Sizes(8, [1, 1])))
    encoder.load_source()
    image = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(encoder.eval().pyramid(image)[-1], network.forward_features(image))


@pytest.mark.parametrize("name", [NAME, "test_convnext", "test_efficientnet", "test_vit"])
def test_a_file_is_read_once_and_has_all_that_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path, create = str(tmp_path / "given.safetensors"), timm.create_model
    torch.manual_seed(0)
    weights = given(path, name).state_dict()
    read = []

    def watched(name: str, pretrained: bool = False, **options: Any) -> Any:
        read.append(pretrained)
        return create(name, pretrained=pretrained, **options)

    monkeypatch.setattr(timm, "create_model", watched)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    assert source_weights(name, path)
    assert sum(read) == 1
    assert torch.equal(torch.random.get_rng_state(), before)
    key = next(key for key, w in weights.items() if w.ndim == 4)
    save_file({other: w for other, w in weights.items() if other != key}, path)
    with pytest.raises(UsageError, match=r"no weights of test_\w+: 1 of \d+ tensors are absent"):
        source_weights(name, path)


def denoiser(**options: Any) -> Denoiser:
    return small_denoiser(encoder_kind="timm", pretrained=Pretrained(NAME, **options))


def test_the_encoder_may_learn_more_slowly() -> None:
    model = denoiser()
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = optimizer_of(TrainingConfig(learning_rate=1e-2, encoder_rate=0.1), model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        rate = 1e-3 if name.startswith(PYRAMID) else 1e-2  # Adam's first step
        torch.testing.assert_close(before[name] - p, torch.full_like(p, rate), rtol=1e-2, atol=1e-5)


def test_several_processes_share_batch_norms_that_learn() -> None:
    team = Team(Share(0, 2))
    with pytest.raises(UsageError, match="batch norms"):
        team.prepared(denoiser())
    team.prepared(denoiser(frozen=True))
    with torch.device("meta"):
        pretrained = Pretrained("test_efficientnet")
        shared = team.prepared(small_denoiser(encoder_kind="timm", pretrained=pretrained))
    assert any(isinstance(m, torch.nn.SyncBatchNorm) and hasattr(m, "act") for m in shared.modules())
    with_activations = Pretrained("test_efficientnet")  # in its norms
    encoder = PyramidEncoder(1, with_activations, 8, Trunk(1, Sizes(8, [1, 1]))).eval()
    image = torch.rand(1, 1, 32, 32)
    before = encoder(image)
    encoder.share_norms()
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in encoder.modules())
    for x, y in zip(before, encoder(image), strict=True):
        torch.testing.assert_close(x, y)


def moved(run: Path, kind: str) -> set[bool]:
    """Whether timm's parameters and statistics differ between two checkpoints."""
    first, second = (load_checkpoint(run / "checkpoints" / f"step_{step:08d}.pt")[kind] for step in (3, 6))
    keys = [key for key in first if key.startswith(PYRAMID) and "num_batches" not in key]
    assert any("running_mean" in key for key in keys)
    return {bool((first[key] != second[key]).any()) for key in keys}


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_networks_do_not_move(trained: Workspace, frozen: bool) -> None:
    options = [*TIMM, f"model.encoder.frozen={str(frozen).lower()}", "data.size=[40, 36]"]
    assert trained("prepare", *sets([*options, "data.root=odd"])).code == 0
    result = trained("main", *sets([*options, "data.root=odd"]))
    assert result.code == 0, result.err
    run = trained.run_folder()
    for kind in ("model", "ema"):
        assert moved(run, kind) == {not frozen}
    assert trained("sample", "--run", str(run), config=str(run / "config.yaml")).code == 0
    assert (newest(run) / "summary.json").is_file()


@pytest.mark.slow
def test_checkpoints_leave_out_what_came_frozen_from_a_file(trained: Workspace) -> None:
    given()
    for steps in (6, 3):
        assert trained("main", *sets([*FROZEN, f"training.steps={steps}", "sampling.save_draws=true"])).code == 0
    whole, run = sorted((trained.path / "runs" / "tiny").iterdir())[-2:]
    state = load_checkpoint(whole / "checkpoints" / "last.pt")
    assert not [key for key in state["ema"] if key.startswith(PYRAMID)]
    assert trained("main", *sets(FROZEN), "--resume", str(run)).code == 0
    same_state(whole / "checkpoints" / "last.pt", run / "checkpoints" / "last.pt")

    words, config = ["--run", str(run)], str(run / "config.yaml")
    assert trained("sample", *words, config=config).code == 0
    Path("given.safetensors").rename("moved.safetensors")
    assert "given.safetensors: no such file" in trained.fails("sample", *words, config=config)
    assert "given.safetensors: no such file" in trained.fails("main", "--resume", str(run), config=config)
    moved = sets(["model.encoder.pretrained=moved.safetensors"])
    assert trained("sample", *words, *moved, config=config).code == 0
    path = exported(trained)
    assert path.stat().st_size < 2**20 < Path("moved.safetensors").stat().st_size
    given("moved.safetensors")
    assert "other weights than those of the training" in trained.fails("sample", *words, *moved, config=config)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["model.encoder.name=test_resnat"], "timm has no test_resnat; did you mean test_resnet?"),
        (["model.encoder.name=hf-hub:x/y"], "letters, digits"),
        (["model.encoder.name=test_vit2", "model.encoder.blocks=2"], "blocks: 2 is for kind: unet or rrdb"),
        (["model.encoder.name=vit_small_patch14_dinov2"], "1/14 of the size, no power of 2"),
        (["model.encoder.name=hiera_tiny_224"], "gives no maps of images of any size"),
        (
            ["model.encoder.name=test_maxvit", "model.encoder.pretrained=true"],
            "test_maxvit gives no maps of images of any",
        ),
        (["model.encoder.pretrained=gone.pth"], "model.encoder.pretrained: gone.pth: no such file"),
        (["model.encoder.pretrained=config.yaml"], "config.yaml: these are no weights of test_resnet"),
        (["model.encoder.pretrained=other.safetensors"], "other.safetensors: no weights of test_resnet"),
        (["model.encoder.frozen=true", "training.encoder_rate=0.5"], "encoder_rate: 0.5 is for"),
        (["training.batch=1"], "training.batch: 1 is too small"),
    ],
)
def test_what_cannot_be_had_is_one_line(workspace: Workspace, options: list[str], words: str) -> None:
    """Before data are read: there are none."""
    save_file({"conv1.weight": torch.zeros(3)}, "other.safetensors")
    line = workspace.fails("main", *sets([*TIMM, *options]))
    assert words in line
    assert not Path("runs").exists()


def test_without_timm_or_its_hub_there_is_one_line(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: Any) -> Any:
        if pretrained:
            raise OSError("no network\nat all")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    line = workspace.fails("main", *sets([*TIMM, "model.encoder.pretrained=true"]))
    assert "pretrained: true: no weights of test_resnet to be had (no network at all)" in line
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "pip install timm" in workspace.fails("main", *sets(TIMM))
