"""Build the object that a config node `{target, params}` describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from cogvideox.config.binding import bind, signature_of
from cogvideox.config.inert import say_once
from cogvideox.config.targets import check_builds_a_model, resolve_target
from cogvideox.errors import UserError


def plain(node: Any) -> Any:
    """`node` with OmegaConf containers turned into dicts and lists, interpolations resolved."""
    if isinstance(node, (DictConfig, ListConfig)):
        return OmegaConf.to_container(node, resolve=True)
    return node


def instantiate(node: Mapping[str, Any], **supplied: Any) -> Any:
    """The object of class `node["target"]`, made from `node["params"]` and the caller's `supplied` arguments.

    Inert keys are left out and logged once. Nested nodes are passed on as dicts: the class builds them itself.
    Raises UserError naming every key that does not bind.
    """
    config = plain(node)
    if not isinstance(config, Mapping) or not isinstance(config.get("target"), str):
        raise UserError(f"expected a mapping with `target:` and `params:`, got {config!r}")
    target = resolve_target(config["target"])
    check_builds_a_model(config["target"], target)
    signature = signature_of(target)
    params = {key: plain(value) for key, value in (plain(config.get("params")) or {}).items()}
    bound = bind(signature, params, supplied=tuple(supplied))
    if bound.faults:
        lines = [f"  params.{fault.key}: {fault.what}; {fault.remedy}" for fault in bound.faults]
        raise UserError(f"target `{config['target']}`:\n" + "\n".join(lines))
    for key, reason in bound.inert.items():
        say_once(f"{signature.name}.{key}", f"{key} of {config['target']} has no effect ({reason}); ignored")
    return target(**bound.values, **supplied)


def data_set_class(node: Mapping[str, Any]) -> Any:
    """The class that `node`, the `data:` of a config, names. UserError: it does not make data sets."""
    target = resolve_target(node["target"])
    if getattr(target, "create_dataset_function", None) is None:
        raise UserError(
            f"data.target `{node['target']}` has no class method create_dataset_function: name a data set, as "
            "data_video.SFTDataset, or give yours this method"
        )
    return target
