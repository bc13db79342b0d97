"""Look at the files and the machine that a config speaks of, before anything is built."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from cogvideox.checkpoint.choosing import MANIFEST, MODEL_FILES, checkpoints_of, run_of
from cogvideox.checkpoint.first_bytes import fault_of_file
from cogvideox.checkpoint.pointers import fault_of_latest, latest_text
from cogvideox.config.report import Problem
from cogvideox.config.resumed import AUTO
from cogvideox.config.settings import Settings, leaves
from cogvideox.config.static_signature import REPOSITORY
from cogvideox.data.records import AUTO as AUTO_FORMAT
from cogvideox.data.records import FORMATS, LAYOUT, fault_of_place

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".ckpt", ".pth", ".bin")
# What `cogvideox.checkpoint.reading` looks for in a folder without `latest`, in this order.
FOLDER_FILES = ("*.safetensors.index.json", "*.safetensors", MODEL_FILES, "3d-vae.pt", "diffusion_pytorch_model*.bin")
FOLDER_DATASETS = ("data_video.SFTDataset",)
# The same for all models; in this repository it has the fewest bytes. The T5 embedder names this command too.
FETCH_TEXT_ENCODER = (
    'hf download zai-org/CogVideoX-2b --include "text_encoder/*" --include "tokenizer/*" --local-dir {folder}'
)


def check_paths(settings: Settings) -> list[Problem]:
    """Everything that is missing on disk: data, weights, the text encoder, a place to save to, and what fits there."""
    problems = [*_data(settings), *_weights_to_load(settings), *_run_to_resume(settings), *_save(settings)]
    problems += _offload(settings)
    for key, value in leaves(settings.get("model") or {}, "model"):
        name = key.rpartition(".")[2]
        if isinstance(value, str) and name == "ckpt_path" and (what := _fault_of_path(Path(value))):
            problems.append(Problem(settings.source(key), key, what, _fetch(settings, value)))
        elif isinstance(value, str) and name == "model_dir" and not _is_text_encoder(value):
            what = f"there is no text encoder folder {value}{_from_here(value)}"
            remedy = _ours(value) or f"correct the path, or `{FETCH_TEXT_ENCODER.format(folder=shlex.quote(value))}`"
            problems.append(Problem(settings.source(key), key, what, remedy))
    return problems


def check_world(settings: Settings, world_size: int) -> list[Problem]:
    """Whether `model_parallel_size` divides the ranks and the attention heads, and goes with ZeRO's stage."""
    size = settings.get("args.model_parallel_size", 1)
    if not isinstance(size, int) or size < 1:
        return []
    where, key = settings.source("args.model_parallel_size"), "args.model_parallel_size"
    problems = []
    if world_size % size:
        remedy = f"start a multiple of {size} processes, or use {_divisors(world_size)}"
        problems.append(Problem(where, key, f"{size} does not divide the {world_size} ranks of this run", remedy))
    heads_key = "model.network_config.params.num_attention_heads"
    heads = settings.get(heads_key)
    if isinstance(heads, int) and heads % size:
        what = f"{size} does not divide the {heads} attention heads ({settings.source(heads_key)})"
        problems.append(Problem(where, key, what, f"use {_divisors(heads)}"))
    if size > 1 and settings.get("args.zero_stage") == 3:
        what = f"{size} cuts the weights, and so does ZeRO 3 ({settings.source('args.zero_stage')}): one of them only"
        remedy = "use `--zero-stage 2` with it, or ZeRO 3 with `--model-parallel-size 1`"
        problems.append(Problem(where, key, what, remedy))
    return problems


def check_mode(settings: Settings) -> Iterator[Problem]:
    """Whether training is what is asked for, and has weights to start from where it needs some."""
    mode, key = settings.get("args.mode"), "args.mode"
    if mode == "inference":
        what = "is inference, but train_video.py only trains"
        remedy = "draw videos with `python sample_video.py --base MODEL.yaml --prompt TEXT`, or set it to finetune"
        yield Problem(settings.source(key), key, what, remedy)
    if mode == "finetune" and not settings.get("args.load"):
        what = "is finetune, but no weights are named to start from"
        remedy = "add `--load WEIGHTS`; to train from scratch, `--mode pretrain`"
        yield Problem(settings.source(key), key, what, remedy)


