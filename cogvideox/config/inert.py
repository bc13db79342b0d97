"""Keys that the reference's classes accept and never read: we take them, say so once, and leave them out.

A key that a class of ours does name in its signature is passed to it, whatever this table says.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

logger = logging.getLogger(__name__)

_CODER = {
    "resolution": "the network is convolutional, any size works",
    "attn_resolutions": "there is no attention in it",
    "gather_norm": "norms are the same on one device and on many",
    "double_z": "only the encoder has twice the channels",
    "in_channels": "only the encoder reads pictures",
    "out_ch": "only the decoder writes pictures",
    "tanh_out": "the output is never squashed",
    "give_pre_end": "the whole decoder always runs",
    "resamp_with_conv": "resampling always has its convolution",
    "use_linear_attn": "there is no attention in it",
    "attn_type": "there is no attention in it",
}

# Our class → key → why nothing reads it.
INERT_PARAMS: dict[str, dict[str, str]] = {
    "cogvideox.diffusion.denoiser.DiscreteDenoiser": {
        "weighting_config": "the loss is computed in v-space, where the weight is 1",
    },
    "cogvideox.transformer.model.DiffusionTransformer": {
        "adm_in_channels": "there is no vector conditioning",
    },
    "cogvideox.vae.autoencoder.VideoAutoencoderInferenceWrapper": {
        "loss_config": "the autoencoder is not trained here",
        "monitor": "the autoencoder is not trained here",
        "lr_g_factor": "the autoencoder is not trained here",
    },
    "cogvideox.vae.encoder.ContextParallelEncoder3D": _CODER,
    "cogvideox.vae.decoder.ContextParallelDecoder3D": _CODER,
}

# The `model:` section, and the mapping `transformer_args` inside the transformer's params.
INERT_MODEL_KEYS: dict[str, str] = {
    "augmentation_dropout": "the reference reads it nowhere",
    "lora_train": "`not_trainable_prefixes: [all]` is what trains adapters alone",
    "use_pd": "there is no distillation in the reference's release",
}
# The same, where another key does not ask for it.
INERT_WITHOUT_IMAGES: dict[str, str] = dict.fromkeys(
    ("noised_image_all_concat", "image_scale_factor"), "`noised_image_input` is not true: no picture is given"
)
INERT_TRANSFORMER_ARGS: dict[str, str] = {
    "vocab_size": "the transformer has no word embedding",
    "max_sequence_length": "positions come from the position mixin",
}


@dataclass
class _Said:
    keys: set[str] = field(default_factory=set)


_said = _Said()


def inert_reason(real_target: str, key: str) -> str | None:
    """Why `key` of class `real_target` is ignored; `None` if it is not in the table."""
    return INERT_PARAMS.get(real_target, {}).get(key)


def mark_as_said(key: str) -> None:
    """`say_once` is silent about `key` from now on: the user has been told otherwise."""
    _said.keys.add(key)


def say_once(key: str, text: str) -> None:
    """Log `text` at most once per process for `key`."""
    if key not in _said.keys:
        _said.keys.add(key)
        logger.info(text)
