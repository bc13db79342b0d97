# B batch, F frames, H W pixels, C latent channels, T latent frames, h w
"""Encode once, train often: what the VAE and the text encoder make of a data set goes to a cache, and samples from it.

The encoders are built only if something is missing, and let go before the transformer is built. What an entry is named
by is all that decides its content (`cogvideox.data.cache_keys`), so that a stale one is never found.
"""

from __future__ import annotations

import argparse
import gc
import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from cogvideox.checkpoint.reading import weight_files
from cogvideox.conditioning.images import noised_images
from cogvideox.conditioning.t5_files import T5Files, find_t5
from cogvideox.config import instantiate
from cogvideox.data.cache_filling import in_rounds, on_all, see_all
from cogvideox.data.cache_keys import DigestMemo, file_digest, folder_digest
from cogvideox.data.cache_store import CacheStore
from cogvideox.data.cached import CLIP, EMBEDDING, IMAGES, CachedClips, Encoders, Wanted
from cogvideox.data.checking import Unanswered, answer_all
from cogvideox.data.clips import Clip
from cogvideox.data.reading import UnreadableVideo
from cogvideox.data.scaling import to_clip
from cogvideox.errors import UserError
from cogvideox.parallel import current
from cogvideox.platform import autocast, current_device
from data_video import SFTDataset

logger = logging.getLogger(__name__)

IMAGE_NOISES = 8  # first frames with noise that are kept of each clip
PROMPTS_AT_A_TIME = 8
CreateDataset = Callable[[str, argparse.Namespace], Dataset]


def cached(create: CreateDataset, dtype: torch.dtype) -> CreateDataset:
    """`create_dataset_function`, whose data sets come from the cache in `args.cache`; what is missing is encoded."""
    return partial(_create, create, dtype)


def _create(create: CreateDataset, dtype: torch.dtype, path: str, args: argparse.Namespace) -> CachedClips:
    base = create(path, args)
    if not isinstance(base, SFTDataset):
        raise UserError(f"--cache goes with data_video.SFTDataset, not with {type(base).__name__}: leave --cache out")
    folder = Path(args.cache)
    store = CacheStore(folder, read_timeout_s=base.read_timeout_s)

    def look() -> tuple[list[str | None], Encoders]:
        memo = DigestMemo(folder)
        return _clip_digests(base, memo), encoders_of(args.model_config, memo, dtype)

    # Reading all clips once may take longer than a GPU collective waits.
    digests, encoders = current().host.on_first(look)
    clips = CachedClips(base, store, digests, encoders, args.cache_variants)
    fill(clips, args.model_config, dtype, args.num_workers)
    return clips


def encoders_of(config: Mapping[str, Any], memo: DigestMemo, dtype: torch.dtype) -> Encoders:
    """What decides an entry beside clip and caption. Raises UserError: a config whose inputs cannot be kept."""
    for key in ("latent_input", "lr_scale"):
        if config.get(key):
            raise UserError(f"model.{key} and --cache do not go together: leave one of them out")
    embedders = config["conditioner_config"]["params"]["emb_models"]
    if len(embedders) != 1 or embedders[0].get("input_key") != "txt" or embedders[0].get("is_trainable"):
        raise UserError(
            "--cache keeps what one frozen text encoder makes of `txt`; conditioner_config.params.emb_models lists "
            "something else: leave --cache out"
        )
    vae, text = _files_of(config)
    return Encoders(
        vae=folder_digest(vae, memo) + _digest_of_settings(config["first_stage_config"], "ckpt_path"),
        text=folder_digest([text.encoder, text.tokenizer], memo) + _digest_of_settings(embedders[0], "model_dir"),
        max_length=(embedders[0].get("params") or {}).get("max_length", 77),
        dtype=str(dtype),
        autocasts=not config.get("disable_first_stage_autocast", False),
        image_noises=IMAGE_NOISES if config.get("noised_image_input") else 0,
    )