def _data(settings: Settings) -> Iterator[Problem]:
    is_training = settings.get("args.mode") != "inference"
    if is_training and not settings.get("args.train_data"):
        where = settings.source("args") or "--base"
        yield Problem(where, "args.train_data", "no training data is named", "add `--train-data DIR`")
    if settings.get("data.target") not in FOLDER_DATASETS:
        return
    for name in ("train_data", "valid_data", "test_data"):
        key = f"args.{name}"
        folders = settings.get(key)
        for folder in folders if isinstance(folders, list) and is_training else ():
            what = _fault_of_clips(Path(str(folder)), settings.get("data.params.format", AUTO_FORMAT))
            if what:
                remedy = f"correct the path or fill it with {LAYOUT}"
                yield Problem(settings.source(key), key, what + _from_here(str(folder)), remedy)


def _fault_of_clips(place: Path, form: object) -> str | None:
    """Why there are no clips at `place`. An unknown form is the fault of another key, which is told where it stands."""
    return fault_of_place(place, form) if isinstance(form, str) and form in FORMATS else None


def _weights_to_load(settings: Settings) -> Iterator[Problem]:
    load = settings.get("args.load")
    if not isinstance(load, str):
        return
    if what := _fault_of_path(Path(load)):
        remedy = _fetch(settings, load) + "; or start from scratch with `args.load=null --mode pretrain`"
        yield Problem(settings.source("args.load"), "args.load", what, remedy)


def _fault_of_path(path: Path) -> str | None:
    """Why there are no weights to read at `path`, as far as names and first bytes tell."""
    if not path.exists():
        return f"there is no {path}{_from_here(str(path))}"
    if path.is_dir():
        return _fault_of_weights(path)
    if path.suffix not in WEIGHT_SUFFIXES:
        return f"{path} is not a weight file ({', '.join(WEIGHT_SUFFIXES)})"
    return _fault_of_files([path])


def _fault_of_files(files: Iterable[Path]) -> str | None:
    for path in files:
        try:
            fault = fault_of_file(path)
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
        if fault:
            return f"{path} {fault}"
    return None


def _fault_of_weights(folder: Path) -> str | None:
    """Why `cogvideox.checkpoint.reading` would find no weights in `folder`, or more than one set of them."""
    if (folder / "latest").is_file():
        return _fault_of_latest(folder)
    for pattern in FOLDER_FILES:
        files = sorted(folder.glob(pattern))
        if len(files) == 1 or files and pattern == MODEL_FILES:  # one for each model parallel rank
            shards = files if not pattern.endswith(".json") else sorted(folder.glob("*.safetensors"))
            return _fault_of_files(shards)
        if files and not pattern.endswith(".json"):
            return f"the folder {folder} holds {len(files)} weight files and no index of them: name one ({files[0]}, …)"
    what = f"the folder {folder} has neither `latest` (SAT) nor a .safetensors file or its index (diffusers)"
    inner = folder / "transformer"
    return what + (f", but {inner} may be meant" if inner.is_dir() and _fault_of_weights(inner) is None else "")


def _fault_of_latest(folder: Path) -> str | None:
    """What is wrong with a folder of checkpoints that has, or should have, `latest`."""
    latest = folder / "latest"
    if not latest.is_file():
        return f"{folder} has no `latest`, so no whole checkpoint"
    named = latest_text(latest)
    if fault := fault_of_latest(named):
        return f"{latest} {fault}"
    if files := sorted((folder / named).glob(MODEL_FILES)):
        return _fault_of_files(files)
    return f"{latest} names {named!r}, but {folder / named}/mp_rank_00_model_states.pt is not there"


