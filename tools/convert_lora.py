"""LoRA adapters on their way through convert_checkpoint.py: into the weights, out to PEFT's layout, and back."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cogvideox.checkpoint.adapters import (
    describe_adapters,
    merge_adapters,
    rank_of,
    recorded,
    without_original,
)
from cogvideox.checkpoint.converting import Conversion, by_layer, merge_ranks
from cogvideox.checkpoint.lora_names import from_peft, is_sat_adapter, scaled_b, to_peft
from cogvideox.checkpoint.opening import Weights, open_weights
from cogvideox.checkpoint.transformer_names import SAT_ONLY, to_sat
from cogvideox.errors import UserError
from tools.convert_description import Description

Part = Mapping[str, Tensor]


def network(weights: Weights) -> Conversion:
    """The transformer or its adapters as one state dict under SAT's names, model parallel ranks put together."""
    if len(weights.shards) > 1:
        from cogvideox.transformer.tensor_parallel import merge  # imports SAT, which takes seconds

        whole = merge_ranks(weights.shards, merge)
    else:
        whole = Conversion(by_layer(weights.shards[0]), dict)
    if weights.layout == "diffusers":
        return whole.then(to_sat)
    if weights.layout == "PEFT":
        return whole.then(from_peft)
    return whole.then(lambda part: {name: tensor for name, tensor in part.items() if name not in SAT_ONLY})


def merged(args: argparse.Namespace, weights: Weights, description: Description) -> Conversion:
    """A plain transformer, SAT's names: the adapters of `weights` added to --base-weights, else to its own base, or to
    the one that it is for. Of several checkpoints of adapters, each on top of another, the newest counts alone, as
    where they are loaded.

    UserError: no adapters, no base, or unknown what the adapters count with.
    """
    whole = network(weights)
    scale = scale_of(args, weights, description, rank_of(_some(whole.outline(), weights.path)))
    if weights.kind == "transformer" and args.base_weights is None:
        return whole.then(lambda part: merge_adapters(part, scale))
    alone = whole.then(_adapters)
    if args.base_weights is None:
        return _on_base(network(_last_base(weights)).then(_without_adapters), dict(alone.tensors()), scale)
    base = open_weights(args.base_weights)
    if base.kind != "transformer" or any(is_sat_adapter(name) for name in base.shards[0]):
        raise UserError(f"{args.base_weights} is no plain transformer to add adapters to: name one with --base-weights")
    return _on_base(network(base), dict(alone.tensors()), scale)


def _last_base(weights: Weights) -> Weights:
    """The transformer below `weights`, past all checkpoints of adapters between. UserError: there is none."""
    seen = {weights.path.resolve()}
    while weights.kind == "adapters":
        if weights.base is None:
            raise UserError(f"{weights.path} holds adapters only: name the weights that they are for (--base-weights)")
        path = weights.base.resolve()
        if path in seen:
            raise UserError(f"{weights.path} names {path} as its base, which leads back: give --base-weights")
        seen.add(path)
        weights = open_weights(path)
    if weights.kind != "transformer":
        raise UserError(f"{weights.path} is no transformer to add adapters to: give --base-weights")
    return weights


def _adapters(part: Part) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in part.items() if is_sat_adapter(name)}


def _without_adapters(part: Part) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in part.items() if not is_sat_adapter(name)}


def _on_base(base: Conversion, adapters: dict[str, Tensor], scale: float) -> Conversion:
    """Each layer of the base with the adapters of its own; the adapters are small and stay in memory."""
    by_prefix: dict[str, dict[str, Tensor]] = {}
    for name, tensor in adapters.items():
        by_prefix.setdefault(".".join(name.split(".")[:3]) + ".", {})[name] = tensor
    left = set(by_prefix)

    def add(part: Part) -> dict[str, Tensor]:
        plain = without_original(part)
        own = {prefix for prefix in by_prefix if any(name.startswith(prefix) for name in plain)}
        left.difference_update(own)
        return merge_adapters({**plain, **{n: t for prefix in own for n, t in by_prefix[prefix].items()}}, scale)

    result = base.then(add)
    result.plan()  # goes through all layers, without their content
    if left:
        raise UserError(f"there are adapters for layers that the base weights do not have: {', '.join(sorted(left))}")
    return result