def _files_of(config: Mapping[str, Any]) -> tuple[list[Path], T5Files]:
    """The files of the VAE's weights, and the folders of the text encoder. UserError: none, or not all of them."""
    vae = (config["first_stage_config"].get("params") or {}).get("ckpt_path")
    text = config["conditioner_config"]["params"]["emb_models"][0].get("params") or {}
    if vae is None or "model_dir" not in text:
        raise UserError("--cache needs a VAE with ckpt_path and a text encoder with model_dir in the config")
    return weight_files(vae), find_t5(text["model_dir"], text.get("cache_dir"))


def fill(clips: CachedClips, config: Mapping[str, Any], dtype: torch.dtype, workers: int = 0) -> dict[str, int]:
    """Encode what `clips` wants and its store has not, every rank its part; every rank must call this.

    Returns how many clips and captions of it were there, were encoded and failed, over all ranks. Raises UserError on
    all ranks: a mistake on one of them, or what was encoded is not to be seen on one of them.
    """
    world, host = current().world, current().host
    wanted, captions = host.on_first(lambda: _missing(clips, config))
    failed: list[str] = []
    if wanted or captions:
        own, own_captions = wanted[world.rank :: world.size], captions[world.rank :: world.size]
        most, most_parts = len(wanted[:: world.size]), -(-len(captions[:: world.size]) // PROMPTS_AT_A_TIME)
        failed = in_rounds(_fill_clips(clips, own, config, dtype, workers), most)
        in_rounds(_fill_captions(clips, own_captions, config, dtype), most_parts)
        on_all(clips.store.flush)
        failed = [key for of_rank in host.gather_objects(failed) for key in of_rank]
    see_all(clips, failed)
    return {"clips": len(wanted), "captions": len(captions), "failed": len(failed)}


def _missing(clips: CachedClips, config: Mapping[str, Any]) -> tuple[list[Wanted], list[tuple[str, str]]]:
    """The clips and the captions that are to be encoded, told in the log."""
    texts = clips.captions()
    wanted = {each.key: each for each in clips.wanted() if each.key not in clips.store}
    captions = [(key, text) for key, text in texts.items() if key not in clips.store]
    if wanted or captions:
        logger.info("%s: encoding %d clips and %d captions", clips.store.folder, len(wanted), len(captions))
    else:
        vae, text = _files_of(config)
        logger.info(
            "%s: all %d clips and %d captions are there; the VAE (%s of weights) and the text encoder (%s) are not "
            "loaded for them",
            *(clips.store.folder, clips.readable, len(texts)),
            *(_size_in_words(vae), _size_in_words(_weights_in(text.encoder))),
        )
    return list(wanted.values()), captions


def _weights_in(encoder: Path) -> list[Path]:
    """The weights among a text encoder's files; of the two forms that which transformers prefers."""
    return sorted(encoder.glob("*.safetensors")) or sorted(encoder.glob("*.bin"))


def _size_in_words(files: Sequence[Path]) -> str:
    total = sum(file.stat().st_size for file in files)
    return f"{total / 1e9:.1f} GB" if total >= 1e9 else f"{total / 1e6:.1f} MB"


class _Frames(Dataset):
    """The clips that are to be encoded, as they are trained on; None where one does not decode."""

    def __init__(self, clips: CachedClips, wanted: Sequence[Wanted]) -> None:
        self.clips, self.wanted = clips, wanted

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, place: int) -> tuple[Wanted, Tensor | None]:
        each = self.wanted[place]
        try:
            frames = self.clips.base.read(each.index, each.choices)
        except UnreadableVideo as error:
            logger.warning("%s %s: it is not cached", self.clips.base.clips[each.index].record.name, error)
            return each, None
        return each, to_clip(frames, self.clips.base.size_of(each.index).frames)


