"""FlowSDF's dense encoder."""

from __future__ import annotations

import torch

from models.rrdb import RRDB, RRDBEncoder
from models.unet import Sizes, Trunk
from tests.networks import shake, small_denoiser


def test_dense_encoder_gives_a_map_for_every_level() -> None:
    encoder = RRDBEncoder(3, 8, 2, Trunk(1, Sizes(8, [1, 2, 2])))
    image = torch.rand(2, 3, 18, 22)
    assert [tuple(x.shape) for x in encoder(image)] == [(2, 8, 20, 24), (2, 16, 10, 12), (2, 16, 5, 6)]
    model = small_denoiser(encoder_kind="rrdb")
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
