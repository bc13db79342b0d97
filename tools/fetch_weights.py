"""Fetch a published CogVideoX model from the Hugging Face hub into $COGVIDEOX_WEIGHTS, and check what arrived.

    python tools/fetch_weights.py --list
    python tools/fetch_weights.py 5b             # the diffusers package; prints the flags that make a config read it
    python tools/fetch_weights.py 5b --sat       # and converts it to where configs/cogvideox_5b.yaml looks by itself

Run it again after an interruption: it goes on where it stopped. Every file's size and hash are held against the hub's
list. The text encoder is the same for all models and fetched once. Where the hub cannot be reached, it says what to
place where, and exits with status 2.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import cogvideox  # noqa: E402, F401  (ends here if packages are missing)  # isort: skip

from tqdm import tqdm  # noqa: E402

from cogvideox.checkpoint.published import MODELS, Published  # noqa: E402
from cogvideox.conditioning.t5_files import find_t5  # noqa: E402
from cogvideox.errors import UserError  # noqa: E402
from tools.convert_description import training_config  # noqa: E402

VARIABLE = "COGVIDEOX_WEIGHTS"
NETWORKS = ("transformer/*", "vae/*")
TEXT_ENCODER = ("text_encoder/*", "tokenizer/*")
TEXT_ENCODER_FROM = "2b"  # its package has the smallest copy, in float16
CHUNK_BYTES = 2**24


@dataclass(frozen=True)
class Places:
    """Where a model's config looks for its weights."""

    transformer: Path
    vae: Path
    text_encoder: Path


@dataclass(frozen=True)
class Download:
    """Files of one repository, by pattern, and the folder that they go to."""

    repository: str
    patterns: tuple[str, ...]
    folder: Path

    def __str__(self) -> str:
        return "\n".join(
            f"  https://huggingface.co/{self.repository}: {pattern} → {self.folder / pattern.rstrip('*')}"
            for pattern in self.patterns
        )


@dataclass(frozen=True)
class HubFile:
    """A file as the hub lists it: `sha256` of large files, git's `sha1` of small ones."""

    name: str
    bytes: int
    sha256: str | None
    sha1: str | None


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits with status 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", choices=MODELS, metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--list", action="store_true", help="the models, their packages and configs")
    parser.add_argument("--sat", action="store_true", help="convert to SAT's layout, which the configs read")
    parser.add_argument("--weights", type=Path, metavar="DIR", help=f"[${VARIABLE}, else weights/ in this repository]")
    args = parser.parse_args(arguments)
    if (args.model is None) == (not args.list):
        parser.error("give a model or --list")
    return args


def places(model: Published) -> Places:
    """Read from the model's config, below $COGVIDEOX_WEIGHTS."""
    config = training_config([str(ROOT / "configs" / model.config)])
    node = config["model"]
    embedder = node["conditioner_config"]["params"]["emb_models"][0]["params"]
    vae = node["first_stage_config"]["params"]["ckpt_path"]
    return Places(Path(config["args"]["load"]), Path(vae), Path(embedder["model_dir"]))


def downloads(model: Published, weights: Path, where: Places) -> list[Download]:
    """What is to be fetched: both networks, and the text encoder where there is none yet."""
    wanted = [Download(model.repository, NETWORKS, weights / model.repository.partition("/")[2])]
    try:
        find_t5(str(where.text_encoder))
    except UserError:
        wanted.append(Download(MODELS[TEXT_ENCODER_FROM].repository, TEXT_ENCODER, where.text_encoder))
    return wanted


def fetch(download: Download, otherwise: str) -> Iterator[str]:
    """Fetch what is not there yet and check all of it.

    UserError: no connection (`otherwise` says how to do without), no room, or a damaged file.
    """
    from httpx import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        revision, files = hub_files(download)
        _check_room(download.folder, files)
        snapshot_download(
            download.repository,
            revision=revision,
            allow_patterns=list(download.patterns),
            local_dir=download.folder,
        )
    except (OSError, HTTPError, HFValidationError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{download.repository} could not be fetched ({type(error).__name__}: {reason})\n"
            f"Run this again, it goes on where it stopped. Or {otherwise}"
        ) from error
    check(download.folder, files)
    total = sum(file.bytes for file in files)
    yield f"{download.folder}: {len(files)} files of {download.repository}, {total / 1e9:.1f} GB, complete and unharmed"