def _offload(settings: Settings) -> Iterator[Problem]:
    """What is offloaded must be what a checkpoint can hold."""
    for part in ("offload_optimizer", "offload_param"):
        key = f"deepspeed.zero_optimization.{part}.device"
        if settings.get(key) == "nvme":
            what, remedy = "is nvme, whose files are not part of a checkpoint: the run could not resume", "use cpu"
            yield Problem(settings.source(key), key, what, remedy)


def _run_to_resume(settings: Settings) -> Iterator[Problem]:
    resume = settings.get("args.resume")
    if not isinstance(resume, str) or resume == AUTO:
        return
    folder = Path(resume)
    what = _fault_of_run(folder) if folder.is_dir() else f"there is no folder {resume}{_from_here(resume)}"
    if not resume:  # else it would be the current folder
        what = "is empty"
    if what:
        run = run_of(folder)
        have = ", ".join(path.name for path in checkpoints_of(run)) if run.is_dir() else ""
        named = f"{run}/N with N one of {have}" if have else "a run's folder or a checkpoint in it"
        remedy = f"give {named}, or `{AUTO}`"
        yield Problem(settings.source("args.resume"), "args.resume", what, remedy)


def _fault_of_run(folder: Path) -> str | None:
    """Why nothing can be resumed from a run's folder or a checkpoint in it, as far as names and first bytes tell."""
    if run_of(folder) != folder:
        return None
    if not (folder / "latest").is_file():
        if (folder / MANIFEST).is_file():
            return f"{folder} is a checkpoint with another name than its iteration: give it that one"
        saved = any((path / MANIFEST).is_file() for path in checkpoints_of(folder))
        return None if saved else f"{folder} holds no checkpoint: it has neither `latest` nor N/{MANIFEST}"
    return _fault_of_latest(folder)


def _is_text_encoder(name: str) -> bool:
    """A folder, or a model of the Hugging Face hub that lies in the local cache."""
    if Path(name).is_dir():
        return True
    cache = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface") / "hub"
    return name.count("/") == 1 and (Path(cache).expanduser() / f"models--{name.replace('/', '--')}").is_dir()


def _save(settings: Settings) -> Iterator[Problem]:
    save = settings.get("args.save")
    if not isinstance(save, str):
        return
    place = Path(save).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    is_fit = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    if not is_fit:
        why = "may not be written to" if place.is_dir() else "is not a folder"
        remedy = "name a folder that this user can write to with `--save DIR`"
        yield Problem(settings.source("args.save"), "args.save", f"cannot save to {save}: {place} {why}", remedy)


def _fetch(settings: Settings, path: str) -> str:
    """How to get a weight that is missing. Nothing is downloaded unasked."""
    command = f"python tools/fetch_weights.py {_published_name(settings)}"
    return _ours(path) or f"correct the path, or run `{command}`, which fetches the model and prints what to set"


def _ours(path: str) -> str | None:
    is_shipped = Path(path).absolute().is_relative_to(REPOSITORY / "assets")
    return "it belongs to this repository: get it back with `git checkout assets`" if is_shipped else None


def _published_name(settings: Settings) -> str:
    """The published model that a config's sizes are those of, as tools/fetch_weights.py calls it; 2B in doubt."""
    network = settings.get("model.network_config.params") or {}
    is_large, is_1_5 = network.get("hidden_size") == 3072, network.get("patch_size") == [2, 2, 2]
    name = "1.5-5b" if is_1_5 else "5b" if is_large else "2b"
    return name + ("-i2v" if network.get("in_channels") == 32 and name != "2b" else "")


def _from_here(path: str) -> str:
    return "" if Path(path).is_absolute() else f" (seen from {Path.cwd()})"


def _divisors(number: int) -> str:
    fitting = [str(each) for each in (1, 2, 3, 4, 6, 8, 16) if number % each == 0]
    return "one of " + ", ".join(fitting) if len(fitting) > 1 else fitting[0]
