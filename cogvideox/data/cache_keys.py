"""What an entry of the cache is named by: a digest of all that decides its content, so that no stale one is found."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av

from cogvideox.errors import UserError

DIGEST_BYTES = 16
READ_AT_ONCE = 2**20

ROOT = Path(__file__).resolve().parents[2]
# Our sources that decide what becomes of a clip, and of a caption.
CLIP_SOURCES = (
    "latent_cache.py",
    "cogvideox/conditioning/images.py",
    *(f"cogvideox/data/{name}.py" for name in ("looking", "containers", "reading", "sampling", "scaling", "pictures")),
    "cogvideox/data/clips.py",
    "cogvideox/vae/*.py",
    "cogvideox/checkpoint/vae_names.py",
)
TEXT_SOURCES = ("latent_cache.py", "cogvideox/conditioning/t5.py", "cogvideox/conditioning/t5_files.py")

# The files of a network: weights, settings, tokenizers.
NETWORK_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json", ".model")
# Of a folder with whole models, the parts that make a text encoder.
TEXT_PARTS = ("text_encoder", "tokenizer")

# A file that was changed so shortly before it was read may be changed again without a difference in its times.
SETTLED_AFTER_NS = 2_000_000_000

Identity = tuple[str, int, int, int, int]


class DigestMemo:
    """Content digests by path, size, times and inode, so that a file is read once as long as none of them changes.

    They are kept in a file of JSON lines in `folder`, to which several processes may add at once. Lines that are not
    whole are passed over. Threads may share one memo.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` is made where it is missing, by the first digest that is kept."""
        self.path = Path(folder) / "digests.jsonl"
        self._known: dict[Identity, str] = {}
        self._read_to = 0
        self._lock = threading.Lock()

    def find(self, identity: Identity) -> str | None:
        """The digest that was remembered, by this process or another."""
        with self._lock:
            if identity not in self._known:
                self._read_on()
            return self._known.get(identity)

    def remember(self, identity: Identity, digest: str) -> None:
        """Keep a digest. Where the file cannot be written to, for this process only."""
        content = [*identity, digest]
        line = json.dumps([*content, _check_of(content)]) + "\n"
        with self._lock:
            self._known[identity] = digest
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
                try:
                    os.write(descriptor, line.encode())  # one write, so that lines of several writers do not mix
                finally:
                    os.close(descriptor)
            except OSError:
                return

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.path.parent}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _read_on(self) -> None:
        """Take up the whole lines that were added since."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._read_to)
                added = file.read()
        except OSError:
            return
        whole = added[: added.rfind(b"\n") + 1]
        self._read_to += len(whole)
        self._known |= dict(_remembered(whole))


def file_digest(path: Path, memo: DigestMemo) -> str:
    """32 hex digits that decide a file's content. UserError: it cannot be read."""
    try:
        before = _identity(path)
        known = memo.find(before)
        if known is not None:
            return known
        now = time.time_ns()
        digest = _digest_of_content(path)
        is_settled = now - max(before[2:4]) > SETTLED_AFTER_NS
        if is_settled and _identity(path) == before:
            memo.remember(before, digest)
        return digest
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): --cache needs its content") from error


def folder_digest(paths: Sequence[Path], memo: DigestMemo) -> str:
    """32 hex digits that decide the content of a network's files: each of `paths`, and of folders among them those of
    weights, settings and tokenizers. Where the folders lie does not count, the names in them do.

    A folder of whole models counts as its text encoder and tokenizer. UserError: no such file, or an unreadable one.
    """
    try:
        files = [(name, file) for path in paths for name, file in sorted(_files_of(Path(path)))]
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}): --cache needs its content") from error
    if not files:
        raise UserError(f"no weights in {', '.join(map(str, paths))}: --cache needs the files of the encoders")
    return _digest_of_values([[name, file_digest(file, memo)] for name, file in files])


@cache
def transform_version() -> str:
    """A digest of the code that makes a latent of a clip: ours, and the versions of its libraries."""
    libraries = [version(package) for package in ("av", "pillow", "torch")]
    return _digest_of_values([_sources(CLIP_SOURCES), libraries, av.library_versions])


@cache
def text_version() -> str:
    """A digest of the code that makes an embedding of a caption: ours, and the versions of its libraries."""
    libraries = [version(package) for package in ("transformers", "tokenizers", "torch")]
    return _digest_of_values([_sources(TEXT_SOURCES), libraries])


def latent_key(
    video_digest: str,
    *,
    start_s: float,
    end_s: float,
    fps: float,
    frame_count: int,
    frames: int,
    size: tuple[int, int],
    place: tuple[float, float],
    mirrored: bool,
    vae_digest: str,
    dtype: str,
    autocasts: bool,
    kind: str = "clip",
) -> str:
    """The key of what a VAE makes of a clip: `frame_count` frames of a video from `start_s` on at `fps`, none of them
    after `end_s`, padded to `frames`, scaled to `size` (H, W) and cropped at `place`, mirrored or not; encoded with
    weights of `dtype`, under autocast or not. `kind` tells apart what is kept of it.
    """
    values = {
        "video": video_digest,
        "start_s": _rounded(start_s),
        "end_s": _rounded(end_s),
        "fps": float(fps),
        "frame_count": int(frame_count),
        "frames": int(frames),
        "size": [int(each) for each in size],
        "place": [float(each) for each in place],
        "mirrored": bool(mirrored),
        "vae": vae_digest,
        "dtype": str(dtype),
        "autocasts": bool(autocasts),
        "kind": kind,
        "version": transform_version(),
    }
    return _digest_of_values(["latent", values])


def prompt_key(text: str, *, encoder_digest: str, max_length: int, dtype: str) -> str:
    """The key of what a text encoder makes of `text`, padded or cut to `max_length` tokens."""
    values = {
        "text": text,
        "encoder": encoder_digest,
        "max_length": int(max_length),
        "dtype": str(dtype),
        "version": text_version(),
    }
    return _digest_of_values(["prompt", values])


def _rounded(seconds: float) -> float:
    return round(float(seconds), 6) + 0.0  # + 0.0: never -0.0


def _identity(path: Path) -> Identity:
    found = path.stat()
    return str(path.absolute()), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _digest_of_content(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    with path.open("rb") as file:
        while part := file.read(READ_AT_ONCE):
            digest.update(part)
    return digest.hexdigest()


def _digest_of_values(values: Any) -> str:
    """Of canonical JSON, in which a float is written so that it is read back as the same."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()


def _check_of(content: Sequence[Any]) -> str:
    return _digest_of_values(list(content))[:8]


def _remembered(lines: bytes) -> Iterator[tuple[Identity, str]]:
    for line in lines.splitlines():
        try:
            path, size, mtime_ns, ctime_ns, inode, digest, check = json.loads(line)
            if check == _check_of([path, size, mtime_ns, ctime_ns, inode, digest]):
                yield (path, size, mtime_ns, ctime_ns, inode), digest
        except (ValueError, TypeError, RecursionError):
            continue  # of a writer that was killed, or of two on a file system where their lines mix


def _files_of(path: Path) -> Iterator[tuple[str, Path]]:
    """The files that make up a network, by their names in its folder."""
    if not path.is_dir():
        yield path.suffix, path
        return
    parts = [path / name for name in TEXT_PARTS if (path / name).is_dir()] or [path]
    for part in parts:
        for file in part.iterdir():
            if file.suffix in NETWORK_SUFFIXES and file.is_file():
                yield file.relative_to(path).as_posix(), file


def _sources(patterns: Sequence[str]) -> list[list[str]]:
    """Name and digest of our source files that `patterns` name."""
    found = [sorted(ROOT.glob(pattern)) for pattern in patterns]
    assert all(found), f"a source file is missing of {patterns}"
    files = sorted(file for each in found for file in each)
    return [[file.relative_to(ROOT).as_posix(), _digest_of_content(file)] for file in files]
