"""The CogVideoX transformer: text and noised latent in, v-prediction out.

Shapes: B batch, T latent frames, C channels, H W latent rows and columns, N text tokens, D width.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from sat.model.base_model import BaseModel

from cogvideox.config import instantiate
from cogvideox.config.binding import signature_of
from cogvideox.config.targets import resolve_target
from cogvideox.errors import UserError
from cogvideox.transformer.adaln import HeadNorm
from cogvideox.transformer.backbone import TransformerArgs, VideoTransformer
from cogvideox.transformer.layout import TokenLayout, as_patch
from cogvideox.transformer.lora import is_adapter
from cogvideox.transformer.scalars import scalar_embedding, sinusoid
from cogvideox.transformer.tensor_parallel import model_parallel_groups, shard

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class DiffusionTransformer(BaseModel):
    """All CogVideoX models: which one is a matter of the config.

    `modules` holds the nodes `pos_embed_config`, `patch_embed_config`, `adaln_layer_config`, `final_layer_config` and,
    for LoRA, `lora_config`. `dtype` ("fp32", "fp16" or "bf16") is the weights' and the computation's. `ofs` is what a
    model with `ofs_embed_dim` (1.5 I2V) is told where its caller says nothing: the published one knows 2.0 only.
    Raises UserError for options that are not supported and sizes that do not divide.
    """

    SUPPLIED_BY_PARENT: ClassVar[tuple[str, ...]] = ("dtype",)

    def __init__(  # long for its signature alone: one argument for each key of the config
        self,
        transformer_args: Mapping[str, Any],
        num_frames: int,
        time_compressed_rate: int,
        latent_width: int,
        latent_height: int,
        patch_size: int | Sequence[int],
        in_channels: int,
        out_channels: int,
        hidden_size: int,
        num_layers: int,
        num_attention_heads: int,
        modules: Mapping[str, Any],
        elementwise_affine: bool = True,
        time_embed_dim: int | None = None,
        num_classes: int | None = None,
        input_time: str = "adaln",
        height_interpolation: float = 1.0,
        width_interpolation: float = 1.0,
        time_interpolation: float = 1.0,
        use_SwiGLU: bool = False,
        use_RMSNorm: bool = False,
        ofs_embed_dim: int | None = None,
        ofs: float = 2.0,
        dtype: str = "fp32",
    ) -> None:
        _only("num_classes", num_classes, None)
        _only("input_time", input_time, "adaln")
        _only("use_SwiGLU", use_SwiGLU, False)
        _only("use_RMSNorm", use_RMSNorm, False)
        args = TransformerArgs.of(transformer_args)
        patch = as_patch(patch_size)
        available = {  # what the modules' constructors may ask for
            "height": latent_height // patch[1],
            "width": latent_width // patch[2],
            "compressed_num_frames": math.ceil(((num_frames - 1) // time_compressed_rate + 1) / patch[0]),
            "height_interpolation": height_interpolation,
            "width_interpolation": width_interpolation,
            "time_interpolation": time_interpolation,
            "hidden_size": hidden_size,
            "hidden_size_head": hidden_size // num_attention_heads,
            "num_layers": num_layers,
            "layer_num": num_layers,
            "time_embed_dim": time_embed_dim or hidden_size,
            "elementwise_affine": elementwise_affine,
            "patch_size": patch,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "latent_width": latent_width,
            "latent_height": latent_height,
        }
        stack = build_stack(args, num_layers, hidden_size, num_attention_heads, elementwise_affine, dtype)
        super().__init__(args=None, transformer=stack)
        self.patch, self.in_channels, self.hidden_size = patch, in_channels, hidden_size
        self.num_attention_heads = num_attention_heads
        self.ofs_embed_dim, self.ofs = ofs_embed_dim, ofs
        self._said: set[str] = set()
        self._build(modules, available, skip_init=args.skip_init)
        self.to(DTYPES[dtype])

    def _build(self, modules: Mapping[str, Any], available: Mapping[str, Any], skip_init: bool) -> None:
        time_width = available["time_embed_dim"]
        self.time_embed = scalar_embedding(self.hidden_size, time_width)
        if self.ofs_embed_dim is not None:
            if self.ofs_embed_dim != time_width:
                raise UserError(
                    f"ofs_embed_dim {self.ofs_embed_dim} must equal time_embed_dim {time_width}: they add up"
                )
            self.ofs_embed = scalar_embedding(self.ofs_embed_dim, self.ofs_embed_dim)
        for name in ("pos_embed", "patch_embed", "adaln_layer", "final_layer"):
            self.add_mixin(name, _instantiate(modules, f"{name}_config", available), reinit=not skip_init)
        if "lora_config" in modules:
            self.add_mixin("lora", _instantiate(modules, "lora_config", available), reinit=True)
        for norm in self.modules():
            if isinstance(norm, HeadNorm):
                norm.ranks = self.transformer.ranks

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are in, and what is computed in."""
        weight = self.time_embed[0].weight
        assert isinstance(weight, torch.Tensor)
        return weight.dtype

    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor | None = None,
        context: torch.Tensor | None = None,
        y: torch.Tensor | None = None,
        concat_images: torch.Tensor | None = None,
        ofs: torch.Tensor | None = None,
        **kw: Any,
    ) -> torch.Tensor:
        """v-prediction for a noised latent.

        x (B, T, C, H, W), timesteps (B,), context (B, N, text width), concat_images (B or B/2, T, C', H, W) joined on
        channels, ofs (B,) or (1,) -> (B, T, C_out, H, W). Other keywords are for networks that read them (`lr_input`):
        this one says once that it does not. Raises UserError on shapes that do not fit.
        """
        self._say_unread(kw)
        assert timesteps is not None and context is not None and y is None
        x, context = self._join_images(x.to(self.dtype), concat_images), context.to(self.dtype)
        self._check_context(x, context)
        layout = TokenLayout.of(x.shape, context.shape[1], self.patch)
        return super().forward(
            latent=x,
            context=context,
            time_features=self._time_features(timesteps, ofs),
            rotary=self.mixins["pos_embed"].rotary(layout, x.device),
            layout=layout,
        )

    def _time_features(self, timesteps: torch.Tensor, ofs: torch.Tensor | None) -> torch.Tensor:
        """SiLU of the time embedding (plus that of `ofs`), which every modulation starts from. (B, time_embed_dim)"""
        embedding = self.time_embed(sinusoid(timesteps, self.hidden_size).to(self.dtype))
        if self.ofs_embed_dim is None:
            self._say_unread({} if ofs is None else {"ofs": ofs})  # the reference's scripts give it to any I2V model
            return F.silu(embedding)
        told = timesteps.new_full((1,), self.ofs, dtype=torch.float32) if ofs is None else ofs
        return F.silu(embedding + self.ofs_embed(sinusoid(told, self.ofs_embed_dim).to(self.dtype)))

    def _say_unread(self, keywords: Mapping[str, Any]) -> None:
        for name in keywords.keys() - self._said:
            self._said.add(name)
            logger.warning("the transformer does not read `%s`", name)

    def _join_images(self, x: torch.Tensor, images: torch.Tensor | None) -> torch.Tensor:
        """Guidance doubles the batch of x, not that of the images."""
        if images is not None:
            if images.shape[0] != x.shape[0]:
                images = images.repeat(2, 1, 1, 1, 1)
            x = torch.cat([x, images.to(x.dtype)], dim=2)
        if x.ndim != 5 or x.shape[2] != self.in_channels:
            raise UserError(
                f"latent of shape {tuple(x.shape)}: expected (B, T, C, H, W) with C = {self.in_channels}, "
                f"network_config.params.in_channels{'' if images is None else ' (the image latents are included)'}"
            )
        return x

    def _check_context(self, x: torch.Tensor, context: torch.Tensor) -> None:
        wanted = self.mixins["patch_embed"].text_hidden_size
        if context.ndim != 3 or context.shape[0] != x.shape[0] or context.shape[2] != wanted:
            raise UserError(
                f"text states of shape {tuple(context.shape)}: expected ({x.shape[0]}, tokens, {wanted}); "
                f"text_hidden_size of patch_embed_config must be the text encoder's width"
            )

    def load_weights(
        self, state_dict: Mapping[str, torch.Tensor], where: str = "the weights", allow_missing: bool = False
    ) -> list[str]:
        """Load strictly, save that adapters and tables of positions may be missing; gives what starts anew.

        `where` names the source in errors; `allow_missing` tolerates any missing name.
        Raises UserError naming what is missing, unknown or of another shape.
        """
        try:
            result = self.load_state_dict(state_dict, strict=False)
        except RuntimeError as error:
            reshaped = [line.strip() for line in str(error).splitlines()[1:]]
            raise UserError(
                f"{where} does not fit the transformer of the config: {len(reshaped)} parameters of another shape"
                f"{_some(reshaped)}; give network_config the sizes that they were trained with"
            ) from error
        missing = [name for name in result.missing_keys if not is_adapter(name)]
        adapters = [name for name in state_dict if is_adapter(name)]
        absent = [name for name in result.missing_keys if is_adapter(name)]
        if adapters and absent:
            raise UserError(f"{where} lacks {len(absent)} of the adapters that the config asks for{_some(absent)}")
        if allow_missing:
            if missing and len(adapters) < len(state_dict):
                logger.warning("%s lacks %d weights, which stay random%s", where, len(missing), _some(missing))
            missing = []
        if missing or result.unexpected_keys:
            raise UserError(
                f"{where} does not fit the transformer of the config: {len(missing)} parameters missing"
                f"{_some(missing)}, {len(result.unexpected_keys)} unknown{_some(result.unexpected_keys)}"
            )
        return list(result.missing_keys)

    def check_positions(self, latent: tuple[int, int, int, int]) -> None:
        """Raise UserError where a latent (T, C, H, W) is uneven or beyond the positions."""
        positions = self.mixins["pos_embed"]
        layout = TokenLayout.of(torch.Size([1, *latent]), positions.text_length, self.patch)
        if not positions.interpolate:
            layout.check_fits(positions.grid)

    def shard(self, name: str, tensor: torch.Tensor, rank: int, ranks: int) -> torch.Tensor:
        """What model-parallel rank `rank` of `ranks` holds of the whole parameter `name`."""
        return shard(name, tensor, rank, ranks)

    def flop_shape(self) -> dict[str, int]:
        """The sizes that decide what a forward pass costs, named as `transformer_flops` takes them."""
        volume = math.prod(self.patch)
        final = self.mixins["final_layer"]
        return {
            "layers": len(self.transformer.layers),
            "hidden": self.hidden_size,
            "heads": self.num_attention_heads,
            "head_dim": self.hidden_size // self.num_attention_heads,
            "time_embed_dim": self.time_embed[2].out_features,
            "text_hidden": self.mixins["patch_embed"].text_hidden_size,
            "patch_in": self.in_channels * volume,
            "patch_out": final.linear.out_features,
        }


