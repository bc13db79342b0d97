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
from cogvideox.checkpoint.naming import network_names
from cogvideox.conditioning.images import coarsened, noised_images, placed_in_time, with_dropout
from cogvideox.config import instantiate, resolve_target
from cogvideox.diffusion.sampler import NoiseSource, shared_normal
from cogvideox.errors import UserError
from cogvideox.platform import autocast, current_device
from cogvideox.telemetry.phases import phases
from cogvideox.transformer.layout import pad_in_front
from cogvideox.transformer.lora import LoraLinear, is_adapter

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
        self._hold_frozen("first_stage_model", instantiate(config["first_stage_config"]))
        conditioner = instantiate(config["conditioner_config"])
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
            if name not in self._modules:
                getattr(self, name)._apply(fn)
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
        for name, parameter in self.named_parameters():
            frozen = any(prefix == "all" or name.startswith(prefix) for prefix in self.not_trainable_prefixes)
            if frozen and not is_adapter(name):
                parameter.requires_grad_(False)
        trainable = sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
        total = sum(parameter.numel() for parameter in self.parameters())
        if trainable == 0:
            raise UserError(
                f"not_trainable_prefixes {self.not_trainable_prefixes} leaves nothing to train: add a lora_config to "
                "model.network_config.params.modules, or remove the prefix (model.not_trainable_prefixes)"
            )
        logger.info("training %s of %s parameters", f"{trainable:,}", f"{total:,}")

    def load_weights(self, weights: StartingWeights, allow_missing: bool) -> None:
        """Load a checkpoint's transformer; a VAE or T5 in it is passed over.

        Names may start with `model.diffusion_model.` as in SAT's files, be the transformer's own, diffusers' or PEFT's.

        Raises:
            UserError: names or shapes that do not fit, all listed.
        """
        scaling = next((layer.scaling for layer in self.network.modules() if isinstance(layer, LoraLinear)), 1.0)
        state = network_names(weights.state_dict, scaling)
        ranks = parallel.current().model
        if ranks.size > 1 and not weights.is_shard:
            state = {name: self.network.shard(name, tensor, ranks.rank, ranks.size) for name, tensor in state.items()}
        anew = sum(map(is_adapter, self.network.load_weights(state, str(weights.source), allow_missing)))
        logger.info("loaded %s: %d weights; %d adapters start anew", weights.source, len(state), anew)

    def shared_step(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch (`mp4`, `txt`, …): mean over its samples, and the same in a dict for the log.

        Draws, in order: noise on first frames, their latents, the clips' latents, image dropout, then the loss's.
        """
        with phases("vae"):
            clips = self.get_input(batch)
            image_latents = self.encode_images(noised_images(clips[:, 0])) if self.noised_image_input else None
            latents = self.latents_of(clips)
            z = pad_in_front(latents, self.patch_t)
            batch = batch | {"padding_frames": z.shape[1] - latents.shape[1]}
            if self.lr_scale is not None:
                batch["lr_input"] = pad_in_front(self.encode_clips(coarsened(clips, self.lr_scale)), self.patch_t)
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

    def latents_of(self, given: Tensor) -> Tensor:
        """Scaled latents (B,T,C,h,w) of `get_input`'s clips, or of its latents."""
        return given * self.scale_factor if self.latent_input else self.encode_clips(given)

    def encode_clips(self, clips: Tensor) -> Tensor:
        """Clips (B,F,3,H,W) in [-1, 1] → scaled latents (B,T,C,h,w), drawn from the VAE's posterior, alike in a model
        parallel group.
        """
        z = self.encode_first_stage(rearrange(clips, "b f c h w -> b c f h w"))
        return parallel.current().model.broadcast(rearrange(z, "b c t h w -> b t c h w").contiguous())

    def encode_images(self, images: Tensor) -> Tensor:
        """Images (B,3,H,W) in [-1, 1] → latents (B,1,C,h,w) scaled by `image_scale_factor`, for `concat_images`."""
        z = self.encode_clips(images[:, None].to(self.device, self.dtype))
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
            raise UserError("the config has no model.sampler_config: samples cannot be drawn")
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
        given = self.get_input(batch)[:N]
        first = {key: value[:N] for key, value in batch.items() if isinstance(value, list | Tensor)}
        cond, uc = self.conditioner.get_unconditional_conditioning(
            first, force_uc_zero_embeddings=[embedder.input_key for embedder in self.conditioner.embedders]
        )
        z = self.latents_of(given)
        images = self.encode_images(given[:, 0]) if self.noised_image_input else None
        samples = self.sample(self._cast(cond), self._cast(uc), len(given), tuple(z.shape[1:]), image_latents=images)
        if only_log_video_latents:
            return {"latents": samples.float() / self.scale_factor}
        decoded = self.decode_clips(z)
        inputs = decoded if self.latent_input else given.float()
        return {"inputs": inputs, "reconstructions": decoded, "samples": self.decode_clips(samples)}

    def _cast(self, cond: Mapping[str, Any]) -> dict[str, Any]:
        place = self.device, self.dtype
        return {key: value.to(*place) if isinstance(value, Tensor) else value for key, value in cond.items()}

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
