"""The joint model: its denoiser on a Gaussian with a known posterior, its loss, and its commands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from data.dataset import Reading, load_split
from models.denoiser import batch_times
from models.joint import JointDenoiser, build_joint
from sde.grids import logsnr_grid
from sde.process import VE, VP, OTFlow, Process
from sde.samplers import ancestral, heun
from tests.conftest import TINY, Workspace, trained_in
from tests.models.test_denoiser import shake
from tests.training.test_training import same_state
from training.losses import joint_times
from utils.config import load_config

PROCESSES: list[Process] = [VE(), VP(), OTFlow()]
each_process = pytest.mark.parametrize("process", PROCESSES, ids=["ve", "vp", "flow"])


def small(process: Process | None = None, **changes: object) -> JointDenoiser:
    torch.manual_seed(0)
    sizes: dict[str, object] = {"image_channels": 3, "mask_channels": 2, "channels": 8, "multipliers": [1, 2]}
    model = build_joint(process or VE(), "edm", **{**sizes, **changes}, blocks=1, attention=[], dropout=0.0)  # type: ignore[arg-type]
    shake(model)
    return model.eval()


def noise(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# A Gaussian whose posterior is known: (m, x) at every pixel has this covariance.
COVARIANCE = torch.tensor([[0.36, 0.20], [0.20, 0.25]], dtype=torch.float64)


class Gaussian(JointDenoiser):
    """The exact posterior means of that Gaussian in place of a network's."""

    def joint(self, z_m: Tensor, t_m: Tensor, z_x: Tensor, t_x: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.stack([z_m, z_x], dim=-1).double()
        t = torch.stack([batch_times(t_m, z_m)[0], batch_times(t_x, z_x)[0]])
        scale, spread = self.process.alpha(t).diag(), (self.process.sigma(t) ** 2).diag()
        gain = COVARIANCE @ scale @ torch.linalg.inv(scale @ COVARIANCE @ scale + spread)
        m, x = (z @ gain.T).float().unbind(-1)
        return m, x


def exact(process: Process) -> JointDenoiser:
    model = small(process, image_channels=1, mask_channels=1)
    model.__class__ = Gaussian
    return model


def normal(*shape: int) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda: torch.randn(shape, generator=generator)


@each_process
@pytest.mark.parametrize("sampler", [partial(heun, steps=60), partial(ancestral, steps=500)], ids=["heun", "ancestral"])
def test_pairs_have_the_joint_covariance(process: Process, sampler: Callable[..., Tensor]) -> None:
    pairs = sampler(exact(process).pair, process, normal(1, 2, 150, 150), grid=logsnr_grid)
    found = torch.cov(pairs[0].flatten(1))
    torch.testing.assert_close(found.double(), COVARIANCE, atol=0.012, rtol=0.03)


@each_process
@pytest.mark.parametrize("given", ["mask", "image"])
def test_conditionals_have_the_posterior_mean_and_variance(process: Process, given: str) -> None:
    model, value = exact(process), 0.7
    condition = torch.full((1, 1, 120, 120), value)
    own = 1 if given == "mask" else 0
    if given == "mask":
        denoise = partial(model.image, m=condition)
    else:
        denoise = partial(model.forward, features=model.encode(condition))
    draws = ancestral(denoise, process, normal(1, 1, 120, 120), 500, grid=logsnr_grid)
    c = COVARIANCE.tolist()
    slope = c[0][1] / c[1 - own][1 - own]
    assert draws.mean().item() == pytest.approx(slope * value, abs=0.012)
    assert draws.var().item() == pytest.approx(c[own][own] - slope * c[0][1], rel=0.06)


# The network and its scaling.


@each_process
def test_untrained_it_is_the_linear_denoiser_of_each_part(process: Process) -> None:
    """With a zero last layer: alpha s^2 / (alpha^2 s^2 + sigma^2) z, by each part's own time and scale."""
    model = build_joint(process, "edm", image_channels=1, channels=8, multipliers=[1], blocks=1, attention=[],
                        dropout=0.0, sigma_data=0.8, sigma_image=0.3)  # fmt: skip
    z, times = noise(2, 2, 5, 7), torch.tensor([[0.1, 0.6], [0.9, 0.3]], dtype=torch.float64)
    found = model.joint(z[:, :1], times[0], z[:, 1:], times[1])
    for k, scale in enumerate((0.8, 0.3)):
        alpha, sigma = process.alpha(times[k]), process.sigma(times[k])
        gain = alpha * scale**2 / ((alpha * scale) ** 2 + sigma**2)
        torch.testing.assert_close(found[k], z[:, k : k + 1] * gain.float().view(-1, 1, 1, 1))


def test_each_time_matters_to_both_parts() -> None:
    model, z = small(), noise(1, 5, 8, 8)
    reference = model.joint(z[:, :2], torch.tensor(0.5), z[:, 2:], torch.tensor(0.5))
    for t_m, t_x in ((0.4, 0.5), (0.5, 0.4)):
        other = model.joint(z[:, :2], torch.tensor(t_m), z[:, 2:], torch.tensor(t_x))
        assert all((a - b).abs().max() > 1e-3 for a, b in zip(reference, other, strict=True))


def test_shapes_of_any_size() -> None:
    model = small(multipliers=[1, 2, 2])
    m, x = model.joint(noise(2, 2, 13, 10), torch.tensor(0.3), noise(2, 3, 13, 10), torch.tensor([0.2, 0.9]))
    assert (m.shape, x.shape) == ((2, 2, 13, 10), (2, 3, 13, 10))
    assert model.pair(noise(2, 5, 13, 10), torch.tensor(0.3)).shape == (2, 5, 13, 10)


def test_as_a_denoiser_it_is_the_joint_one_with_a_clean_image() -> None:
    model, z, image = small(VP()), noise(2, 2, 8, 8), noise(2, 3, 8, 8, seed=4)
    t, least = torch.tensor(0.4), torch.tensor(VP().t_min, dtype=torch.float64)
    expected = model.joint(z, t, float(VP().alpha(least)) * image, least)[0]
    torch.testing.assert_close(model(z, t, model.encode(image)), expected)
    assert model.mask_channels == 2
    assert not model.second_moment
    with pytest.raises(ValueError, match="direct mean"):
        model.direct_moments(model.encode(image), (8, 8))


# The loss.


def test_times_are_stratified_and_independent() -> None:
    t, clean = joint_times(1000, VP(), torch.Generator().manual_seed(0))
    assert not clean.any()
    for row in t:
        parts = ((row - VP().t_min) / (VP().t_max - VP().t_min) * 1000).floor()
        assert sorted(parts.tolist()) == list(range(1000))
    assert abs(torch.corrcoef(t)[0, 1].item()) < 0.08


def test_shares_of_clean_masks_and_images() -> None:
    t, clean = joint_times(4000, VP(), torch.Generator().manual_seed(0), clean_share=0.2)
    assert clean.double().mean(dim=1).tolist() == pytest.approx([0.2, 0.2], abs=0.02)
    assert not (clean[0] & clean[1]).any()
    assert (t[clean] == VP().t_min).all()
    assert joint_times(4000, VP(), torch.Generator().manual_seed(0), clean_share=0.5)[1].any(dim=0).all()


# The commands.


def joint_config() -> dict[str, object]:
    return {
        **TINY,
        "model": {"kind": "joint", "channels": 8, "multipliers": [1, 2]},
        "sde": {"sigma_min": 0.01, "weighting": "edm", "clean_share": 0.25},
    }


@pytest.fixture(scope="module")
def joint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_in(tmp_path_factory.mktemp("joint"), joint_config())


@pytest.fixture
def joint(workspace: Workspace, joint_folder: Path) -> Workspace:
    shutil.copytree(joint_folder, workspace.path, dirs_exist_ok=True)
    return workspace


def newest(workspace: Workspace, kind: str = "generated") -> Path:
    return sorted((workspace.run_folder() / kind).iterdir(), key=lambda path: (len(path.name), path.name))[-1]


def sdfs(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.load(path) for path in sorted((folder / "sdf").iterdir())}


def test_both_losses_are_trained_on_all_times(joint: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is clean reaches the network without noise and has no loss; everything else has one."""
    import main
    import training.losses

    seen: list[tuple[Tensor, ...]] = []
    inner = JointDenoiser.joint
    data: list[Tensor] = []

    def spy(self: JointDenoiser, *arguments: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(arguments)
        return inner(self, *arguments)

    def keep(process: Process, m: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        data.append(m)
        return process.alpha(t).float().view(-1, 1, 1, 1) * m + process.sigma(t).float().view(-1, 1, 1, 1) * eps

    monkeypatch.setattr(JointDenoiser, "joint", spy)
    monkeypatch.setattr(training.losses, "perturbed", keep)
    config = load_config("config.yaml", ["training.noises=20"])
    state = main.build_state(config, main.load_data(config)[0], torch.device("cpu"))
    images, m, _ = state.batches.next()
    losses, times = training.losses.loss_of(state.model, images, m, state, config)
    z_m, t_m, z_x, t_x = seen[0]
    clean_m, clean_x = t_m == 0, t_x == 0
    assert clean_m.any()
    assert clean_x.any()
    assert len(losses) == len(times) == 120 - int(clean_m.sum() + clean_x.sum())
    assert (times > 0).all()
    torch.testing.assert_close(z_m[clean_m], data[0][clean_m])
    torch.testing.assert_close(z_x[clean_x], data[1][clean_x])
    assert (z_m - data[0])[~clean_m].flatten(1).std(dim=1).min() > 0.005
    assert data[1].abs().max() <= 1
    assert (losses > 0).all()


def test_the_network_learns_what_goes_together(workspace: Workspace) -> None:
    """Bright images have full masks, dark ones empty: each tells the other."""
    from sde.loss import Weighting, denoising_loss, perturbed

    model = small(VE(0.01, 5.0), image_channels=1, mask_channels=1).train()
    optimizer, generator = torch.optim.Adam(model.parameters(), 5e-3), torch.Generator().manual_seed(0)
    for _ in range(120):
        sign = (torch.randint(0, 2, (16, 1, 1, 1), generator=generator) * 2.0 - 1.0).expand(-1, 1, 4, 4)
        t, _ = joint_times(16, model.process, generator)
        parts = 0.6 * sign, 0.4 * sign
        z = [perturbed(model.process, d, s, torch.randn(d.shape, generator=generator))
             for d, s in zip(parts, t, strict=True)]  # fmt: skip
        means = model.joint(z[0], t[0], z[1], t[1])
        loss = sum((denoising_loss(mean, model.process, d, s, Weighting("edm"), 0.5).mean()
                    for mean, d, s in zip(means, parts, t, strict=True)), torch.zeros(()))  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    bright = torch.full((8, 1, 4, 4), 0.4)
    grid = partial(ancestral, steps=12, grid=logsnr_grid)
    m = grid(partial(model.forward, features=model.encode(bright)), model.process, normal(8, 1, 4, 4))
    x = grid(lambda z, t: model.image(z, t, -1.5 * bright), model.process, normal(8, 1, 4, 4))
    pairs = grid(model.pair, model.process, normal(32, 2, 4, 4)).mean(dim=(2, 3))
    assert m.mean().item() == pytest.approx(0.6, abs=0.15)
    assert x.mean().item() == pytest.approx(-0.4, abs=0.12)
    assert (pairs[:, 0] * pairs[:, 1] > 0).float().mean() > 0.9
    assert 4 < (pairs[:, 0] > 0).sum() < 28


def test_masks_given_images_as_any_other_model(joint: Workspace) -> None:
    result = joint("sample")
    assert result.code == 0, result.err
    folder = newest(joint, "samples")
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["images"], summary["draws"], summary["nfe_per_draw"]) == (3, 3, 5)
    assert (folder / "report.html").is_file()
    mean = joint("sample", "--set", "sampling.sampler=mean", "--set", "sampling.animate=false")
    assert mean.code == 0, mean.err


def test_interrupted_training_goes_on_bit_for_bit(joint: Workspace) -> None:
    assert joint("main", "--set", "training.steps=4").code == 0
    parts = joint.run_folder()
    assert joint("main", "--resume", str(parts)).code == 0
    whole = sorted((joint.path / "runs" / "tiny").iterdir())[0]
    assert parts != whole
    same_state(whole / "checkpoints" / "last.pt", parts / "checkpoints" / "last.pt")
    assert "sde.clean_share" in joint.fails("main", "--resume", str(parts), "--set", "sde.clean_share=0")


def test_pairs(joint: Workspace) -> None:
    result = joint("sample", "--generate", "pairs", "--count", "5")
    assert result.code == 0, result.err
    folder = newest(joint)
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
    folder = newest(joint)
    patches = load_split(joint.path / "prepared", "test", Reading(rgb=False, truncation=6))
    found = sdfs(folder)
    assert sorted(found) == sorted(f"{patches[i % 3].key}_{i // 3}" for i in range(5))
    for patch in patches:
        np.testing.assert_allclose(found[f"{patch.key}_0"], patch.sdf[0, 0], atol=1e-6)
        mask = np.asarray(Image.open(folder / "masks" / f"{patch.key}_0.png"))
        np.testing.assert_array_equal(mask > 0, patch.mask)
    first, again = ((folder / "images" / f"{patches[0].key}_{d}.png").read_bytes() for d in (0, 1))
    assert first != again
    assert joint("sample", "--generate", "images").code == 0
    assert len(sdfs(newest(joint))) == 3


@pytest.mark.parametrize("what", ["pairs", "images"])
def test_generated_samples_do_not_depend_on_their_batch(joint: Workspace, what: str) -> None:
    results = []
    for batch, count in ((1, 3), (4, 5)):
        options = ["--set", f"sampling.max_batch={batch}", "--set", "sampling.sampler=pc", "--set", "sampling.steps=8"]
        assert joint("sample", "--generate", what, "--count", str(count), *options).code == 0
        folder = newest(joint)
        results.append({path.stem: np.asarray(Image.open(path)).astype(int) for path in folder.glob("images/*.png")})
        results[-1] |= {f"{name} sdf": sdf * 255 for name, sdf in sdfs(folder).items()}
    common = results[0].keys() & results[1].keys()
    assert len(common) == 6
    for name in common:
        np.testing.assert_allclose(results[0][name], results[1][name], atol=1)


def test_interrupted_generation_goes_on(joint: Workspace) -> None:
    options = ["--generate", "pairs", "--count", "6"]
    assert joint("sample", *options).code == 0
    folder = newest(joint)
    before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.suffix in (".png", ".npy")}
    kept = (folder / "sdf" / "pair_0000.npy").stat().st_mtime_ns
    for path in [*folder.glob("*/pair_0005.*"), folder / "summary.json", folder / "sheet.png"]:
        path.unlink()
    assert joint("sample", *options, "--resume").code == 0
    assert newest(joint) == folder
    assert {path: path.read_bytes() for path in before} == before
    assert (folder / "sdf" / "pair_0000.npy").stat().st_mtime_ns == kept
    assert "another count" in joint.fails("sample", "--generate", "pairs", "--count", "7", "--resume")


def test_generated_pairs_are_data_to_train_on(joint: Workspace) -> None:
    assert joint("sample", "--generate", "pairs", "--count", "8").code == 0
    folder, run = newest(joint), joint.run_folder()
    own = ["--set", "data.source=prepared", "--set", f"data.root={folder}", "--set", "name=own"]
    result = joint("main", *own)
    assert result.code == 0, result.err
    scored = joint("sample", *own, "--run", str(run))
    assert scored.code == 0, scored.err
    assert "8 images" in scored.out
    patches = load_split(folder, "test", Reading(rgb=False, truncation=6))
    np.testing.assert_array_equal(patches[3].mask, patches[3].sdf[0, 0] < 0.03)


def test_two_classes_in_colour(workspace: Workspace) -> None:
    (workspace.path / "config.yaml").write_text(yaml.safe_dump(joint_config()))
    own = ["--set", "data.classes=[2, 1]", "--set", "data.color=rgb", "--set", "data.phantom.objects=glands_and_lumina"]
    assert workspace("prepare", *own).code == 0
    assert workspace("main", *own).code == 0
    for what in ("pairs", "images"):
        result = workspace("sample", "--generate", what, "--count", "2", *own)
        assert result.code == 0, result.err
        folder = newest(workspace)
        for name, sdf in sdfs(folder).items():
            assert sdf.shape == (2, 32, 32)
            assert np.asarray(Image.open(folder / "images" / f"{name}.png")).shape == (32, 32, 3)
            mask = np.asarray(Image.open(folder / "masks" / f"{name}.png"))
            load_split(folder, "test", Reading(rgb=True, truncation=6, classes=(2, 1)))
            clear = sdf[0] != sdf[1]  # not both at the limit of -1
            for k, value in enumerate((2, 1)):
                expected = (sdf.min(axis=0) < 0.03) & (sdf.argmin(axis=0) == k)
                np.testing.assert_array_equal((mask == value)[clear], expected[clear])


@pytest.mark.parametrize(
    ("override", "needle"),
    [
        ("model.encoder.channels=16", "model.encoder"),
        ("model.second_moment=true", "model.second_moment"),
        ("sde.prior_share=0.25", "sde.prior_share: 0.25"),
        ("sde.prediction=both", "sde.prediction: both"),
        ("model.kind=both", "model.kind"),
        ("model.kind=conditional", "sde.clean_share: 0.25 is for model.kind: joint"),
        ("sde.clean_share=0.6", "sde.clean_share"),
    ],
)
def test_settings_of_the_other_kind_are_refused(workspace: Workspace, override: str, needle: str) -> None:
    (workspace.path / "config.yaml").write_text(yaml.safe_dump(joint_config()))
    assert needle in workspace.fails("main", "--set", override)
    assert not (workspace.path / "runs").exists()


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
