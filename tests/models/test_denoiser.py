from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from models.build import denoiser_of
from models.denoiser import PREDICTIONS, Denoiser, build_denoiser, scaling
from models.rrdb import RRDB, RRDBEncoder
from models.unet import ConditionalUNet, ImageEncoder, Trunk
from sde.loss import WEIGHTINGS, Weighting, denoising_loss, perturbed, sample_times
from sde.process import VE, VP, OTFlow, Process, ScheduledVP
from tests.conftest import ROOT
from utils.config import load_config

PROCESSES: list[Process] = [VE(), VP(), ScheduledVP("cosine", 0.3), OTFlow()]
each_process = pytest.mark.parametrize("process", PROCESSES, ids=["ve", "vp", "cosine", "flow"])


def small(process: Process | None = None, **changes: object) -> Denoiser:
    sizes: dict[str, object] = {
        "image_channels": 1,
        "channels": 8,
        "multipliers": (1, 2),
        "blocks": 1,
        "attention": (2,),
        "encoder_channels": 8,
        "encoder_multipliers": (1, 2, 2),
        "encoder_blocks": 1,
        "encoder_attention": (4,),
        "dropout": 0.0,
    }
    torch.manual_seed(0)
    return build_denoiser(process or VE(), "edm", **{**sizes, **changes})  # type: ignore[arg-type]


def shake(module: nn.Module) -> None:
    """Leave the zero initialisation, as training does."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


class Told(nn.Module):
    """A network that answers what it is told."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, z: Tensor, noise: Tensor, features: Sequence[Tensor]) -> Tensor:
        return self.answer


@each_process
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_network_gives_the_mask(process: Process, prediction: str) -> None:
    generator = torch.Generator().manual_seed(0)
    m = torch.randn(6, 1, 4, 4, generator=generator).clamp(-1, 1)
    eps = torch.randn(m.shape, generator=generator)
    t = torch.tensor([0.01, 0.2, 0.4, 0.6, 0.8, 0.95], dtype=torch.float64)
    alpha, sigma = (x(t).float().view(-1, 1, 1, 1) for x in (process.alpha, process.sigma))
    sigma_data = 0.6
    z = alpha * m + sigma * eps
    c = scaling("edm", process, t, sigma_data)
    step = 1e-6
    slope_alpha, slope_sigma = (
        ((x(t + step) - x(t - step)) / (2 * step)).float().view(-1, 1, 1, 1) for x in (process.alpha, process.sigma)
    )
    answers = {
        "x": m / sigma_data,
        "eps": eps,
        "v": alpha * eps - sigma * m,
        "velocity": slope_alpha * m + slope_sigma * eps,
        "both": torch.cat([m / sigma_data, eps], dim=1),
        "score": -eps,
        "score_raw": -eps / sigma,
        "edm": (m - c.skip.float().view(-1, 1, 1, 1) * z) / c.out.float().view(-1, 1, 1, 1),
    }
    model = small(process)
    model.prediction = prediction
    model.sigma_data.fill_(sigma_data)
    model.network = Told(answers[prediction])  # type: ignore[assignment]
    torch.testing.assert_close(model(z, t, []), m, atol=1e-3, rtol=0)


