"""Validation by draws: the spread that it finds, and what the best checkpoint is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data.rows import Patch
from models.build import denoiser_of
from sde.process import VP
from tests.commands import Workspace, sets
from tests.networks import Pixelwise, direct_denoiser, noise, shake
from training import session
from training.validation import validate
from utils.checkpoint import load_checkpoint
from utils.config import load_config

DRAWS = ["sde.process=vp", "sde.sigma_min=1e-3", "sde.sigma_max=5", "sde.prior_share=1", "sde.objective=distribution",
         "sampling.sampler=ancestral", "sampling.steps=1"]  # fmt: skip


class Alike(Pixelwise):
    """Draws of N(x, (share * std)^2), where N(x, std^2) is right, times data.sdf_scale."""

    def __init__(self, share: float, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.share, self.direct, self.distribution = share, True, True
        self.anchor = nn.Parameter(torch.zeros(()))  # a device is looked for

    def encode(self, image: Tensor) -> list[Tensor]:
        return [self.scale * image[:, :1], self.scale * image[:, :1]]

    def known(self, t: Tensor, features: Sequence[Tensor]) -> None:
        return None

    def forward(self, z: Tensor, t: Tensor, features: Sequence[Tensor]) -> Tensor:
        eps = torch.stack([noise(*z.shape[1:], seed=int(row[1]) % 2**31) for row in features[-1]])
        return features[0] + self.spread * self.scale * self.share * self.std * eps


def patches(count: int) -> list[Patch]:
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        image = rng.integers(100, 156, (16, 16)).astype(np.uint8)
        sdf = (image / 127.5 - 1 + 0.3 * rng.standard_normal((16, 16))).astype(np.float32)
        made.append(Patch(str(i), str(i), f"{i}.png", image, sdf[None, None], (sdf < 0).astype(np.uint8)))
    return made


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_spread_makes_up_for_draws_that_are_too_alike(workspace: Workspace, share: float) -> None:
    config = load_config("config.yaml", [*DRAWS, "evaluation.images=40", "evaluation.draws=8"])
    model = Alike(share)
    scores, _ = validate(config, model, patches(40))
    assert float(model.spread) == pytest.approx(1 / share, abs=0.126)
    model.spread.fill_(0.0)  # what was there before does not matter
    assert validate(config, model, patches(40))[0] == scores


def test_the_scale_of_sdfs_changes_no_score(workspace: Workspace) -> None:
    found = []
    for scale in (1.0, 0.2):
        keys = [*DRAWS, "evaluation.images=10", "evaluation.draws=4", f"data.sdf_scale={scale}"]
        model = Alike(0.5, scale)
        scores, _ = validate(load_config("config.yaml", keys), model, patches(10))
        found.append([*scores.values(), float(model.spread)])
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_one_draw_has_no_spread_to_choose(workspace: Workspace) -> None:
    model = Alike(0.5)
    validate(load_config("config.yaml", [*DRAWS, "evaluation.draws=1"]), model, patches(10))
    assert float(model.spread) == 1.0


@pytest.mark.parametrize("objective", ["mean", "distribution"])
def test_dropout_plays_no_part_in_validation(workspace: Workspace, objective: str) -> None:
    keys = [f"sde.objective={objective}", "sde.process=vp", "sde.prior_share=1", "model.dropout=0.5"]
    configs = [load_config("config.yaml", [*keys, f"sampling.sampler={way}"]) for way in ("mean", "mc_dropout")]
    model = denoiser_of(configs[0])
    shake(model)
    found = [validate(config, model, patches(4))[0] for config in configs]
    assert found[0] == found[1]


def test_antithetic_pairs_are_not_scored_as_independent(workspace: Workspace) -> None:
    model = direct_denoiser(process=VP())
    keys = ["sde.process=vp", "sde.prior_share=0.5", "sampling.sampler=ancestral", "evaluation.steps=3",
            "evaluation.draws=4"]  # fmt: skip
    found = [
        validate(load_config("config.yaml", [*keys, f"sampling.noise={noise}"]), model, patches(4))[0]
        for noise in ("independent", "antithetic")
    ]
    assert found[0] == found[1]


@pytest.mark.slow
def test_the_spread_goes_with_the_weights(trained: Workspace) -> None:
    """A regression, then a distributional training that begins with it, its draws, and those with a spread of 0."""
    kind = [*DRAWS, "sampling.save_draws=true", "evaluation.draws=4"]
    plain = [*DRAWS[:4], "sampling.sampler=mean", "name=plain"]
    assert trained("main", *sets(plain)).code == 0
    start = next(Path("runs/plain").iterdir())
    result = trained("main", *sets([*kind, f"training.start_from={start}", "name=draws", "sde.mean_first=0.5"]))
    assert result.code == 0, result.err
    run = next(Path("runs/draws").iterdir())
    best = load_checkpoint(run / "checkpoints" / "best.pt")["ema"]
    before = load_checkpoint(start / "checkpoints" / "best.pt")["ema"]
    assert (best["encoder.trunk.entry.weight"] - before["encoder.trunk.entry.weight"]).abs().max() < 0.05
    found = {}
    for spread in ("auto", f"{float(best['spread'])}", "0", "2"):
        result = trained("sample", *sets([*kind, f"sampling.spread={spread}", "name=draws"]))
        assert result.code == 0, result.err
        folder = sorted((run / "samples").iterdir())[-1]
        found[spread] = np.load(folder / "phantom_0010" / "draws.npz")["sdf"]
    auto, own, none, two = found.values()
    assert np.array_equal(auto, own)
    assert np.ptp(none, axis=0).max() < 1e-6
    assert np.ptp(two, axis=0).max() > 1e-3
    folder = sorted((run / "samples").iterdir())[-1]
    assert '"nfe_per_draw": 1.3' in (folder / "summary.json").read_text()  # 3 draws and the mean
    wider = [*kind, f"training.start_from={start}", "model.channels=16", "model.encoder.channels=16"]
    assert "of another architecture" in trained.fails("main", *sets([*wider, "name=wider"]))
    told = [
        *kind,
        f"training.start_from={start}",
        "model.raters=1",
        "name=told",
    ]  # new to those weights, as the noise is
    assert trained("main", *sets(told)).code == 0
    assert "no such checkpoint" in trained.fails("main", *sets([*kind, "training.start_from=nowhere.pt"]))
    assert not Path("runs/wider").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("choose", "step"), [("energy", 3), ("f1", 6)])
def test_the_best_checkpoint_is_that_of_the_chosen_score(
    trained: Workspace, monkeypatch: pytest.MonkeyPatch, choose: str, step: int
) -> None:
    scores = iter([{"val_f1": 0.5, "val_energy": 1.0}, {"val_f1": 0.6, "val_energy": 2.0}])
    monkeypatch.setattr(session, "validate", lambda *_: (next(scores), torch.zeros(3, 3, 8, 8)))
    result = trained("main", "--set", f"evaluation.choose_by={choose}")
    assert result.code == 0
    assert f"best validation F1 {'0.5000' if choose == 'energy' else '0.6000'}" in result.out
    assert load_checkpoint(trained.run_folder() / "checkpoints" / "best.pt")["step"] == step
