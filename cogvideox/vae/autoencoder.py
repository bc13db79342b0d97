"""The video autoencoder: clip [-1, 1] → posterior → latent (unscaled), and back.

# B batch, F = 4k + 1 frames, T = k + 1 latent frames, C latent channels, H W, h w = H/8, W/8
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cogvideox.checkpoint.reading import load_strictly, read_state_dict
from cogvideox.checkpoint.vae_names import is_diffusers_vae, sat_from_diffusers
from cogvideox.errors import UserError
from cogvideox.vae.causal_conv import streaming
from cogvideox.vae.decoder import ContextParallelDecoder3D
from cogvideox.vae.encoder import ContextParallelEncoder3D
from cogvideox.vae.posterior import DiagonalGaussianRegularizer, Posterior
from cogvideox.vae.shapes import check_clip, check_latent, split_in_time

# Elements of the largest activation above which a clip is cut in time unasked: cuDNN counts elements in 32 bits.
MAX_ELEMENTS = 2**30

Statistics = Literal["clip", "chunk"]


class VideoAutoencoderInferenceWrapper(nn.Module):
    """A frozen VAE: encodes clips and decodes latents, whole or in time chunks.

    Chunks are cut with `frames_per_chunk` or `latents_per_chunk`; convolutions carry their cache from one to the next.
    `statistics="clip"` (the default) makes the result that of the whole clip: the layers take all chunks in turn, and
    two activations of a level are the memory it needs. `"chunk"` normalizes each chunk by itself, as diffusers and the
    reference's sampler do, and needs memory for one chunk only; its result differs from the whole clip's.
    """

    def __init__(
        self,
        encoder_config: Mapping[str, Any] | nn.Module,
        decoder_config: Mapping[str, Any] | nn.Module,
        regularizer_config: Mapping[str, Any] | nn.Module,
        loss_config: Mapping[str, Any] | None = None,
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        cp_size: int = 1,
    ) -> None:
        """`loss_config` belongs to VAE training and builds nothing. UserError: `cp_size` above 1, or unfit weights."""
        super().__init__()
        del loss_config
        if cp_size > 1:
            raise UserError(
                f"cp_size {cp_size} (first_stage_config.params): a clip is encoded on one device; use cp_size: 1"
            )
        self.encoder: ContextParallelEncoder3D = _build(encoder_config)
        self.decoder: ContextParallelDecoder3D = _build(decoder_config)
        self.regularization: DiagonalGaussianRegularizer = _build(regularizer_config)
        self.time_factor = self.encoder.time_factor
        if self.time_factor != self.decoder.time_factor:
            raise UserError(
                f"the encoder compresses time by {self.time_factor}, the decoder by {self.decoder.time_factor}: give "
                f"encoder_config and decoder_config the same temporal_compress_times"
            )
        self.space_factor = self.encoder.space_factor
        if ckpt_path is not None:
            self.load_weights(ckpt_path, ignore_keys)
        self.requires_grad_(False).eval()

    def load_weights(self, path: str | Path, ignore_keys: Sequence[str] = ()) -> None:
        """Load a VAE file or folder with SAT's or diffusers' names; keys that start with `ignore_keys` are left out."""
        state = read_state_dict(path)
        if is_diffusers_vae(state):
            state = sat_from_diffusers(state)
        state = {name.removeprefix("first_stage_model."): tensor for name, tensor in state.items()}
        load_strictly(self, state, str(path), ignore_prefixes=("loss.", *ignore_keys))

    def train(self, mode: bool = True) -> VideoAutoencoderInferenceWrapper:
        """Stays in evaluation mode, whatever mode the model around it is in."""
        del mode
        return super().train(False)

    def encode(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        frames_per_chunk: int | None = None,
        statistics: Statistics = "clip",
    ) -> Tensor:
        """Clip (B, 3, F, H, W) in [-1, 1] → latent (B, C, T, h, w), unscaled: a sample, or the regularizer's mode."""
        return self.regularization.draw(self.posterior(x, frames_per_chunk, statistics), generator)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(T, C, h, w) of a clip's latent. UserError on sizes that do not fit."""
        clip = torch.empty(1, self.encoder.conv_in.conv.in_channels, frames, height, width, device="meta")
        check_clip(clip, clip.shape[1], self.time_factor, self.space_factor)
        channels = self.decoder.conv_in.conv.in_channels
        return (frames - 1) // self.time_factor + 1, channels, height // self.space_factor, width // self.space_factor

    def posterior(self, x: Tensor, frames_per_chunk: int | None = None, statistics: Statistics = "clip") -> Posterior:
        """Clip (B, 3, F, H, W) → posterior over the latent (B, C, T, h, w). UserError on sizes that do not fit."""
        check_clip(x, self.encoder.conv_in.conv.in_channels, self.time_factor, self.space_factor)
        if frames_per_chunk is not None and (frames_per_chunk < 1 or frames_per_chunk % self.time_factor):
            raise UserError(f"frames_per_chunk {frames_per_chunk} must be a positive multiple of {self.time_factor}")
        widest = self.encoder.conv_in.conv.out_channels * x[:, 0, 0].numel()
        automatic = max(MAX_ELEMENTS // widest // self.time_factor, 1) * self.time_factor
        with _arithmetic(x) as dtype:
            chunks = split_in_time(_prepare(x, dtype), frames_per_chunk or automatic)
            parameters = torch.cat(_run(self.encoder, chunks, statistics), dim=2)
        return self.regularization(parameters.to(x.dtype))

    def decode(self, z: Tensor, latents_per_chunk: int | None = None, statistics: Statistics = "clip") -> Tensor:
        """Latent (B, C, T, h, w), unscaled → clip (B, 3, 4(T − 1) + 1, H, W), about [-1, 1]."""
        check_latent(z, self.decoder.conv_in.conv.in_channels)
        if latents_per_chunk is not None and latents_per_chunk < 1:
            raise UserError(f"latents_per_chunk {latents_per_chunk} must be at least 1")
        widest = self.decoder.widest * self.time_factor * self.space_factor**2 * z[:, 0, 0].numel()
        with _arithmetic(z) as dtype:
            chunks = split_in_time(_prepare(z, dtype), latents_per_chunk or max(MAX_ELEMENTS // widest, 1))
            clip = torch.cat(_run(self.decoder, chunks, statistics), dim=2)
        return clip.to(z.dtype)


def _build(config: Mapping[str, Any] | nn.Module) -> Any:
    if isinstance(config, nn.Module):
        return config
    from cogvideox.config import instantiate

    return instantiate(config)


def _run(model: nn.Module, chunks: list[Tensor], statistics: Statistics) -> list[Tensor]:
    """Pass a clip's chunks through the encoder or the decoder, layer by layer ("clip") or chunk by chunk ("chunk")."""
    if len(chunks) == 1:
        return model(chunks)
    with streaming(model):
        if statistics == "clip":
            return model(chunks)
        return [model([chunk])[0] for chunk in chunks]


def _prepare(x: Tensor, dtype: torch.dtype) -> Tensor:
    """To the dtype to compute in; on a CPU to channels-last memory order, in which its convolutions are fastest."""
    x = x.to(dtype)
    return x.contiguous(memory_format=torch.channels_last_3d) if x.device.type == "cpu" else x


@contextlib.contextmanager
def _arithmetic(x: Tensor) -> Iterator[torch.dtype]:
    """The dtype to compute in: x's or autocast's, but float32 where the CPU has no instructions for it."""
    kind = x.device.type
    wanted = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    if kind != "cpu" or _cpu_convolves(wanted):
        yield x.dtype
        return
    with torch.autocast(kind, enabled=False):
        yield torch.float32


def _cpu_convolves(dtype: torch.dtype) -> bool:
    """Whether oneDNN has convolutions in `dtype` on this CPU."""
    if dtype == torch.bfloat16:
        return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if dtype == torch.float16:
        return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return True
