"""Weight files of tiny models as runs and packages have them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from cogvideox.checkpoint.naming import NETWORK_PREFIX
from cogvideox.transformer.lora import is_adapter
from tests.transformer import five

LORA = {"r": 4, "lora_alpha": 6.0}


def sat_folder(folder: Path, state: Mapping[str, torch.Tensor], step: str = "1000", **beside: Any) -> Path:
    """`folder` with a checkpoint of these weights (the transformer's own names)."""
    (folder / step).mkdir(parents=True)
    module = {NETWORK_PREFIX + name: tensor for name, tensor in state.items()}
    torch.save({"module": module, **beside}, folder / step / "mp_rank_00_model_states.pt")
    (folder / "latest").write_text(step)
    return folder


def run_folder(folder: Path, name: str, lora: dict[str, Any] | None = None, **beside: Any) -> Any:
    """A run's folder with the weights of a tiny model of kind `name`; gives the model."""
    kind = five.KINDS[name]
    model = five.tiny_model(kind, lora)
    sat_folder(folder, model.state_dict(), **beside)
    write_training_config(folder, name, lora)
    return model


def adapters_folder(folder: Path, name: str, base: Path | None, lora: dict[str, Any] | None = None) -> Any:
    """As `run_folder`, with the adapters alone in it, as our own LoRA runs save them; gives the model."""
    lora = lora or LORA
    model = five.tiny_model(five.KINDS[name], lora)
    adapters = {key: tensor for key, tensor in model.state_dict().items() if is_adapter(key)}
    sat_folder(folder, adapters, adapters_only=True, base_weights=None if base is None else str(base))
    write_training_config(folder, name, lora)
    return model


def plain(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The model's weights without its adapters, under a plain model's names."""
    state = model.state_dict()
    return {name.replace(".original.", "."): tensor for name, tensor in state.items() if not is_adapter(name)}


def write_training_config(folder: Path, name: str, lora: dict[str, Any] | None = None, **model: Any) -> Path:
    """`training_config.yaml` of a run of a tiny model."""
    params = five.params_of(five.KINDS[name], five.TINY, lora)
    node = {"network_config": {"target": "dit_video_concat.DiffusionTransformer", "params": params}, **model}
    path = folder / "training_config.yaml"
    path.write_text(yaml.safe_dump({"args": {"mode": "finetune"}, "model": node}))
    return path


def assert_equal(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """The same names, and to the bit the same tensors of the same type."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
