"""Chunks of time: the convolution cache, the clip's first frame, and that chunked equals whole.

Truths checked: identity (chunked equals whole, at most 1e-5, and 1e-4 for a training clip's 49 frames), reference
(torch's conv3d), golden frame counts.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cogvideox.vae.causal_conv import WINDOW_ELEMENTS, CausalConv3d, conv3d_as_conv2d, streaming
from cogvideox.vae.shapes import split_in_time
from tests.vae.small import build, clip, pair


@pytest.mark.parametrize("frames_per_chunk", [4, 8, 12])
@pytest.mark.parametrize("frames", [5, 9, 17, 21])
def test_encoding_in_chunks_is_encoding_the_whole(frames, frames_per_chunk):
    ours, _ = pair()
    x = clip(frames)
    whole, chunked = ours.posterior(x), ours.posterior(x, frames_per_chunk=frames_per_chunk)
    assert (whole.mean - chunked.mean).abs().max() <= 1e-5
    assert (whole.logvar - chunked.logvar).abs().max() <= 1e-5


@pytest.mark.parametrize("latents_per_chunk", [1, 2, 3])
@pytest.mark.parametrize("latents", [2, 3, 4, 5])
def test_decoding_in_chunks_is_decoding_the_whole(latents, latents_per_chunk):
    ours, _ = pair()
    z = torch.randn(2, 16, latents, 4, 6, generator=torch.Generator().manual_seed(0))
    whole, chunked = ours.decode(z), ours.decode(z, latents_per_chunk=latents_per_chunk)
    assert whole.shape == (2, 3, 4 * (latents - 1) + 1, 32, 48)
    assert (whole - chunked).abs().max() <= 1e-5


@pytest.mark.parametrize("way", ["encoding", "decoding"])
def test_49_frames_in_chunks(way):
    """The sums of 49 frames round a little more: the project's limit, 1e-4."""
    ours, _ = pair()
    x = clip(49, 16, 24, batch=1)
    mean = ours.posterior(x).mean
    if way == "encoding":
        pieces = [ours.posterior(x, frames_per_chunk=n).mean for n in (4, 8, 24)]
        whole = mean
    else:
        pieces = [ours.decode(mean, latents_per_chunk=n) for n in (1, 2, 5)]
        whole = ours.decode(mean)
    assert whole.shape == ((1, 16, 13, 2, 3) if way == "encoding" else (1, 3, 49, 16, 24))
    assert max((whole - chunked).abs().max() for chunked in pieces) <= 1e-4


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (5, 2), (9, 3), (13, 4), (17, 5)])
def test_frame_counts(frames, latents):
    ours, _ = pair()
    z = ours.encode(clip(frames, 16, 16, batch=1))
    assert z.shape == (1, 16, latents, 2, 2)
    assert ours.decode(z).shape == (1, 3, frames, 16, 16)


def test_large_clips_are_cut_unasked(monkeypatch):
    ours, _ = pair()
    x = clip(17)
    seen = []
    hook = ours.encoder.conv_in.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[2]))
    monkeypatch.setattr("cogvideox.vae.autoencoder.MAX_ELEMENTS", 32 * 2 * 32 * 48 * 4)
    mean = ours.posterior(x).mean
    hook.remove()
    assert seen == [5, 4, 4, 4]
    monkeypatch.undo()
    assert (mean - ours.posterior(x).mean).abs().max() <= 1e-5


def test_chunk_statistics_need_memory_for_one_chunk_only():
    """No convolution ever sees more frames than a chunk's (the first holds one more)."""
    ours, _ = pair()
    seen = []
    hooks = [
        module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[2]))
        for module in ours.encoder.modules()
        if isinstance(module, CausalConv3d)
    ]
    ours.posterior(clip(33, 16, 16, batch=1), frames_per_chunk=4, statistics="chunk")
    for hook in hooks:
        hook.remove()
    assert max(seen) == 5


@pytest.mark.parametrize("window_elements", [1, WINDOW_ELEMENTS])
def test_convolution_is_torchs_behind_two_copies_of_the_first_frame(monkeypatch, window_elements):
    monkeypatch.setattr("cogvideox.vae.causal_conv.WINDOW_ELEMENTS", window_elements)
    torch.manual_seed(0)
    conv = CausalConv3d(3, 8, kernel_size=3)
    x = torch.randn(2, 3, 5, 6, 7)
    padded = torch.cat([x[:, :, :1], x[:, :, :1], x], dim=2)
    expected = F.conv3d(padded, conv.conv.weight, conv.conv.bias, padding=(0, 1, 1))
    assert torch.allclose(conv(x), expected, atol=1e-6)
    assert torch.allclose(conv(x[:, :, :1]), expected[:, :, :1], atol=1e-6)


def test_convolution_gradients():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 3, 4, 3, 4), torch.randn(5, 3, 3, 3, 3), torch.randn(5)
    leaves = [tensor.double().requires_grad_(True) for tensor in (x, weight, bias)]
    assert torch.autograd.gradcheck(conv3d_as_conv2d, leaves)


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1, 1], [2, 3], [4, 1]])
def test_convolution_continues_where_the_last_chunk_ended(sizes):
    torch.manual_seed(0)
    conv = CausalConv3d(3, 8, kernel_size=3)
    x = torch.randn(2, 3, 5, 6, 7)
    with streaming(conv):
        pieces = [conv(piece) for piece in x.split(sizes, dim=2)]
    assert torch.allclose(torch.cat(pieces, dim=2), conv(x), atol=1e-6)


def test_caches_are_dropped_whatever_happens():
    ours = build()
    with pytest.raises(RuntimeError, match="stop"), streaming(ours.encoder):
        ours.encoder([clip(5, 16, 16, batch=1)])
        raise RuntimeError("stop")
    assert all(module.past is None for module in ours.encoder.modules() if isinstance(module, CausalConv3d))


def test_one_clip_at_a_time():
    ours = build()
    with streaming(ours), pytest.raises(AssertionError, match="already"), streaming(ours):
        pass


@pytest.mark.parametrize(
    ("frames", "chunk", "sizes"), [(17, 8, [9, 8]), (13, 8, [13]), (21, 8, [13, 8]), (1, 4, [1]), (5, 2, [3, 2])]
)
def test_the_first_chunk_takes_what_is_left_over(frames, chunk, sizes):
    assert [piece.shape[2] for piece in split_in_time(torch.zeros(1, 1, frames, 1, 1), chunk)] == sizes
