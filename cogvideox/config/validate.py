"""Check a whole merged config against what will read it: keys, types and targets, in every section and node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cogvideox.config.binding import Signature, bind, signature_of
from cogvideox.config.fitting import Misfit, fit
from cogvideox.config.flags import YAML_KEYS
from cogvideox.config.inert import INERT_MODEL_KEYS, INERT_TRANSFORMER_ARGS, INERT_WITHOUT_IMAGES, mark_as_said
from cogvideox.config.nearest import did_you_mean
from cogvideox.config.preflight import FOLDER_DATASETS
from cogvideox.config.report import Problem
from cogvideox.config.sections import (
    DEEPSPEED_KEYS,
    EMBEDDER_KEYS,
    MODEL_KEYS,
    OPTIMIZER_PARAMS,
    REQUIRED_NODES,
    SECTIONS,
    TRANSFORMER_ARGS,
    TRANSFORMER_MODULES,
    Node,
    is_table,
)
from cogvideox.config.settings import Settings
from cogvideox.config.static_signature import class_names, static_signature
from cogvideox.config.targets import ALIASES, OPTIMIZER_TYPES, OWN_MODULES, check_allowed, resolve_target
from cogvideox.errors import UserError


class Validator:
    """One pass over a config. `problems` and `notes` (ignored key → why) grow on the way; `data_params` are the data
    set's, converted to the types that it asks for."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.problems: list[Problem] = []
        self.notes: dict[str, str] = {}
        self.data_params: dict[str, Any] | None = None

    def run(self) -> None:
        """Check every section."""
        tree = self.settings.tree
        for name, section in tree.items():
            if name not in SECTIONS:
                self._add(str(name), "unknown section", did_you_mean(str(name), SECTIONS))
            elif section is not None and not isinstance(section, Mapping):
                self._add(name, f"is {section!r}", "give a mapping of keys")
        self._args(_mapping(tree.get("args")))
        self._model(_mapping(tree.get("model")))
        self._deepspeed(_mapping(tree.get("deepspeed")))
        if self.settings.get("data") is not None:
            self._node("data", tree["data"], {})
        elif self.settings.get("args.mode") != "inference":
            self._add("data", "no data set is described", "list `configs/sft.yaml` after --base too")

    def _add(self, key: str, what: str, remedy: str) -> None:
        self.problems.append(Problem(self.settings.source(key), key, what, remedy))

    def _value(self, key: str, value: Any, annotation: Any) -> None:
        try:
            fit(value, annotation)
        except Misfit as wanted:
            self._add(key, f"is {value!r}", f"give {wanted}")

    def _table(self, prefix: str, section: Mapping[str, Any], table: Mapping[str, Any]) -> None:
        """Every key of `section` is in `table` and has its type."""
        for name, value in section.items():
            key = f"{prefix}.{name}"
            kind = table.get(name)
            if name not in table:
                self._add(key, "unknown key", did_you_mean(str(name), table))
            elif is_table(kind):
                if value is not None and not isinstance(value, Mapping):
                    self._add(key, f"is {value!r}", "give a mapping of keys")
                self._table(key, _mapping(value), kind)  # type: ignore[arg-type]
            elif kind is Node:
                self._node(key, value, {})
            else:
                self._value(key, value, kind)

    def _args(self, section: Mapping[str, Any]) -> None:
        self._table("args", section, {key: flag.annotation for key, flag in YAML_KEYS.items()})
        for name, value in section.items():
            flag, is_number = YAML_KEYS.get(name), isinstance(value, (int, float)) and not isinstance(value, bool)
            if flag is not None and is_number and (remedy := flag.remedy_of(value)):
                self._add(f"args.{name}", f"is {value}", remedy)

    def _model(self, section: Mapping[str, Any]) -> None:
        for name in [each for each in section if each in INERT_MODEL_KEYS]:
            self.notes[f"model.{name}"] = INERT_MODEL_KEYS[name]
        self._table(
            "model", {name: value for name, value in section.items() if name not in INERT_MODEL_KEYS}, MODEL_KEYS
        )
        self._switched_off(section)
        for name in REQUIRED_NODES if section else ():
            if section.get(name) is None:
                self._add(f"model.{name}", "is missing", "add it, or list the model's own YAML after --base too")
        if not section:
            self._add(
                "model", "no model is described", "list a model's YAML after --base, as configs/cogvideox_2b.yaml"
            )
        wrapper = section.get("network_wrapper")
        if isinstance(wrapper, str):
            self._signature("model.network_wrapper", wrapper)

    def _switched_off(self, section: Mapping[str, Any]) -> None:
        """Keys that another key or the data set makes idle. The reference's 1.5 file has `latent_input` for clips."""
        if section.get("noised_image_input") is not True:
            for name in [each for each in INERT_WITHOUT_IMAGES if section.get(each) not in (None, False)]:
                self.notes[f"model.{name}"] = INERT_WITHOUT_IMAGES[name]
        if section.get("latent_input") is True and self.settings.get("data.target") in FOLDER_DATASETS:
            key = "model.latent_input"
            self.notes[key] = "data_video.SFTDataset gives clips, which are encoded"
            self.settings.set(key, False, self.settings.source(key))

    def _deepspeed(self, section: Mapping[str, Any]) -> None:
        self._table("deepspeed", section, DEEPSPEED_KEYS)
        optimizer = _mapping(section.get("optimizer"))
        kind = optimizer.get("type")
        if isinstance(kind, str) and kind.lower() not in OPTIMIZER_TYPES:
            known = ", ".join(sorted({*OPTIMIZER_TYPES.values(), "sat.ops.FusedEmaAdam"}))
            self._add("deepspeed.optimizer.type", f"`{kind}` is not an optimizer here", f"use one of {known}")
        self._table("deepspeed.optimizer.params", _mapping(optimizer.get("params")), OPTIMIZER_PARAMS)

    def _node(self, key: str, node: Any, extra: Mapping[str, Any]) -> None:
        """A `{target, params}` node, and everything inside its params. `extra`: keys that its owner reads."""
        if node is None:
            return
        if not isinstance(node, Mapping) or not isinstance(node.get("target"), str):
            what = "has no `target`" if isinstance(node, Mapping) else f"is {node!r}"
            self._add(key, what, "give a mapping with `target: module.ClassName` and `params:`")
            return
        params = node.get("params")
        if params is not None and not isinstance(params, Mapping):
            self._add(f"{key}.params", f"is {params!r}", "give a mapping of keys")
        beside = {name: value for name, value in node.items() if name not in ("target", "params")}
        self._table(key, beside, {"target": str, "params": dict, **extra} if beside else {})
        signature = self._signature(f"{key}.target", node["target"])
        if signature is not None:
            self._bind(key, signature, _mapping(params))
        for name, value in _mapping(params).items():
            if not (signature and name not in signature.parameters and not signature.takes_any):
                self._inside(f"{key}.params.{name}", name, value)

    def _bind(self, key: str, signature: Signature, params: Mapping[str, Any]) -> None:
        supplied = signature.supplied_by_parent
        if key == "data" and not supplied:
            supplied = list(signature.parameters)[:1]  # the folder: a data set of the reference's kind
        bound = bind(signature, params, supplied)
        for fault in bound.faults:
            self._add(f"{key}.params.{fault.key}", fault.what, fault.remedy)
        for name, reason in bound.inert.items():
            self.notes[f"{key}.params.{name}"] = reason
            mark_as_said(f"{signature.name}.{name}")
        if key == "data":
            self.data_params = bound.values

    def _inside(self, key: str, name: str, value: Any) -> None:
        """A parameter's value: a node, a mapping or list of nodes, or one of the free mappings of the transformer."""
        if name == "transformer_args" and isinstance(value, Mapping):
            for inert in [each for each in value if each in INERT_TRANSFORMER_ARGS]:
                self.notes[f"{key}.{inert}"] = INERT_TRANSFORMER_ARGS[inert]
            self._table(key, {k: v for k, v in value.items() if k not in INERT_TRANSFORMER_ARGS}, TRANSFORMER_ARGS)
        elif name == "modules" and isinstance(value, Mapping):
            self._table(key, value, dict.fromkeys(TRANSFORMER_MODULES, Node))
        elif name == "emb_models" and isinstance(value, list):
            for index, each in enumerate(value):
                self._node(f"{key}.{index}", each, EMBEDDER_KEYS)
                self._embedder(f"{key}.{index}", _mapping(each))
        elif isinstance(value, Mapping) and "target" in value:
            self._node(key, value, {})
        elif isinstance(value, (Mapping, list)):
            for part, child in value.items() if isinstance(value, Mapping) else enumerate(value):
                self._inside(f"{key}.{part}", "", child)

    def _embedder(self, key: str, node: Mapping[str, Any]) -> None:
        """What the conditioner and the engine ask of an entry of `emb_models`, beyond its keys' types."""
        if node and not node.get("input_key"):
            self._add(f"{key}.input_key", "is missing", "name the batch's entry to embed, as in `input_key: txt`")
        rate = node.get("ucg_rate", 0.0)
        if isinstance(rate, (int, float)) and not 0 <= rate <= 1:
            self._add(f"{key}.ucg_rate", f"is {rate}", "it is a probability: give 0 to 1")
        if node.get("is_trainable") is True:
            what = "is true, but this version neither trains nor saves a text encoder"
            self._add(f"{key}.is_trainable", what, "set it to false")

    def _signature(self, key: str, target: str) -> Signature | None:
        """The signature of `target`, from its source if it is ours. If there is none: `None`, and a problem."""
        real = ALIASES.get(target, target)
        module, _, name = real.rpartition(".")
        if real in _PLAIN_TARGETS:
            return _PLAIN_TARGETS[real]
        try:
            check_allowed(target, real)
            if real.split(".")[0] in OWN_MODULES and (found := static_signature(module, name)) is not None:
                return found
            if name.startswith("_") or name in class_names(module):
                return None
            return signature_of(resolve_target(target))
        except UserError as error:
            what, _, remedy = str(error).partition(": ")
            self._add(key, what if remedy else f"target `{target}`", remedy or what)
        return None


# Known without importing torch, which takes seconds.
_PLAIN_TARGETS = {"torch.nn.Identity": Signature("torch.nn.Identity", {}, (), takes_any=True)}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
