"""What a transformer starts from, and which of its parameters train."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

from cogvideox import parallel
from cogvideox.checkpoint.loading import StartingWeights
from cogvideox.checkpoint.naming import network_names
from cogvideox.errors import UserError
from cogvideox.transformer.lora import LoraLinear, is_adapter

logger = logging.getLogger(__name__)


def load_starting_weights(network: Any, weights: StartingWeights, allow_missing: bool) -> None:
    """Load a checkpoint's transformer into `network`; a VAE or T5 in it is passed over.

    Names may start with `model.diffusion_model.` as in SAT's files, be the transformer's own, diffusers' or PEFT's.

    Raises:
        UserError: names or shapes that do not fit, all listed.
    """
    scaling = next((layer.scaling for layer in network.modules() if isinstance(layer, LoraLinear)), 1.0)
    state = network_names(weights.state_dict, scaling)
    ranks = parallel.current().model
    if ranks.size > 1 and not weights.is_shard:
        state = {name: network.shard(name, tensor, ranks.rank, ranks.size) for name, tensor in state.items()}
    anew = sum(map(is_adapter, network.load_weights(state, str(weights.source), allow_missing)))
    logger.info("loaded %s: %d weights; %d adapters start anew", weights.source, len(state), anew)


def freeze(model: nn.Module, prefixes: Sequence[str]) -> None:
    """Freeze the parameters whose names start with one of `prefixes` ("all": every one), LoRA matrices excepted.

    Raises:
        UserError: nothing is left to train.
    """
    for name, parameter in model.named_parameters():
        frozen = any(prefix == "all" or name.startswith(prefix) for prefix in prefixes)
        if frozen and not is_adapter(name):
            parameter.requires_grad_(False)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    if trainable == 0:
        raise UserError(
            f"not_trainable_prefixes {list(prefixes)} leaves nothing to train: add a lora_config to "
            "model.network_config.params.modules, or remove the prefix (model.not_trainable_prefixes)"
        )
    logger.info("training %s of %s parameters", f"{trainable:,}", f"{total:,}")
