"""Monte Carlo dropout and deep ensembles."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.denoiser import Draw
from models.pooled import PooledDraws
from models.uncertainty import dropped_units
from sampling.drawer import drawer_of
from sampling.loading import load_denoiser
from sampling.segmenter import Segmenter
from tests.commands import DROPOUT, REGRESSION, RESUNET, Workspace, newest, sets, shake_checkpoint
from tests.networks import noise, shake, small_baseline
from utils.config import load_config

END = torch.tensor(1.0, dtype=torch.float64)


def test_dropout_belongs_to_the_draw_and_its_place() -> None:
    layers = nn.Sequential(nn.Dropout(0.25), nn.Dropout(0.0), nn.AvgPool2d(2), nn.Dropout(0.25)).eval()
    ones, draws = torch.ones(2, 6, 40, 40), [Draw(7, 0), Draw(8, 1)]
    with dropped_units(layers, draws, (40, 40)):
        both = layers(ones)
    with dropped_units(layers, draws[1:], (40, 40)):
        alone = layers(ones[:1])
    with dropped_units(layers, [Draw(8, 1, top=10, left=4)], (20, 24)):
        tile = layers(ones[:1, :, :20, :24])
    assert torch.equal(both[1:], alone)
    assert torch.equal(tile, alone[..., 5:15, 2:14])
    assert not torch.equal(both[:1], alone)
    assert both.mean().item() == pytest.approx(1.0, abs=0.05)
    with dropped_units(layers[:1], draws, (40, 40)):
        first = layers[:1](ones)
    torch.testing.assert_close(first.unique(), torch.tensor([0.0, 4 / 3]))
    rows = first.flatten(0, 1).flatten(1)  # of draws and channels
    assert torch.corrcoef(rows).fill_diagonal_(0).abs().max() < 0.1  # 1,600 units: a standard error of 1 / 40
    assert torch.equal(layers[:2](ones), ones)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [RESUNET, REGRESSION], ids=["resunet", "regression"])
def test_dropout_draws_differ_and_do_not_depend_on_their_batch(trained: Workspace, kind: list[str]) -> None:
    assert trained("main", *sets(kind)).code == 0
    run = trained.run_folder()
    shake_checkpoint(run)
    config = load_config("config.yaml", [*kind, *DROPOUT])
    denoiser = load_denoiser(config, run / "checkpoints" / "best.pt", torch.device("cpu"))
    images = torch.randint(0, 255, (2, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def draw(batch: int) -> Tensor:
        drawer = drawer_of(config, denoiser)
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
    summary = json.loads((newest(run) / "summary.json").read_text())
    assert (summary["sampler"], summary["draws"], summary["nfe_per_draw"]) == ("mc_dropout", 3, 1)
    assert np.load(newest(run) / "phantom_0010" / "std.npy").max() > 1e-3


def test_an_ensemble_tells_its_members_apart() -> None:
    members = [small_baseline("resunet", mask_channels=2).eval() for _ in range(3)]
    for i, member in enumerate(members):
        shake(member)
        torch.nn.init.normal_(member.encoder.get_parameter("head.2.bias"), generator=torch.Generator().manual_seed(i))
    ensemble, image = PooledDraws(members), noise(2, 1, 16, 16)
    draws = [Draw(0, number) for number in (2, 0, 1, 2)]
    own = ensemble.of_draws(ensemble.encode(image), torch.tensor([0, 0, 1, 1]), draws)
    found = ensemble.known(END, own)
    means = torch.stack([member.encode(image)[0] for member in members])  # (members, images, 2, 16, 16)
    assert means.std(dim=0).min() > 1e-4
    torch.testing.assert_close(found, torch.stack([means[2, 0], means[0, 0], means[1, 1], means[2, 1]]))


@pytest.mark.slow
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
        means.append(np.load(newest(run) / "phantom_0011" / "mmse.npy"))
    members = f"sampling.members=[{runs[1]}, {runs[2]}]"
    together = [*kind, "sampling.sampler=ensemble", members, "sampling.save_draws=true"]
    result = trained("sample", *sets(together), "--run", str(first))
    assert result.code == 0, result.err
    folder = newest(first)
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


@pytest.mark.slow
def test_draws_of_several_runs_are_taken_in_turn(trained: Workspace) -> None:
    first = trained.run_folder()
    other = first.with_name(f"{first.name}-71")
    shutil.copytree(first, other)
    shake_checkpoint(other, seed=1)
    found = []
    for run, more in ((first, []), (other, []), (first, [f"sampling.members=[{other}]"])):
        result = trained("sample", *sets(["sampling.save_draws=true", *more]), "--run", str(run))
        assert result.code == 0, result.err
        found.append(np.load(newest(run) / "phantom_0010" / "draws.npz")["sdf"])
    one, two, pooled = found
    assert np.abs(one - two).max() > 1e-3
    np.testing.assert_allclose(pooled, [one[0], two[1], one[2]], atol=1e-5)
