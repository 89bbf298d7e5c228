"""Validation by draws: the spread that it finds, and what the best checkpoint is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data.rows import Patch
from tests.commands import Workspace, sets
from tests.networks import Pixelwise, noise
from training import session
from training.validation import validate
from utils.checkpoint import load_checkpoint
from utils.config import load_config

DRAWS = ["sde.process=vp", "sde.sigma_min=1e-3", "sde.sigma_max=5", "sde.prior_share=1", "sde.objective=distribution",
         "sampling.sampler=ancestral", "sampling.steps=1"]  # fmt: skip


class Alike(Pixelwise):
    """Draws of N(x, (share * std)^2), where N(x, std^2) is right."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share, self.direct, self.distribution = share, True, True
        self.anchor = nn.Parameter(torch.zeros(()))  # a device is looked for

    def encode(self, image: Tensor) -> list[Tensor]:
        return [image[:, :1], image[:, :1]]

    def known(self, t: Tensor, features: Sequence[Tensor]) -> None:
        return None

    def forward(self, z: Tensor, t: Tensor, features: Sequence[Tensor]) -> Tensor:
        eps = torch.stack([noise(*z.shape[1:], seed=int(row[1]) % 2**31) for row in features[-1]])
        return features[0] + self.spread * self.share * self.std * eps


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
