"""The engine: clip → latent → loss, and noise → latent → clip. The only place where the middle rooms meet.

States of the data: clip (B,F,3,H,W) in [-1, 1] → latent (B,T,16,h,w), scaled by `scale_factor` here and nowhere else →
v prediction of the same shape → one loss a sample.

# B batch, F frames, T latent frames, C channels, H W pixels, h w latent size, N text tokens, D width
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from cogvideox import parallel
from cogvideox.checkpoint.loading import StartingWeights
from cogvideox.conditioning.conditioner import without_encoders
from cogvideox.conditioning.images import coarsened, noised_images, placed_in_time, with_dropout
from cogvideox.config import instantiate, resolve_target
from cogvideox.diffusion.sampler import NoiseSource, shared_normal
from cogvideox.errors import UserError
from cogvideox.platform import autocast, current_device
from cogvideox.telemetry.phases import phases
from cogvideox.transformer.layout import pad_in_front
from cogvideox.transformer.lora import is_adapter
from cogvideox.transformer.weights import freeze, load_starting_weights

logger = logging.getLogger(__name__)

DTYPE_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
NETWORK_WRAPPER = "cogvideox.transformer.wrapper.NetworkWrapper"


class SATVideoDiffusionEngine(nn.Module):
    """Everything that `training_main` trains and samples from, built from `args.model_config`.

    The VAE and a text encoder that does not train are held outside the module tree: DeepSpeed does not partition them
    and checkpoints do not hold them, but casts and moves reach them.
    """

    def __init__(self, args: argparse.Namespace, params_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        config: Mapping[str, Any] = args.model_config
        is_cached = bool(getattr(args, "cache", None))  # both encoders have done their work (latent_cache.py)
        self.dtype = params_dtype
        self.input_key: str = config.get("input_key", "mp4")
        self.latent_input: bool = config.get("latent_input", False)
        self.scale_factor: float = config.get("scale_factor", 1.0)
        self.lr_scale: float | None = config.get("lr_scale")
        self.noised_image_input: bool = config.get("noised_image_input", False)
        self.noised_image_all_concat: bool = config.get("noised_image_all_concat", False)
        self.noised_image_dropout: float = config.get("noised_image_dropout", 0.0)
        image_scale = config.get("image_scale_factor")
        self.image_scale_factor: float = self.scale_factor if image_scale is None else image_scale
        if self.latent_input and (self.noised_image_input or self.lr_scale is not None):
            raise UserError("model.latent_input: noised_image_input and lr_scale need pixels: turn one off")
        self.not_trainable_prefixes = list(config.get("not_trainable_prefixes", ["first_stage_model", "conditioner"]))
        self.samples_at_a_time: int | None = config.get("en_and_decode_n_samples_a_time")
        self.first_stage_autocast = not config.get("disable_first_stage_autocast", False)

        network = instantiate(config["network_config"], dtype=DTYPE_NAMES[params_dtype])
        wrapper = resolve_target(config.get("network_wrapper") or NETWORK_WRAPPER)
        self.model = wrapper(network, compile_model=config.get("compile_model", False), dtype=params_dtype)
        self.denoiser = instantiate(config["denoiser_config"])
        self.loss_fn = instantiate(config["loss_fn_config"])
        self.sampler = instantiate(config["sampler_config"]) if config.get("sampler_config") else None
        self.first_stage_model: Any
        self.conditioner: Any
        first_stage = config["first_stage_config"]
        self.regularization: Any = instantiate(first_stage["params"]["regularizer_config"]) if is_cached else None
        if not is_cached or (args.do_valid and args.eval_interval or args.do_test) and not args.only_log_video_latents:
            self._hold_frozen("first_stage_model", instantiate(first_stage))
        conditioner = instantiate((without_encoders if is_cached else dict)(config["conditioner_config"]))
        if any(embedder.is_trainable for embedder in conditioner.embedders):
            self.conditioner = conditioner
        else:
            self._hold_frozen("conditioner", conditioner)
        self.text_tokens = self.video_tokens = 0  # of one sample in the latest batch

    def _hold_frozen(self, name: str, module: nn.Module) -> None:
        object.__setattr__(self, name, module.eval().requires_grad_(False))

    @property
    def device(self) -> torch.device:
        """Where the engine computes."""
        return current_device()

    @property
    def trains_adapters_only(self) -> bool:
        """Whether all that trains is LoRA matrices."""
        names = [name for name, parameter in self.named_parameters() if parameter.requires_grad]
        return bool(names) and all(is_adapter(name) for name in names)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SATVideoDiffusionEngine:
        """Casts and moves reach the modules held outside the tree too."""
        for name in ("first_stage_model", "conditioner"):
            if name not in self._modules and (held := getattr(self, name, None)) is not None:
                held._apply(fn)
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> SATVideoDiffusionEngine:
        """Caption dropout happens in training only; the frozen networks inside stay in evaluation mode."""
        self.conditioner.train(mode)
        return super().train(mode)

    def disable_untrainable_params(self) -> None:
        """Freeze what `not_trainable_prefixes` names ("all": everything but LoRA matrices); SAT calls this.

        Raises:
            UserError: nothing is left to train.
        """
        freeze(self, self.not_trainable_prefixes)

    def load_weights(self, weights: StartingWeights, allow_missing: bool) -> None:
        """Load a checkpoint's transformer, as `load_starting_weights`."""
        load_starting_weights(self.network, weights, allow_missing)

    def shared_step(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch (`mp4`, `txt`, …): mean over its samples, and the same in a dict for the log.

        Draws, in order: noise on first frames, their latents, the clips' latents, image dropout, then the loss's.
        """
        with phases("vae"):
            image_latents = self.image_latents_of(batch, noised=True) if self.noised_image_input else None
            latents = self.latents_of(batch)
            z = pad_in_front(latents, self.patch_t)
            batch = batch | {"padding_frames": z.shape[1] - latents.shape[1]}
            if self.lr_scale is not None:
                coarse = coarsened(self.get_input(batch), self.lr_scale)
                batch["lr_input"] = pad_in_front(self.encode_clips(coarse), self.patch_t)
            if image_latents is not None:
                rate = self.noised_image_dropout if self.training else 0.0
                shown = parallel.current().model.broadcast(with_dropout(image_latents, rate))
                batch["concat_images"] = placed_in_time(shown, z.shape[1], self.noised_image_all_concat)
        return self(z, batch)

    def forward(self, z: Tensor, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of scaled latents `z` (B,T,C,h,w)."""
        with phases("text_encoder"):
            cond = self._cast(self.conditioner(batch))
        self._count_tokens(z, cond)
        with phases("forward"):
            loss = self.loss_fn(self.model, self.denoiser, lambda _: cond, z, batch).mean()
        return loss, {"loss": loss}

    def get_input(self, batch: Mapping[str, Any]) -> Tensor:
        """The clips of the batch, (B,F,3,H,W), or its latents, in the engine's dtype and place."""
        return batch[self.input_key].to(self.device, self.dtype)

    def latents_of(self, batch: Mapping[str, Any]) -> Tensor:
        """Scaled latents (B,T,C,h,w) of a batch's clips, of its cached `moments`, or of its latents."""
        if "moments" in batch:
            return self.draw_latents(batch["moments"])
        given = self.get_input(batch)
        return given * self.scale_factor if self.latent_input else self.encode_clips(given)

    def image_latents_of(self, batch: Mapping[str, Any], noised: bool) -> Tensor:
        """Latents (B,1,C,h,w) of the clips' first frames, with noise on them or without."""
        if "moments" in batch:
            return self._as_images(self.draw_latents(batch["image_moments" if noised else "first_frame_moments"]))
        images = self.get_input(batch)[:, 0]
        return self.encode_images(noised_images(images) if noised else images)

    @torch.no_grad()
    def draw_latents(self, moments: Tensor) -> Tensor:
        """Means and log variances (B,2C,T,h,w) of posteriors → scaled latents (B,T,C,h,w), drawn as `encode_clips`."""
        with autocast(self.dtype if self.first_stage_autocast else None):
            parts = [self.regularization(part) for part in self._in_parts(moments.to(self.device))]
            z = torch.cat([self.regularization.draw(part) for part in parts])
        z = rearrange((z * self.scale_factor).to(self.dtype), "b c t h w -> b t c h w")
        return parallel.current().model.broadcast(z.contiguous())

    def encode_clips(self, clips: Tensor) -> Tensor:
        """Clips (B,F,3,H,W) in [-1, 1] → scaled latents (B,T,C,h,w), drawn from the VAE's posterior, alike in a model
        parallel group.
        """
        z = self.encode_first_stage(rearrange(clips, "b f c h w -> b c f h w"))
        return parallel.current().model.broadcast(rearrange(z, "b c t h w -> b t c h w").contiguous())

    def encode_images(self, images: Tensor) -> Tensor:
        """Images (B,3,H,W) in [-1, 1] → latents (B,1,C,h,w) scaled by `image_scale_factor`, for `concat_images`."""
        return self._as_images(self.encode_clips(images[:, None].to(self.device, self.dtype)))

    def _as_images(self, z: Tensor) -> Tensor:
        return z if self.image_scale_factor == self.scale_factor else z * (self.image_scale_factor / self.scale_factor)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(T,C,h,w) of the latent of a clip; UserError where the VAE or the positions do not take it."""
        shape = self.first_stage_model.latent_shape(frames, height, width)
        self.network.check_positions((shape[0] + -shape[0] % self.patch_t, *shape[1:]))
        return shape

    def decode_clips(self, z: Tensor, latents_per_chunk: int | None = None) -> Tensor:
        """Scaled latents (B,T,C,h,w) → clips (B,F,3,H,W), float32, about [-1, 1]."""
        x = self.decode_first_stage(rearrange(z, "b t c h w -> b c t h w"), latents_per_chunk)
        return rearrange(x, "b c f h w -> b f c h w").float()

    @torch.no_grad()
    def encode_first_stage(self, x: Tensor, batch: Mapping[str, Any] | None = None) -> Tensor:  # noqa: ARG002
        """(B,3,F,H,W) → scaled latents (B,C,T,h,w) in the engine's dtype; the arguments are the reference's."""
        with autocast(self.dtype if self.first_stage_autocast else None):
            z = torch.cat([self.first_stage_model.encode(part) for part in self._in_parts(x)])
        return (z * self.scale_factor).to(self.dtype)

    @torch.no_grad()
    def decode_first_stage(self, z: Tensor, latents_per_chunk: int | None = None) -> Tensor:
        """Scaled latents (B,C,T,h,w) → (B,3,F,H,W)."""
        latents = z.to(self.dtype) / self.scale_factor
        with autocast(self.dtype if self.first_stage_autocast else None):
            chunk = {} if latents_per_chunk is None else {"latents_per_chunk": latents_per_chunk}
            return torch.cat([self.first_stage_model.decode(part, **chunk) for part in self._in_parts(latents)])

    @torch.no_grad()
    def sample(
        self,
        cond: dict[str, Tensor],
        uc: dict[str, Tensor] | None = None,
        batch_size: int = 16,
        shape: tuple[int, ...] | None = None,
        prefix: Tensor | None = None,
        concat_images: Tensor | None = None,
        noise: Tensor | None = None,
        image_latents: Tensor | None = None,
        generator: torch.Generator | None = None,
        draw_noise: NoiseSource | None = None,
        **sampler_inputs: Any,
    ) -> Tensor:
        """Scaled latents (`batch_size`, *`shape`) in the engine's dtype; `shape` is (T,C,h,w).

        `noise` (B,T′,C,h,w) is what to start from, else it is drawn; T′ is T rounded up to the temporal patch, and the
        frames in front that this adds are dropped at the end. `prefix` (B,P,C,h,w) replaces its first frames. An image
        is given as `image_latents` (B,1,C,h,w), `encode_images`', or whole as `concat_images` or `concat` of `cond`.
        """
        if self.sampler is None:
            raise UserError("the config has no model.sampler_config to draw with: add one, as in configs/sft.yaml")
        assert shape is not None
        extra = -shape[0] % self.patch_t
        draw, start = draw_noise or shared_normal(generator), (batch_size, shape[0] + extra, *shape[1:])
        noise = draw(torch.empty(start, device=self.device)) if noise is None else noise.to(self.device)
        if prefix is not None:
            prefix = torch.cat([prefix[:, :1].expand(-1, extra, -1, -1, -1), prefix], dim=1).to(noise)
            noise = torch.cat([prefix, noise[:, prefix.shape[1] :]], dim=1)
            sampler_inputs |= {"padding_frames": extra}
        if image_latents is not None:
            images = image_latents.to(self.device, self.dtype)
            concat_images = placed_in_time(images, noise.shape[1], self.noised_image_all_concat)
        if concat_images is not None:
            cond, uc = {**cond, "concat": concat_images}, None if uc is None else {**uc, "concat": concat_images}
        if ("concat" in cond) != self.noised_image_input:
            raise UserError("model.noised_image_input decides whether samples start from an image: give one, or none")
        denoise = partial(self.denoiser, self.model)
        samples = self.sampler(denoise, noise, cond, uc=uc, draw_noise=draw, **sampler_inputs)
        return samples[:, extra:].to(self.dtype)

    @torch.no_grad()
    def log_video(self, batch: dict[str, Any], N: int = 8, only_log_video_latents: bool = False) -> dict[str, Tensor]:
        """What an evaluation shows of the first `N` clips: `inputs`, `reconstructions` (through the VAE and back) and
        `samples` (from their captions), each (B,F,3,H,W) float32, or `latents` (B,T,C,h,w), unscaled, alone.
        """
        first = {key: value[:N] for key, value in batch.items() if isinstance(value, list | Tensor)}
        cond, uc = self.conditioner.get_unconditional_conditioning(
            first, force_uc_zero_embeddings=[embedder.input_key for embedder in self.conditioner.embedders]
        )
        z = self.latents_of(first)
        images = self.image_latents_of(first, noised=False) if self.noised_image_input else None
        samples = self.sample(self._cast(cond), self._cast(uc), len(z), tuple(z.shape[1:]), image_latents=images)
        if only_log_video_latents:
            return {"latents": samples.float() / self.scale_factor}
        decoded = self.decode_clips(z)
        inputs = decoded if self.latent_input or "moments" in batch else self.get_input(first).float()
        return {"inputs": inputs, "reconstructions": decoded, "samples": self.decode_clips(samples)}

    def _cast(self, cond: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v.to(self.device, self.dtype) if isinstance(v, Tensor) else v for k, v in cond.items()}

    def _in_parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(self.samples_at_a_time or len(x))

    def _count_tokens(self, z: Tensor, cond: Mapping[str, Tensor]) -> None:
        _, frames, _, height, width = z.shape
        self.text_tokens = cond["crossattn"].shape[1]
        self.video_tokens = frames * height * width // math.prod(self.network.patch)

    @property
    def network(self) -> Any:
        """The transformer inside its wrapper."""
        return self.model.diffusion_model

    @property
    def patch_t(self) -> int:
        """Latent frames in a token: 1, or 2 in the 1.5 models."""
        return self.network.patch[0]