def build_stack(
    args: TransformerArgs, num_layers: int, hidden_size: int, num_attention_heads: int, affine: bool, dtype: str
) -> VideoTransformer:
    """SAT's transformer for this process's model-parallel rank; raises UserError where sizes do not divide."""
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} of the transformer: give one of {', '.join(DTYPES)}")
    if hidden_size % num_attention_heads:
        raise UserError(f"hidden_size {hidden_size} does not divide by num_attention_heads {num_attention_heads}")
    with model_parallel_groups() as ranks:
        if num_attention_heads % ranks:
            raise UserError(
                f"num_attention_heads {num_attention_heads} does not divide by model_parallel_size {ranks}: "
                f"use a --model-parallel-size that divides it"
            )
        if args.model_parallel_size not in (1, ranks):
            raise UserError(
                f"transformer_args.model_parallel_size is {args.model_parallel_size}, but the run has {ranks}: "
                f"remove it, --model-parallel-size decides"
            )
        device = torch.get_default_device()
        return VideoTransformer(
            args, num_layers, hidden_size, num_attention_heads, affine, ranks, DTYPES[dtype], device
        )


def _instantiate(modules: Mapping[str, Any], key: str, available: Mapping[str, Any]) -> Any:
    """The mixin of node `key`, with those of the available arguments that its constructor names."""
    if key not in modules:
        raise UserError(f"network_config.params.modules.{key} is missing")
    node = modules[key]
    signature = signature_of(resolve_target(node["target"]))
    given = node.get("params") or {}
    supplied = {
        name: value
        for name, value in available.items()
        if name in signature.supplied_by_parent or (name in signature.parameters and name not in given)
    }
    return instantiate(node, **supplied)


def _only(name: str, value: Any, supported: Any) -> None:
    if value != supported:
        raise UserError(f"network_config.params.{name} is {value!r}: only {supported!r} is supported")


def _some(names: Sequence[str]) -> str:
    return f" ({', '.join(list(names)[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
