"""The conditional U-Net and its image encoder."""

from __future__ import annotations

import pytest
import torch

from models.denoiser import scaling
from models.layers import SelfAttention
from models.unet import ConditionalUNet, ImageEncoder, Sizes, Trunk
from sde.process import VE
from tests.networks import shake, small_denoiser


@pytest.mark.parametrize("size", [(16, 16), (13, 22), (9, 8), (32, 4)])
def test_any_input_size(size: tuple[int, int]) -> None:
    model = small_denoiser()
    shake(model)
    features = model.encode(torch.randn(2, 1, *size))
    out = model(torch.randn(2, 1, *size), torch.tensor(0.5), features)
    assert out.shape == (2, 1, *size)
    assert torch.isfinite(out).all()


def test_padding_does_not_change_sizes_that_fit() -> None:
    """A size that fits is computed as it is: cropping nothing, reading nothing from outside."""
    model = small_denoiser(sizes=Sizes(8, (1, 2)), encoder=Sizes(8, (1, 2, 2)))
    shake(model)
    image, z = torch.randn(1, 1, 12, 12), torch.randn(1, 1, 12, 12)
    direct = model.network.head(model.network.trunk(z, model.network.embedding(torch.zeros(1)), model.encode(image))[0])
    torch.testing.assert_close(model.network(z, torch.zeros(1), model.encode(image)), direct)


@torch.no_grad()
def test_blocks_of_pixels_are_channels() -> None:
    """A trunk with unshuffle: 2 is one of four channels on every other pixel, whose four maps are put back."""
    trunk = ConditionalUNet(Trunk(1, Sizes(8, [1, 2], unshuffle=2), embedding=8), 8)
    plain = ConditionalUNet(Trunk(4, Sizes(8, [1, 2]), embedding=8), 8, out_channels=4)
    shake(trunk)
    plain.load_state_dict(trunk.state_dict())
    x, t = torch.randn(1, 1, 8, 12), torch.zeros(1)
    parts = torch.cat([x[..., i::2, j::2] for i in range(2) for j in range(2)], dim=1)
    expected = plain(parts, t, [])
    found = trunk(x, t, [])
    assert found.shape == x.shape
    for k in range(4):
        torch.testing.assert_close(found[:, 0, k // 2 :: 2, k % 2 :: 2], expected[:, k])


def test_starts_as_its_skip_path() -> None:
    """Zero-initialised last convolutions: D = c_skip z before training."""
    model = small_denoiser()
    z = torch.randn(2, 1, 16, 16)
    t = torch.tensor(0.7, dtype=torch.float64)
    c = scaling("edm", VE(), t, 0.5)
    torch.testing.assert_close(model(z, t, model.encode(torch.randn(2, 1, 16, 16))), c.skip.float() * z)


def test_output_depends_on_image_noise_level_and_mask() -> None:
    model = small_denoiser()
    shake(model)
    image, z, t = torch.randn(1, 1, 16, 16), torch.randn(1, 1, 16, 16), torch.tensor(0.6)
    base = model(z, t, model.encode(image))
    assert not torch.allclose(base, model(z, t, model.encode(image.flip(-1))), atol=1e-4)
    assert not torch.allclose(base, model(z, torch.tensor(0.65), model.encode(image)), atol=1e-4)
    assert not torch.allclose(base, model(z.flip(-1), t, model.encode(image)), atol=1e-4)


def test_every_parameter_learns() -> None:
    model = small_denoiser()
    shake(model)
    model(
        torch.randn(2, 1, 16, 16), torch.tensor(0.6), model.encode(torch.randn(2, 1, 16, 16))
    ).square().mean().backward()
    # Features come out of the encoder's decoder; its deepest levels reach them through the skips.
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def test_channels_last_gives_the_same_result() -> None:
    model = small_denoiser()
    shake(model)
    image, z = torch.randn(2, 1, 16, 16), torch.randn(2, 1, 16, 16)
    expected = model(z, torch.tensor(0.4), model.encode(image))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = image.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(z, torch.tensor(0.4), model.encode(image)), expected, atol=1e-4, rtol=1e-4)


def test_smallest_and_parameter_count_by_hand() -> None:
    # entry 3x3: 1*4*9+4 = 40; two blocks: norm 8, conv 148, norm 8, conv 148, up block 8 -> 4 with a shortcut.
    trunk = Trunk(1, Sizes(4, [1]))
    down = 8 + (4 * 4 * 9 + 4) + 8 + (4 * 4 * 9 + 4)
    up = 16 + (8 * 4 * 9 + 4) + 8 + (4 * 4 * 9 + 4) + (8 * 4 + 4)
    assert sum(p.numel() for p in trunk.parameters()) == 40 + down + up
    assert (
        sum(p.numel() for p in small_denoiser(sizes=Sizes(4, (1, 2)), encoder=Sizes(4, (1, 2, 2))).parameters())
        < 60_000
    )


@pytest.mark.parametrize(("channels", "heads"), [(8, 1), (96, 1), (128, 2), (129, 1), (192, 3), (320, 5)])
def test_heads_divide_the_channels_and_have_64_of_them_at_least(channels: int, heads: int) -> None:
    assert SelfAttention(channels).heads == heads


def test_encoder_must_reach_the_networks_resolutions() -> None:
    with pytest.raises(ValueError, match="resolutions"):
        ImageEncoder(Trunk(1, Sizes(4, [1])), [4, 8])
    assert ConditionalUNet(Trunk(1, Sizes(4, [1]), embedding=8), 8).trunk.widths == [4]


@pytest.mark.parametrize(
    ("channels", "heads"), [(4, 1), (43, 1), (64, 1), (96, 1), (128, 2), (129, 1), (130, 2), (192, 3), (1021, 1)]
)
def test_attention_takes_any_number_of_channels(channels: int, heads: int) -> None:
    attention = SelfAttention(channels)
    assert attention.heads == heads  # of at least 64 channels, as many as divide them
    shake(attention)
    x = torch.randn(2, channels, 2, 3)
    out = attention(x)
    assert out.shape == x.shape
    assert not torch.equal(out, x)