@each_process
def test_predictions_of_one_denoiser_agree(process: Process) -> None:
    """What each prediction says of an imperfect guess D, turned back into D, over all times."""
    generator = torch.Generator().manual_seed(0)
    count = 200
    t = torch.linspace(process.t_min, process.t_max, count, dtype=torch.float64)
    z, guess = (torch.randn(count, 1, 2, 2, generator=generator) for _ in range(2))
    alpha, sigma = (x(t).view(-1, 1, 1, 1) for x in (process.alpha, process.sigma))
    z = (z * torch.sqrt(alpha**2 + sigma**2)).float()  # as large as z_t is
    wide = z.double()
    eps = (wide - alpha * guess) / sigma
    drift = process.drift(t).view(-1, 1, 1, 1)
    growth = 0.5 * process.diffusion_squared(t).view(-1, 1, 1, 1) / sigma**2 + drift
    answers = {
        "x": guess.double() / 0.5,
        "eps": eps,
        "v": alpha * eps - sigma * guess,
        "velocity": drift * alpha * guess + growth * sigma * eps,
        "both": torch.cat([guess.double() / 0.5, eps], dim=1),
    }
    model = small(process)
    if isinstance(process, ScheduledVP):
        del answers["velocity"]  # its curves stand still at t = 0; the config refuses it
    for prediction, answer in answers.items():
        model.prediction = prediction
        model.sigma_data.fill_(0.5)
        model.network = Told(answer.float())  # type: ignore[assignment]
        error = (model(z, t, []) - guess).abs().flatten(1).amax(dim=1).double()
        # Float32 rounding of eps comes back times sigma / alpha; that of z, times 1 / alpha.
        allowed = 4e-6 * (1 + (sigma + eps.abs().amax(dim=(1, 2, 3), keepdim=True) * sigma + 1) / alpha).flatten()
        assert (error <= allowed).all(), prediction


def test_v_is_the_velocity_of_the_circular_path() -> None:
    """On alpha = cos, sigma = sin of an angle proportional to t, dz/dt is the angle's speed times v."""
    process = ScheduledVP("cosine")
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    m, eps = torch.tensor(0.7, dtype=torch.float64), torch.tensor(-1.3, dtype=torch.float64)
    velocity = process.drift(t) * process.alpha(t) * m
    velocity = (
        velocity + (0.5 * process.diffusion_squared(t) / process.sigma(t) + process.drift(t) * process.sigma(t)) * eps
    )
    v = process.alpha(t) * eps - process.sigma(t) * m
    torch.testing.assert_close(velocity, 0.5 * math.pi * v, atol=1e-6, rtol=1e-6)


def test_tanh_bounds_the_mask() -> None:
    model = small(VE(), limit=0.2)
    model.prediction = "x"
    shake(model)
    model.network = Told(torch.linspace(-50, 50, 16).view(1, 1, 4, 4))  # type: ignore[assignment]
    m = model(torch.zeros(1, 1, 4, 4), torch.tensor(0.5), [])
    assert m.min().item() == pytest.approx(-0.2)
    assert m.max().item() == pytest.approx(0.2)
    assert (m.diff() >= 0).all()


@each_process
def test_edm_scaling_gives_unit_variance_in_and_out(process: Process) -> None:
    generator = torch.Generator().manual_seed(0)
    sigma_data = 0.5
    m = sigma_data * torch.randn(50_000, generator=generator, dtype=torch.float64)
    eps = torch.randn(50_000, generator=generator, dtype=torch.float64)
    for t in torch.linspace(0.01, process.t_max, 7, dtype=torch.float64):
        alpha, sigma = process.alpha(t), process.sigma(t)
        z = alpha * m + sigma * eps
        c = scaling("edm", process, t, sigma_data)
        assert (c.inp * z).std().item() == pytest.approx(1.0, abs=0.02)
        assert ((m - c.skip * z) / c.out).std().item() == pytest.approx(1.0, abs=0.02)


def test_edm_scaling_is_karras_table_one_for_ve() -> None:
    t, data = VE().time_of_noise_ratio(torch.tensor(0.7, dtype=torch.float64)), 0.5
    c = scaling("edm", VE(), t, data)
    assert c.skip.item() == pytest.approx(data**2 / (0.7**2 + data**2))
    assert c.out.item() == pytest.approx(0.7 * data / math.sqrt(0.7**2 + data**2))
    assert c.inp.item() == pytest.approx(1 / math.sqrt(0.7**2 + data**2))
    assert c.noise.item() == pytest.approx(math.log(0.7) / 4)


