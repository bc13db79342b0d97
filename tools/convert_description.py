"""What is known of the model that weights belong to: from a training config, config.json, a name, or the shapes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cogvideox.checkpoint import diffusers_config
from cogvideox.checkpoint.opening import Weights
from cogvideox.checkpoint.published import MODELS, recognize
from cogvideox.config.load import load_settings, resolve_interpolations
from cogvideox.config.report import Problem, raise_if_any
from cogvideox.errors import UserError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
TRAINING_CONFIG = "training_config.yaml"
CLASSES = {"transformer": "CogVideoXTransformer3DModel", "VAE": "AutoencoderKLCogVideoX"}


@dataclass(frozen=True)
class Description:
    """At most one of: `training`, the node `model:` of a training config; `published`, a model's name; `config_json`,
    that of diffusers. `where` it is from.
    """

    where: str
    training: Mapping[str, Any] | None = None
    published: str | None = None
    config_json: Mapping[str, Any] | None = None

    def transformer(self, sat: Mapping[str, Tensor]) -> dict[str, Any]:
        """config.json of the transformer, which weights under SAT's names (shapes suffice) are checked against."""
        if self.training is not None:
            config = diffusers_config.transformer_from_training(self.training, self.where)
        elif self.config_json is not None:
            config = diffusers_config.TRANSFORMER | dict(self.config_json)
        else:
            name = self.published or recognize(sat)
            if name is None:
                raise UserError("the weights have the sizes of no published model: give their training config (--base)")
            config = diffusers_config.published_transformer(name)
        diffusers_config.check_transformer(config, sat, self.where)
        return config

    def vae(self, path: Path) -> dict[str, Any]:
        """What config.json says of the VAE beside its sizes: all models' VAEs have the same."""
        if self.training is not None:
            return diffusers_config.vae_settings_from_training(self.training)
        if self.config_json is not None:
            return dict(self.config_json)
        if self.published is None:
            raise UserError(
                f"{path}: the VAEs of all models look alike, but their latents are scaled differently: say whose it is "
                f"(--model {', '.join(MODELS)}, or --base with a training config)"
            )
        return dict(MODELS[self.published].vae)

    def image_scale_note(self, config: Mapping[str, Any]) -> str | None:
        """What to say where diffusers scales an image's latents otherwise than the training config, ours for a
        published model; `config` is the config.json that is written.
        """
        node = self.training
        if node is None:
            alike = (name for name in MODELS if diffusers_config.published_transformer(name) == config)
            name = self.published or next(alike, None)
            node = None if name is None else model_node([str(CONFIGS / MODELS[name].config)])
        return None if node is None else diffusers_config.image_scale_note(node, config.get("invert_scale_latents"))

    def lora(self) -> dict[str, Any]:
        """`r` and `lora_alpha` of a training config that has adapters, else nothing."""
        node: Any = self.training or {}
        for key in ("network_config", "params", "modules", "lora_config"):
            node = node.get(key) or {}
        return {"lora_alpha": 1.0, **(node.get("params") or {})} if node else {}


def describe(args: argparse.Namespace, weights: Weights) -> Description:
    """--base, else --model, else what lies beside the weights, else nothing: the shapes have to do."""
    if args.base:
        return Description(" + ".join(args.base), training=model_node(args.base))
    if args.model:
        return Description(f"--model {args.model}", published=args.model)
    config = weights.beside("config.json")
    if weights.layout == "diffusers" and config is not None:
        return Description(str(config), config_json=_read_config(config, CLASSES[weights.kind]))
    run = weights.beside(TRAINING_CONFIG)
    if run is not None:
        return Description(str(run), training=model_node([str(run)]))
    return Description("the published model of these sizes")


def model_node(files: Sequence[str]) -> Mapping[str, Any]:
    """`model:` of the merged training configs. UserError: all that cannot be read in them."""
    return training_config(files).get("model") or {}


def training_config(files: Sequence[str]) -> dict[str, Any]:
    """The merged training configs with all references resolved. UserError: all that cannot be read in them."""
    problems: list[Problem] = []
    settings = load_settings(files, [], problems)
    raise_if_any(problems)
    resolve_interpolations(settings, problems)
    raise_if_any(problems)
    return settings.tree


def _read_config(path: Path, class_name: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): copy it again") from error
    found = config.get("_class_name") if isinstance(config, dict) else None
    if found != class_name:
        raise UserError(f"{path} describes a {found}, not a {class_name}")
    return config
