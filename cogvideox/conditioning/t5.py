"""Captions to T5 hidden states.

# B batch, N text tokens (max_length), D width
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cogvideox.checkpoint.safe_loading import load_safely
from cogvideox.conditioning.conditioner import Embedder
from cogvideox.conditioning.t5_files import T5Files, check_config, find_t5
from cogvideox.errors import UserError

logger = logging.getLogger(__name__)


class FrozenT5Embedder(Embedder):
    """T5's last hidden state of captions padded to `max_length`, without attention mask, as CogVideoX was trained.

    `model_dir` is a folder (see `t5_files.find_t5`); `device` is where to put it at once, by default it moves with its
    parent; `torch_dtype` is what to load it as, by default as it was saved; `cache_dir` is where Hub downloads lie.
    Raises UserError if it is missing or damaged; nothing is downloaded.
    """

    def __init__(
        self,
        model_dir: str,
        max_length: int = 77,
        device: str | None = None,
        freeze: bool = True,
        cache_dir: str | None = None,
        torch_dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    ) -> None:
        super().__init__()
        files = find_t5(model_dir, cache_dir)
        self.tokenizer = load_tokenizer(files)
        self.transformer = load_encoder(files, torch_dtype)
        self.max_length = max_length
        self.is_frozen = freeze
        self.empty_captions = 0
        self.truncated_captions = 0
        if device is not None:
            self.transformer.to(device)
        if freeze:
            self.requires_grad_(False).eval()

    def forward(self, captions: str | Sequence[str]) -> Tensor:
        """Hidden states (B,N,D) in the encoder's dtype, whatever autocast says."""
        texts = [captions] if isinstance(captions, str) else list(captions)
        token_ids = self.tokenize(texts).to(self.transformer.device)
        with (
            torch.autocast(token_ids.device.type, enabled=False),
            torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen),
        ):
            return self.transformer(input_ids=token_ids).last_hidden_state

    def tokenize(self, texts: list[str]) -> Tensor:
        """Token ids int64 (B,N), ended by `</s>`, padded or cut to `max_length`. Counts empty and cut captions."""
        token_ids = self.tokenizer(
            texts, truncation=True, max_length=self.max_length, padding="max_length", return_tensors="pt"
        ).input_ids
        full = (token_ids[:, -1] != self.tokenizer.pad_token_id).nonzero().flatten().tolist()
        self._count(texts, [texts[row] for row in full])
        return token_ids

    def train(self, mode: bool = True) -> FrozenT5Embedder:
        """Training mode, unless frozen: then it stays in evaluation mode."""
        super().train(mode and not self.is_frozen)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenT5Embedder:
        """Casts and moves, save that the feed-forward outputs stay float32 in half precision, where they overflow.

        transformers keeps them so when it loads a T5 as float16; a cast of the whole engine must not undo it.
        """
        super()._apply(fn, recurse)
        for name, module in self.transformer.named_modules():
            if name.endswith(".wo") and module.weight.dtype == torch.float16:
                module.float()
        return self

    def _count(self, texts: list[str], full: list[str]) -> None:
        empty = sum(not text.strip() for text in texts)
        cut = sum(len(self.tokenizer(text, verbose=False).input_ids) > self.max_length for text in full)
        if empty and not self.empty_captions:
            logger.warning("a caption is empty: its clip trains without text (more are counted, not reported)")
        if cut and not self.truncated_captions:
            logger.warning("a caption is longer than %d tokens and is cut: %.60s…", self.max_length, full[0])
        self.empty_captions += empty
        self.truncated_captions += cut


def load_tokenizer(files: T5Files) -> Any:
    """transformers' T5 tokenizer from disk. Raises UserError if its files are damaged."""
    from transformers import T5Tokenizer

    if not (files.tokenizer / "tokenizer.json").is_file():
        # transformers would report a missing reader of spiece.model as a missing `tiktoken`.
        require("sentencepiece", "sentencepiece")
        require("google.protobuf", "protobuf")
    try:
        return T5Tokenizer.from_pretrained(files.tokenizer, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"the T5 tokenizer in {files.tokenizer} cannot be read ({error}): fetch it again") from error


def load_encoder(files: T5Files, torch_dtype: str | None) -> Any:
    """transformers' T5 encoder from disk. Raises UserError if any weight is missing or damaged."""
    from safetensors import SafetensorError
    from transformers import T5EncoderModel

    check_config(files.encoder / "config.json")
    logger.info("loading the T5 encoder from %s", files.encoder)
    try:
        with quiet_progress():
            loaded: Any = T5EncoderModel.from_pretrained(
                files.encoder,
                local_files_only=True,
                dtype=torch_dtype or "auto",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except pickle.UnpicklingError as error:
        raise UserError(_refusal(files.encoder, error)) from error
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"the T5 encoder in {files.encoder} cannot be read ({error}): fetch it again") from error
    model, report = loaded
    faults = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if faults:
        raise UserError(
            f"the T5 encoder in {files.encoder} lacks {len(faults)} weights of its config.json, or has them in another "
            f"shape, {faults[0]} being the first: fetch it again"
        )
    return model


def _refusal(folder: Path, error: Exception) -> str:
    """Which of an encoder's .bin files asks for code, and how to convert it."""
    for path in sorted(folder.glob("*.bin")):
        try:
            load_safely(path, mmap=True)
        except UserError as refused:
            return str(refused)
    return f"the T5 encoder in {folder} cannot be read ({error}): fetch it again"


def require(module: str, package: str) -> None:
    """Raise UserError naming the PyPI `package` if `module` does not import."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"reading T5's spiece.model needs {package}: pip install {package}") from error


@contextlib.contextmanager
def quiet_progress() -> Iterator[None]:
    """No progress bars from transformers inside the block: every rank would draw its own."""
    from transformers.utils import logging as transformers_logging

    was_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            transformers_logging.enable_progress_bar()