def hub_files(download: Download) -> tuple[str, list[HubFile]]:
    """The commit that is current now, and the files of it that match. UserError: there are none."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(download.repository, files_metadata=True)
    files = [
        _hub_file(sibling)
        for sibling in info.siblings or []
        if any(fnmatch(sibling.rfilename, pattern) for pattern in download.patterns)
        and ".." not in Path(sibling.rfilename).parts  # what does not match its list entry is removed
    ]
    if not files:
        raise UserError(f"{download.repository} has no files {' or '.join(download.patterns)}")
    return str(info.sha), files


def _hub_file(sibling: Any) -> HubFile:
    sha256 = sibling.lfs.sha256 if sibling.lfs is not None else None
    return HubFile(sibling.rfilename, sibling.size or 0, sha256, None if sha256 else sibling.blob_id)


def _check_room(folder: Path, files: list[HubFile]) -> None:
    paths = {file: folder / file.name for file in files}
    missing = sum(file.bytes for file, path in paths.items() if not path.is_file() or path.stat().st_size != file.bytes)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free, {missing / 1e9:.1f} GB are to be fetched: "
            "make room, or choose another --weights"
        )


def check(folder: Path, files: list[HubFile]) -> None:
    """UserError: files are missing or not those of the hub; damaged ones are removed, so that they are fetched anew."""
    total = sum(file.bytes for file in files)
    wrong = []
    with tqdm(total=total, unit="B", unit_scale=True, desc="checking", disable=None) as bar:
        for file in files:
            path = folder / file.name
            if not path.is_file():
                wrong.append(f"{file.name} is missing")
            elif path.stat().st_size != file.bytes:
                wrong.append(f"{file.name} has {path.stat().st_size:,} bytes of {file.bytes:,}")
                path.unlink()
            elif not _has_hash(path, file, bar):
                wrong.append(f"{file.name} has another hash than on the hub")
                path.unlink()
    if wrong:
        raise UserError(f"{folder}: " + "; ".join(wrong) + ". Run this again to fetch them anew")


def _has_hash(path: Path, file: HubFile, bar: Any) -> bool:
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.bytes, usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest() == (file.sha256 or file.sha1 or digest.hexdigest())


def conversions(package: Path, where: Places) -> list[tuple[Path, Path]]:
    """The networks of a package, and where the config looks for each in SAT's layout."""
    return [(package / "transformer", where.transformer), (package / "vae", where.vae)]


def by_hand(wanted: list[Download], next_steps: str) -> str:
    """What to place where without the hub, and how to go on."""
    return "place these by hand:\n" + "\n".join(map(str, wanted)) + f"\nand then, {next_steps}"


def convert(args: argparse.Namespace, package: Path, where: Places) -> Iterator[str]:
    """The package's networks in SAT's layout where the config looks for them; what is there already stays."""
    from tools import convert_checkpoint

    for source, target in conversions(package, where):
        if target.exists():
            yield f"{target} is there already: not converted again"
            continue
        command = [str(source), str(target), "--to", "sat"]
        yield from convert_checkpoint.convert(convert_checkpoint.parse(command))
    setting = f"{VARIABLE}={shlex.quote(str(_weights(args)))}"
    yield f"configs/{MODELS[args.model].config} reads these as it is, with {setting}"


def flags(model: Published, package: Path, weights: Path) -> str:
    """How to train from a diffusers package."""
    vae = f"model.first_stage_config.params.ckpt_path={package / 'vae'}"
    return (
        f"to train from these:\n  export {VARIABLE}={shlex.quote(str(weights))}\n"
        f"  python train_video.py --base configs/{model.config} configs/{model.task} --train-data DIR \\\n"
        f"    --load {shlex.quote(str(package / 'transformer'))} {shlex.quote(vae)}"
    )


def _weights(args: argparse.Namespace) -> Path:
    return Path(args.weights or os.environ.get(VARIABLE) or ROOT / "weights").expanduser().resolve()


def run(args: argparse.Namespace) -> Iterator[str]:
    """Do what the command line asks for, and tell what was done. UserError: it cannot be done."""
    if args.list:
        yield from (f"{name:<12}{model.repository:<32}configs/{model.config}" for name, model in MODELS.items())
        return
    model, weights = MODELS[args.model], _weights(args)
    os.environ[VARIABLE] = str(weights)  # the configs read it
    where = places(model)
    wanted = downloads(model, weights, where)
    package = wanted[0].folder
    last = flags(model, package, weights)
    if args.sat:
        commands = [shlex.join(map(str, pair)) for pair in conversions(package, where)]
        last = "\n".join(
            ["to convert:", *(f"  python tools/convert_checkpoint.py {each} --to sat" for each in commands)]
        )
    for download in wanted:
        yield from fetch(download, by_hand(wanted, last))
    if args.sat:
        yield from convert(args, package, where)
    else:
        yield last


def main(arguments: list[str] | None = None) -> int:
    """Fetch; the exit status is 0, or 2 for what cannot be fetched."""
    args = parse(arguments)
    try:
        for line in run(args):
            print(line, flush=True)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