def test_unknown_names_are_refused() -> None:
    one = torch.ones(1)
    with pytest.raises(ValueError, match="one of edm, x"):
        scaling("epsilon", VE(), one, 1.0)
    with pytest.raises(ValueError, match="one of score"):
        Weighting("snr")(VE(), one, 1.0)


@each_process
def test_score_weighting_is_equation_four(process: Process) -> None:
    """sigma^2 |s - grad log p_0t|^2, computed from scores."""
    generator = torch.Generator().manual_seed(0)
    m, eps, guess = (torch.randn(5, 1, 3, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    t = torch.linspace(0.05, 0.95, 5, dtype=torch.float64)
    alpha, sigma = process.alpha(t).view(-1, 1, 1, 1), process.sigma(t).view(-1, 1, 1, 1)
    z = alpha * m + sigma * eps
    score, true_score = (alpha * guess - z) / sigma**2, -eps / sigma
    expected = (sigma**2 * (score - true_score) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(denoising_loss(guess, process, m, t, Weighting("score"), 0.5), expected)


@each_process
def test_edm_weighting_starts_at_one_for_every_time(process: Process) -> None:
    generator = torch.Generator().manual_seed(0)
    model = small(process)
    model.sigma_data.fill_(0.4)
    m = 0.4 * torch.randn(64, 1, 16, 16, generator=generator)
    eps = torch.randn(m.shape, generator=generator)
    features = model.encode(torch.zeros(64, 1, 16, 16))
    t = torch.linspace(0.02, process.t_max, 64, dtype=torch.float64)
    denoised = model(perturbed(process, m, t, eps), t, features)
    losses = denoising_loss(denoised, process, m, t, Weighting("edm"), 0.4)
    torch.testing.assert_close(losses, torch.ones(64), atol=0.35, rtol=0)
    assert losses.mean().item() == pytest.approx(1.0, abs=0.05)


def test_snr_plus_one_on_x_is_the_v_loss() -> None:
    process, generator = ScheduledVP("cosine"), torch.Generator().manual_seed(0)
    m, eps, guess = (torch.randn(9, 1, 3, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    t = torch.linspace(0.02, 0.98, 9, dtype=torch.float64)
    alpha, sigma = process.alpha(t).view(-1, 1, 1, 1), process.sigma(t).view(-1, 1, 1, 1)
    z = alpha * m + sigma * eps
    v, guessed = alpha * eps - sigma * m, alpha * (z - alpha * guess) / sigma - sigma * guess
    expected = (v - guessed).square().flatten(1).mean(1)
    found = denoising_loss(guess, process, m, t, Weighting("snr_plus_one"), 0.5)
    torch.testing.assert_close(found, expected)


def test_velocity_weighting_is_the_flow_matching_loss() -> None:
    process, generator = OTFlow(), torch.Generator().manual_seed(0)
    m, eps, guess = (torch.randn(9, 1, 3, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    t = torch.linspace(0.02, 0.98, 9, dtype=torch.float64)
    alpha, sigma = process.alpha(t).view(-1, 1, 1, 1), process.sigma(t).view(-1, 1, 1, 1)
    z = alpha * m + sigma * eps
    velocity, guessed = (1 - 1e-3) * eps - m, (1 - 1e-3) * (z - alpha * guess) / sigma - guess
    expected = (velocity - guessed).square().flatten(1).mean(1)
    found = denoising_loss(guess, process, m, t, Weighting("velocity"), 0.5)
    torch.testing.assert_close(found, expected)


def test_weightings_by_hand() -> None:
    """SNR 4 for VE with sigma = 1/2."""
    process = VE()
    t = process.time_of_noise_ratio(torch.tensor([0.5, 2.0], dtype=torch.float64))
    expected: dict[str, list[float]] = {
        "score": [4, 0.25], "uniform": [16, 16], "edm": [20, 16.25], "snr_plus_one": [5, 1.25], "max_snr_one": [4, 1],
        "min_snr": [4, 0.25], "sigmoid": [1 / (1 + math.exp(4) / 4), 1 / (1 + math.exp(4) * 4)],
        "velocity": [math.log(5000) ** 2] * 2,
    }  # fmt: skip
    assert set(expected) == set(WEIGHTINGS)
    for name, values in expected.items():
        assert Weighting(name)(process, t, 0.25).tolist() == pytest.approx(values)
        slope = 2 * math.log(5000)  # -d log-SNR / dt of VE
        assert Weighting(name, per_logsnr=True)(process, t, 0.25).tolist() == pytest.approx([v * slope for v in values])
    assert Weighting("min_snr")(process, torch.zeros(1, dtype=torch.float64), 1.0).item() == 5


@each_process
def test_weights_per_log_snr_do_not_depend_on_the_schedule(process: Process) -> None:
    """The integral over t of w(t) (-d log-SNR / dt) is that of w over log-SNR."""
    t = process.time_of_noise_ratio(torch.exp(-0.5 * torch.linspace(8, -3, 4001, dtype=torch.float64)))
    low, high = process.logsnr(t[-1]).item(), process.logsnr(t[0]).item()
    w = Weighting("sigmoid", shift=2.0, per_logsnr=True)(process, t, 1.0)
    expected = math.log1p(math.exp(high - 2)) - math.log1p(math.exp(low - 2))
    assert torch.trapezoid(w, t).item() == pytest.approx(expected, rel=2e-3)


def test_times_are_stratified_uniform_and_at_the_prior() -> None:
    generator = torch.Generator().manual_seed(0)
    t = sample_times(100, VP(), generator)
    assert t.min() >= VP().t_min
    scaled = (t - VP().t_min) / (1 - VP().t_min)
    assert sorted((scaled * 100).long().tolist()) == list(range(100))
    assert not torch.equal(t, t.sort().values)
    shares = [(sample_times(6, VE(), generator, 0.25) == 1.0).double().mean().item() for _ in range(400)]
    assert sum(shares) / 400 == pytest.approx(0.25, abs=0.02)
    pairs = (sample_times(8, VE(), generator, 0.5) == 1.0).view(4, 2).sum(dim=1)
    assert pairs.tolist() == [1, 1, 1, 1]  # of two noises of an image one
    assert (sample_times(5, VE(), generator, 1.0) == 1.0).all()


@pytest.mark.parametrize("size", [(16, 16), (13, 22), (9, 8), (32, 4)])
def test_any_input_size(size: tuple[int, int]) -> None:
    model = small()
    shake(model)
    features = model.encode(torch.randn(2, 1, *size))
    out = model(torch.randn(2, 1, *size), torch.tensor(0.5), features)
    assert out.shape == (2, 1, *size)
    assert torch.isfinite(out).all()


def test_padding_does_not_change_sizes_that_fit() -> None:
    """A size that fits is computed as it is: cropping nothing, reading nothing from outside."""
    model = small(attention=(), encoder_attention=())
    shake(model)
    image, z = torch.randn(1, 1, 12, 12), torch.randn(1, 1, 12, 12)
    direct = model.network.head(model.network.trunk(z, model.network.embedding(torch.zeros(1)), model.encode(image))[0])
    torch.testing.assert_close(model.network(z, torch.zeros(1), model.encode(image)), direct)


def test_starts_as_its_skip_path() -> None:
    """Zero-initialised last convolutions: D = c_skip z before training."""
    model = small()
    z = torch.randn(2, 1, 16, 16)
    t = torch.tensor(0.7, dtype=torch.float64)
    c = scaling("edm", VE(), t, 0.5)
    torch.testing.assert_close(model(z, t, model.encode(torch.randn(2, 1, 16, 16))), c.skip.float() * z)


def test_output_depends_on_image_noise_level_and_mask() -> None:
    model = small()
    shake(model)
    image, z, t = torch.randn(1, 1, 16, 16), torch.randn(1, 1, 16, 16), torch.tensor(0.6)
    base = model(z, t, model.encode(image))
    assert not torch.allclose(base, model(z, t, model.encode(image.flip(-1))), atol=1e-4)
    assert not torch.allclose(base, model(z, torch.tensor(0.65), model.encode(image)), atol=1e-4)
    assert not torch.allclose(base, model(z.flip(-1), t, model.encode(image)), atol=1e-4)


def test_every_parameter_learns() -> None:
    model = small()
    shake(model)
    model(
        torch.randn(2, 1, 16, 16), torch.tensor(0.6), model.encode(torch.randn(2, 1, 16, 16))
    ).square().mean().backward()
    # Features come out of the encoder's decoder; its deepest levels reach them through the skips.
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def test_channels_last_gives_the_same_result() -> None:
    model = small()
    shake(model)
    image, z = torch.randn(2, 1, 16, 16), torch.randn(2, 1, 16, 16)
    expected = model(z, torch.tensor(0.4), model.encode(image))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = image.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(z, torch.tensor(0.4), model.encode(image)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "low", "high"), [("quickstart", 0.5e6, 1.5e6), ("glas_small", 1e6, 3e6), ("glas", 55e6, 70e6)]
)
def test_sizes_by_config(config: str, low: float, high: float) -> None:
    with torch.device("meta"):
        model = denoiser_of(load_config(ROOT / "cfg" / f"{config}.yaml"))
    assert low < sum(p.numel() for p in model.parameters()) < high


def test_smallest_and_parameter_count_by_hand() -> None:
    # entry 3x3: 1*4*9+4 = 40; two blocks: norm 8, conv 148, norm 8, conv 148, up block 8 -> 4 with a shortcut.
    trunk = Trunk(1, 4, [1], 1)
    down = 8 + (4 * 4 * 9 + 4) + 8 + (4 * 4 * 9 + 4)
    up = 16 + (8 * 4 * 9 + 4) + 8 + (4 * 4 * 9 + 4) + (8 * 4 + 4)
    assert sum(p.numel() for p in trunk.parameters()) == 40 + down + up
    assert sum(p.numel() for p in small(channels=4, encoder_channels=4).parameters()) < 60_000


def test_encoder_must_reach_the_networks_resolutions() -> None:
    with pytest.raises(ValueError, match="resolutions"):
        ImageEncoder(Trunk(1, 4, [1], 1), [4, 8])
    with pytest.raises(ValueError, match="attention heads"):
        Trunk(1, 129, [1], 1, attention=[1])
    assert ConditionalUNet(Trunk(1, 4, [1], 1, embedding=8), 8).trunk.widths == [4]


def test_dense_encoder_gives_a_map_for_every_level() -> None:
    encoder = RRDBEncoder(3, 8, 2, [8, 16, 16])
    image = torch.rand(2, 3, 18, 22)
    assert [tuple(x.shape) for x in encoder(image)] == [(2, 8, 20, 24), (2, 16, 10, 12), (2, 16, 5, 6)]
    model = small(encoder_kind="rrdb", encoder_multipliers=())
    shake(model)
    z = torch.randn(2, 1, 18, 22)
    one, two = (
        model(z, torch.tensor(0.5), model.encode(x)) for x in (torch.zeros(2, 1, 18, 22), torch.rand(2, 1, 18, 22))
    )
    assert one.shape == z.shape
    assert (one - two).abs().max() > 1e-3


def test_dense_block_grows_as_published() -> None:
    """Five convolutions of 8 + 4 i to 4 channels, the last to 8."""
    count = sum(p.numel() for p in RRDB(8, 4).parameters())
    assert count == 3 * (sum(9 * (8 + 4 * i) * 4 + 4 for i in range(4)) + 9 * 24 * 8 + 8)
