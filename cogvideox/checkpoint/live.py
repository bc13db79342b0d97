"""Take down what a model under DeepSpeed is at this moment, for `tools/verify_checkpoint.py` to hold a reload against.

At ZeRO 3 all ranks compute together; below it those of data parallel rank 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cogvideox.checkpoint.ema import whole
from cogvideox.checkpoint.fingerprint import EMA, RAW, Fingerprint, LiveModel
from cogvideox.checkpoint.fixed_noise import fixed_forward
from cogvideox.parallel import current
from cogvideox.platform import current_device


def live_model(engine: Any, network: Mapping[str, Any], averages: Mapping[str, Tensor] | None) -> LiveModel | None:
    """What the model is now, on data parallel rank 0, None on the others; every rank must call this.

    `network` is `network_config.params`, `averages` what `averages_of` returned where there are any: they stand in the
    weights' places for a second forward. The model is afterwards what it was, to the bit.
    """
    groups = current()
    is_cut = engine.zero_optimization_partition_weights()
    if groups.data.rank != 0 and not is_cut:
        return None
    fingerprints = {RAW: _fingerprints(engine)}
    outputs = {RAW: _forward(engine, network)}
    if averages is not None:
        fingerprints[EMA] = {name: Fingerprint.of(tensor) for name, tensor in averages.items()}
        with _holding(engine, averages):
            outputs[EMA] = _forward(engine, network)
    return LiveModel(fingerprints, outputs) if groups.data.rank == 0 else None


def _fingerprints(engine: Any) -> dict[str, Fingerprint]:
    found = {}
    for name, parameter in engine.module.named_parameters():
        with whole(parameter):
            if current().data.rank == 0:
                found[name] = Fingerprint.of(parameter)
    return found


def _forward(engine: Any, network: Mapping[str, Any]) -> Tensor:
    is_training = engine.module.training
    engine.eval()
    try:
        return fixed_forward(engine.module.model, network, current_device())
    finally:
        engine.train(is_training)


@contextmanager
def _holding(engine: Any, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """What trains holds `weights` (data parallel rank 0's) inside the block, its own again afterwards."""
    kept: dict[str, Tensor] = {}
    try:
        _exchange(engine, weights, kept)
        yield
    finally:
        _exchange(engine, kept, {})


@torch.no_grad()
def _exchange(engine: Any, weights: Mapping[str, Tensor], kept: dict[str, Tensor]) -> None:
    """Put `weights` in, and what they replace into `kept`, on the CPU."""
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        with whole(parameter, changes=True):
            if name in weights:
                kept[name] = parameter.data.to("cpu", copy=True)
                parameter.data.copy_(weights[name])