def _fill_clips(
    clips: CachedClips, wanted: Sequence[Wanted], config: Mapping[str, Any], dtype: torch.dtype, workers: int
) -> Generator[str | None, None, None]:
    """Encode and keep `wanted`. Gives None for each, or its key where it does not decode."""
    if not wanted:
        return
    loader = DataLoader(_Frames(clips, wanted), batch_size=None, num_workers=workers)
    with built(config["first_stage_config"], dtype) as vae:
        encode = partial(moments, vae, dtype, clips.encoders.autocasts)
        for each, clip in _progress(loader, "clips"):
            if clip is None:
                yield each.key
                continue
            entry = {CLIP: encode(clip[None])[0]}
            if clips.encoders.image_noises:
                entry[IMAGES] = torch.cat(list(_first_frames(clip[:1], each.key, clips.encoders.image_noises, encode)))
            clips.store.put(each.key, {name: tensor.cpu() for name, tensor in entry.items()})
            yield None


def _first_frames(frame: Tensor, key: str, count: int, encode: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """Moments (1,2C,1,h,w) of `frame` (1,3,H,W) with noise, `count` times, drawn by its key, and then without."""
    with torch.random.fork_rng():
        torch.manual_seed(int(key[:15], 16))
        noised = [noised_images(frame) for _ in range(count)]
    yield from (encode(each[:, None]) for each in (*noised, frame))


@torch.no_grad()
def moments(vae: Any, dtype: torch.dtype, autocasts: bool, clips: Tensor) -> Tensor:
    """Clips (B,F,3,H,W) → means and log variances (B,2C,T,h,w) of their posteriors, unscaled, as the engine's VAE gives
    them in training.
    """
    x = rearrange(clips.to(current_device(), dtype), "b f c h w -> b c f h w")
    with autocast(dtype if autocasts else None):
        posterior = vae.posterior(x)
    return torch.cat([posterior.mean, posterior.logvar], dim=1)


def _fill_captions(
    clips: CachedClips, captions: Sequence[tuple[str, str]], config: Mapping[str, Any], dtype: torch.dtype
) -> Generator[None, None, None]:
    """Encode and keep `captions`, a few at a time."""
    if not captions:
        return
    node = config["conditioner_config"]["params"]["emb_models"][0]
    with built({"target": node["target"], "params": node.get("params") or {}}, dtype) as embedder:
        parts = [captions[first : first + PROMPTS_AT_A_TIME] for first in range(0, len(captions), PROMPTS_AT_A_TIME)]
        for part in _progress(parts, "captions"):
            with torch.no_grad():
                embeddings = embedder([text for _, text in part])
            for (key, _), embedding in zip(part, embeddings, strict=True):
                clips.store.put(key, {EMBEDDING: embedding.cpu()})
            yield None


@contextmanager
def built(node: Mapping[str, Any], dtype: torch.dtype) -> Iterator[Any]:
    """A frozen network for the time of the block, in the run's dtype and place."""
    network = instantiate(node).eval().requires_grad_(False).to(dtype=dtype).to(current_device())
    try:
        yield network
    finally:
        del network
        gc.collect()


def _progress(items: Any, what: str) -> Any:
    return tqdm(items, desc=f"caching {what}", disable=current().world.rank != 0, mininterval=5)


def _clip_digests(base: SFTDataset, memo: DigestMemo) -> list[str | None]:
    """Of each clip's file; None of one that cannot be read any more."""

    def digest(clip: Clip) -> str | None:
        try:
            return file_digest(clip.video, memo)
        except UserError as error:
            logger.warning("%s", error)
            return None

    answers = answer_all(digest, base.clips)
    return [None if isinstance(each, Unanswered) else each for each in answers]


def _digest_of_settings(node: Mapping[str, Any], without: str) -> str:
    """What else the config says of a network, in words; where its file lies does not count."""
    params = {key: value for key, value in (node.get("params") or {}).items() if key != without}
    return f" {node['target']} {sorted(params.items(), key=lambda item: item[0])}"
