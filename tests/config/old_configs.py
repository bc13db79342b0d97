"""Config files as users of the reference have them, one for each that it ships (and LoRA for 1.5, which it lacks).

`old_model.yaml` is its 2B LoRA file with every key that any of its files has; here are the others' numbers. Real sizes
and the reference's target paths, nesting and idle keys throughout.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
FULL = ("2b", "5b", "5b_i2v", "1.5_5b", "1.5_5b_i2v")
OLD_MODELS = tuple(name + kind for name in FULL for kind in ("", "_lora"))
IMAGE_KEYS = ("noised_image_input", "noised_image_all_concat", "noised_image_dropout", "augmentation_dropout")
SGM = "sgm.modules.diffusionmodules"
ROTARY = {"target": "dit_video_concat.Rotary3DPositionEmbeddingMixin"}


def old_model(name: str) -> dict[str, Any]:
    """The whole file of the model `name`, one of OLD_MODELS."""
    tree = _read("old_model.yaml")
    kind, is_lora, is_1_5 = name.removesuffix("_lora"), name.endswith("_lora"), name.startswith("1.5")
    model, network = tree["model"], tree["model"]["network_config"]["params"]
    if not is_lora:
        del model["not_trainable_prefixes"], network["modules"]["lora_config"]
    for key in ("latent_input", *IMAGE_KEYS):
        del model[key]
    if not is_1_5:
        del model["loss_fn_config"]["params"]["sigma_sampler_config"]["params"]["group_num"]
        model["first_stage_config"]["params"]["decoder_config"]["params"]["gather_norm"] = False
    if kind == "2b":
        _older_sampler(model)
        return tree
    model["scale_factor"] = 0.7
    for schedule in _schedules(model):
        if is_1_5:
            del schedule["params"]
        else:
            schedule["params"]["shift_scale"] = 1.0
    network |= {"num_layers": 42, "hidden_size": 3072, "num_attention_heads": 48}
    text_length = 224 if is_1_5 else 226
    network["modules"]["pos_embed_config"] = ROTARY | {"params": {"hidden_size_head": 64, "text_length": text_length}}
    model["conditioner_config"]["params"]["emb_models"][0]["params"]["max_length"] = text_length
    if is_1_5:
        network |= {"num_frames": 81, "latent_width": 300, "latent_height": 300, "patch_size": [2, 2, 2]}
    if kind.endswith("i2v"):
        _image_to_video(model, is_1_5, is_lora)
    elif is_1_5:
        model["latent_input"] = True  # with a data set of clips, where the reference fails
    return tree


def old_task(name: str) -> dict[str, Any]:
    """The task file, for the model `name`: 1.5 has clips of its own size."""
    tree = _read("old_task.yaml")
    if name.startswith("1.5"):
        tree["data"]["params"] |= {"video_size": [768, 1360], "fps": 16, "max_num_frames": 81}
    return tree


def targets(node: Any) -> set[str]:
    """Every `target:` below `node`."""
    if isinstance(node, dict):
        own = {node["target"]} if isinstance(node.get("target"), str) else set()
        return own.union(*(targets(child) for child in node.values()))
    return set().union(*(targets(child) for child in node)) if isinstance(node, list) else set()


def _image_to_video(model: dict[str, Any], is_1_5: bool, is_lora: bool) -> None:
    network = model["network_config"]["params"]
    network["in_channels"] = 32
    model |= {"latent_input": False, "noised_image_input": True, "noised_image_dropout": 0.05}
    if is_1_5:
        network["ofs_embed_dim"] = 512
        model |= {"noised_image_all_concat": False, "augmentation_dropout": 0.15}
    else:
        network["modules"]["pos_embed_config"]["params"]["learnable_pos_embed"] = True
        if is_lora:
            network["modules"]["lora_config"]["params"]["r"] = 256


def _older_sampler(model: dict[str, Any]) -> None:
    """What the 2B file had before: DDIM, and guidance of constant scale."""
    model["sampler_config"]["target"] = f"{SGM}.sampling.VideoDDIMSampler"
    guider = {"target": f"{SGM}.guiders.VanillaCFG", "params": {"scale": 6}}
    model["sampler_config"]["params"]["guider_config"] = guider


def _schedules(model: dict[str, Any]) -> list[dict[str, Any]]:
    draw = model["loss_fn_config"]["params"]["sigma_sampler_config"]
    owners = (model["denoiser_config"], model["sampler_config"], draw)
    return [owner["params"]["discretization_config"] for owner in owners]


def _read(name: str) -> dict[str, Any]:
    tree = yaml.safe_load((HERE / name).read_text(encoding="utf-8"))
    first_stage = tree.get("model", {}).get("first_stage_config", {}).get("params", {})
    if first_stage:  # one mapping by YAML's alias: two, so that each can be changed
        first_stage["decoder_config"] = copy.deepcopy(first_stage["decoder_config"])
    return tree