def scale_of(args: argparse.Namespace, weights: Weights, description: Description, rank: int) -> float:
    """alpha / r that the adapters count with. UserError: alpha is not known, or r is another than the config's."""
    if weights.layout == "PEFT":
        return 1.0
    return _alpha(args, description, rank, weights.path) / rank


def _alpha(args: argparse.Namespace, description: Description, rank: int, path: Path) -> float:
    settings = description.lora()
    if settings.get("r", rank) != rank:
        raise UserError(f"{path} holds adapters of rank {rank}, but {description.where} has r {settings['r']}")
    alpha = args.lora_alpha if args.lora_alpha is not None else settings.get("lora_alpha")
    if alpha is None:
        raise UserError(
            f"{path} does not say what alpha its adapters were trained with: give --lora-alpha (1 where the config has "
            f"no lora_config.params.lora_alpha) or the training config (--base)"
        )
    return float(alpha)


def exported(
    args: argparse.Namespace, weights: Weights, description: Description
) -> tuple[Conversion, dict[str, str], list[str]]:
    """The adapters alone under PEFT's names, the file's header, and what to say about them."""
    whole = network(weights).then(_adapters)
    outline = _some(whole.outline(), weights.path)
    rank = rank_of(outline)
    alpha = _alpha(args, description, rank, weights.path)
    header = describe_adapters(rank, alpha, next(iter(outline.values())).dtype)
    said = [f"rank {rank}, alpha {alpha:g}: alpha / r = {alpha / rank:g} is multiplied into B, the file counts as 1"]
    return whole.then(lambda part: to_peft(part, alpha / rank)), header, said


def imported(
    args: argparse.Namespace, weights: Weights, description: Description
) -> tuple[Conversion, dict[str, Any], list[str]]:
    """Adapters from PEFT's layout under SAT's names, what stands beside them, and what to say about them.

    They are made for the alpha that is asked for, or that they had when they were exported; else for alpha = r.
    """
    where = str(weights.path)
    record = recorded(weights.metadata, where) or {}
    whole = network(weights)
    rank = rank_of(whole.outline())
    settings = description.lora()
    if settings.get("r", rank) != rank:
        raise UserError(f"{where} holds adapters of rank {rank}, but {description.where} has r {settings['r']}")
    known = (args.lora_alpha, settings.get("lora_alpha"), record.get("lora_alpha"), rank)
    alpha = float(next(value for value in known if value is not None))
    factor = 1 / (alpha / rank)
    dtype = getattr(torch, record["dtype"]) if record.get("dtype") in ("float32", "float16", "bfloat16") else None
    conversion = whole.then(lambda part: {name: scaled_b(name, tensor, factor) for name, tensor in part.items()})
    beside: dict[str, Any] = {"adapters_only": True}
    said = [f"set in lora_config.params: r: {rank}, lora_alpha: {alpha:g}"]
    if args.base_weights:
        base = open_weights(args.base_weights)
        if base.kind == "VAE" or base.layout == "PEFT":
            raise UserError(
                f"{args.base_weights} holds {base.layout} {base.kind}, no transformer to train on from: "
                "name one with --base-weights"
            )
        beside["base_weights"] = str(args.base_weights.resolve())
    else:
        said.append("no base is noted in it: give --base-weights if it shall be trained on by --load")
    return replace(conversion, dtype=dtype), beside, said


def _some(adapters: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    found = _adapters(adapters)
    if not found:
        raise UserError(f"{path} holds no LoRA adapters: leave out --lora")
    return found
