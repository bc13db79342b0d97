"""A step that went wrong, kept so that it can be computed again elsewhere: `<run>/bad-step-<iteration>/`.

| file | content |
|---|---|
| `bundle.json` | what went wrong and when; of each rank kept: clips, captions, timesteps, loss, gradient norms |
| `rank_XXXXX.safetensors`, `rank_XXXXX_random.pt` | its batch's tensors, and the random states before the forward |
| `mp_rank_XX_model_states.pt` | the weights: those that train, or all of them |
| `training_config.yaml` | the run's |

Nothing in it is code: tensors are read by safetensors and `weights_only`, the rest is JSON and plain YAML.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as encode_tensors
from torch import Tensor

from cogvideox.checkpoint import durable
from cogvideox.checkpoint.safe_loading import load_safely
from cogvideox.errors import UserError

FORMAT = 1
CONFIG = "training_config.yaml"
PACKAGES = ("torch", "deepspeed", "SwissArmyTransformer", "numpy", "safetensors", "transformers")


@dataclass(frozen=True)
class RankRecord:
    """What data parallel rank `rank` computed in one micro-batch. `rest` is what its batch has beside tensors.

    `seen_loss` is that of the training; the others are of the run's second try, when it knew that the step was bad:
    `gradient_norms` are by layer, of the loss divided by `accumulation` and multiplied by `loss_scale`.
    """

    rank: int
    seen_loss: float
    loss: float
    clips: list[str]
    timesteps: list[int]
    gradient_norms: dict[str, float]
    rest: dict[str, Any]


@dataclass(frozen=True)
class BadStep:
    """`bundle.json`. `ranks` are the data parallel ones of the run; `records` those that are kept."""

    iteration: int
    cause: str
    ranks: int
    model_ranks: int
    accumulation: int
    loss_scale: float
    dtype: str
    device: str
    base_weights: str | None
    records: list[RankRecord]
    versions: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT


@dataclass(frozen=True)
class Forward:
    """What a rank's forward starts from."""

    batch: dict[str, Any]
    random_state: dict[str, Any]


def versions() -> dict[str, str]:
    """Of Python and the packages that compute."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_step(folder: Path, step: BadStep) -> None:
    """`bundle.json`. Raises OSError."""
    text = json.dumps(_finite(asdict(step)), indent=1, allow_nan=False) + "\n"
    durable.write_file(folder / "bundle.json", lambda file: file.write(text.encode()))


def write_forward(folder: Path, rank: int, forward: Forward) -> None:
    """The files of one rank. Raises OSError."""
    tensors = {key: each.cpu().contiguous() for key, each in forward.batch.items() if isinstance(each, Tensor)}
    durable.write_file(folder / f"{_name(rank)}.safetensors", lambda file: file.write(encode_tensors(tensors)))
    durable.write_file(folder / f"{_name(rank)}_random.pt", partial(torch.save, forward.random_state))


def plain_part(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What of a batch is no tensor, and can be written as JSON."""
    found: dict[str, Any] = {}
    for key, value in batch.items():
        try:
            found |= {} if isinstance(value, Tensor) else json.loads(json.dumps({key: value}))
        except (TypeError, ValueError):
            continue
    return found


def write_weights(folder: Path, model_rank: int, weights: Mapping[str, Tensor], base: str | None) -> None:
    """Weights by name, in SAT's layout; `base`: where the frozen ones are, if these are adapters. Raises OSError."""
    content = {"module": dict(weights), "adapters_only": base is not None, "base_weights": base}
    durable.write_file(folder / f"mp_rank_{model_rank:02d}_model_states.pt", partial(torch.save, content))


def read_step(folder: Path) -> BadStep:
    """UserError where `folder` is no bundle, or a damaged one."""
    path = folder / "bundle.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        what = "has no bundle.json" if folder.is_dir() else "is not there"
        raise UserError(f"{folder} {what}: name a folder bad-step-… of a run") from None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _damaged(path, f"it says of no format {FORMAT}")
    step = BadStep(**_fields(path, content, BadStep))
    records = [RankRecord(**_fields(path, each, RankRecord)) for each in step.records]
    if not records:
        raise _damaged(path, "it has the records of no rank")
    try:
        numbers = [_with_numbers(each) for each in records]
    except (TypeError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    return replace(step, records=numbers)


def _with_numbers(record: RankRecord) -> RankRecord:
    norms = {layer: float(norm) for layer, norm in record.gradient_norms.items()}
    return replace(record, loss=float(record.loss), seen_loss=float(record.seen_loss), gradient_norms=norms)


def read_forward(folder: Path, record: RankRecord) -> Forward:
    """What `record` was computed from. UserError where a file is missing or damaged."""
    path = folder / f"{_name(record.rank)}.safetensors"
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    path = folder / f"{_name(record.rank)}_random.pt"
    random_state = load_safely(path)
    if not isinstance(random_state, dict) or set(random_state) != {"python", "numpy", "torch", "device"}:
        raise _damaged(path, "it holds no random states")
    return Forward({**record.rest, **tensors}, random_state)


def _name(rank: int) -> str:
    return f"rank_{rank:05d}"


def _finite(node: Any) -> Any:
    """JSON has no NaN: floats that are not finite become their names, which `float` reads."""
    if isinstance(node, float):
        return node if math.isfinite(node) else str(node)
    if isinstance(node, dict):
        return {key: _finite(value) for key, value in node.items()}
    return [_finite(each) for each in node] if isinstance(node, list | tuple) else node


def _fields(path: Path, content: Any, kind: type) -> dict[str, Any]:
    """The object `content`, which must have just the fields of `kind`, each of the right sort."""
    known = kind.__dataclass_fields__  # type: ignore[attr-defined]
    if not isinstance(content, dict) or set(content) != set(known):
        raise _damaged(path, f"a part of it does not have the keys {', '.join(known)}, and no others")
    for name, each in known.items():
        if not isinstance(content[name], _SORTS[str(each.type).partition("[")[0]]):
            raise _damaged(path, f"its {name!r} is no {each.type}")
    return content


_SORTS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float, str),
    "str": (str,),
    "str | None": (str, type(None)),
    "list": (list,),
    "dict": (dict,),
}


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is not of a replay bundle that can be used: {why}; name a folder bad-step-… of a run")
