"""What training asks of its data, from the files and overrides that it would be given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogvideox.config.binding import bind, signature_of
from cogvideox.config.load import load_settings, resolve_interpolations
from cogvideox.config.report import Problem, raise_if_any
from cogvideox.config.settings import Settings
from cogvideox.config.static_signature import REPOSITORY
from cogvideox.config.targets import ALIASES
from cogvideox.data.clip_parameters import checked_sizes, clip_sizes, faults_of_sampling
from cogvideox.data.judging import Wanted
from cogvideox.data.quarantine import read_quarantine
from cogvideox.errors import UserError

DEFAULT_BASE = REPOSITORY / "configs/sft.yaml"
DATA_TARGET = "data_video.SFTDataset"
T5_TARGET = "cogvideox.conditioning.t5.FrozenT5Embedder"
EMBEDDERS = "model.conditioner_config.params.emb_models"


@dataclass(frozen=True)
class Checked:
    """What clips are checked against. `token_counts` gives the tokens of captions, the end mark among them; where it
    is None, `why_no_tokens` says why. `max_tokens` are those that the model reads.
    """

    wanted: Wanted
    format: str
    token_counts: Callable[[list[str]], list[int]] | None = None
    why_no_tokens: str = ""
    max_tokens: int = 0


def settings_of(files: Sequence[str], overrides: Sequence[str], timeout_s: float, data: Path) -> Checked:
    """The data section for `data` and the tokenizer of YAML files (none: configs/sft.yaml). Raises UserError."""
    problems: list[Problem] = []
    settings = load_settings(list(files) or [str(DEFAULT_BASE)], overrides, problems)
    raise_if_any(problems)
    resolve_interpolations(settings, problems)
    raise_if_any(each for each in problems if each.key.startswith(("data.", EMBEDDERS)))
    params = _data_params(settings)
    sizes = clip_sizes(params["video_size"], params["max_num_frames"], params["buckets"])
    skip, pad = params["skip_frms_num"], params["max_pad_fraction"]
    faults = faults_of_sampling(params["fps"], skip, pad, params["flip_probability"], params["read_timeout_s"])
    if timeout_s <= 0:
        faults.append(f"--timeout {timeout_s:g}: give seconds above 0")
    wanted = Wanted(
        tuple(checked_sizes(sizes, params["buckets"] is not None, faults)),
        params["fps"], int(skip), pad, params["allow_missing_captions"], timeout_s,
        read_quarantine(params["quarantine"], data),
    )  # fmt: skip
    return Checked(wanted, params["format"], *_tokenizer_of(settings))


def _data_params(settings: Settings) -> dict[str, Any]:
    """`data.params` in the types that the data set wants, with its defaults."""
    from data_video import SFTDataset

    target = settings.get("data.target")
    if target is None:
        raise UserError("--base describes no data set: list a task too, as configs/sft.yaml")
    if target != DATA_TARGET:
        raise UserError(f"data.target {target}: this tool checks what {DATA_TARGET} reads")
    signature = signature_of(SFTDataset)
    bound = bind(signature, settings.get("data.params") or {}, signature.supplied_by_parent)
    problems = []
    for fault in bound.faults:
        key = f"data.params.{fault.key}"
        problems.append(Problem(settings.source(key), key, fault.what, fault.remedy))
    raise_if_any(problems)
    arguments = inspect.signature(SFTDataset).bind("", **bound.values)
    arguments.apply_defaults()
    return dict(arguments.arguments)


def _tokenizer_of(settings: Settings) -> tuple[Callable[[list[str]], list[int]] | None, str, int]:
    """How to count tokens (None, and why not), and how many the model reads."""
    nodes = settings.get(EMBEDDERS)
    for node in nodes if isinstance(nodes, list) else []:
        target = node.get("target") if isinstance(node, Mapping) else None
        if ALIASES.get(str(target), target) == T5_TARGET:
            return _t5_of(node.get("params") or {})
    return None, "the configs name no T5 text encoder (list a model's YAML after --base too)", 0


def _t5_of(params: Mapping[str, Any]) -> tuple[Callable[[list[str]], list[int]] | None, str, int]:
    from cogvideox.conditioning.t5 import FrozenT5Embedder, load_tokenizer
    from cogvideox.conditioning.t5_files import TOKENIZER_FILES, T5Files, find_t5

    default = inspect.signature(FrozenT5Embedder).parameters["max_length"].default
    most = int(params.get("max_length", default))
    folder = Path(str(params.get("model_dir"))).expanduser()
    try:
        # The tokenizer alone is enough here.
        places = [each for each in (folder / "tokenizer", folder) if any((each / n).is_file() for n in TOKENIZER_FILES)]
        files = T5Files(places[0], places[0]) if places else find_t5(str(folder), params.get("cache_dir"))
        tokenizer = load_tokenizer(files)
    except UserError as error:
        return None, str(error).splitlines()[0], most

    def count(captions: list[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(captions, verbose=False).input_ids] if captions else []

    return count, "", most
