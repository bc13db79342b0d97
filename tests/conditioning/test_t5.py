"""FrozenT5Embedder on the quickstart's real tokenizer and encoder, against transformers and sentencepiece."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from transformers import T5EncoderModel, T5Tokenizer

from cogvideox.conditioning.t5 import FrozenT5Embedder
from cogvideox.config import instantiate
from cogvideox.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
T5 = ROOT / "assets" / "quickstart" / "t5"
CAPTIONS = ["A red bus waits behind a gray stone wall.", "Two children run.", ""]


@pytest.fixture(scope="module")
def embedder() -> FrozenT5Embedder:
    return FrozenT5Embedder(str(T5), max_length=24)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(T5, tmp_path / "t5"))


def test_equals_transformers_own_call(embedder):
    """Truth: reference. Bit-equal to T5EncoderModel with max_length padding and no attention mask."""
    tokenizer = T5Tokenizer.from_pretrained(T5)
    encoder = T5EncoderModel.from_pretrained(T5).eval()
    ids = tokenizer(CAPTIONS, padding="max_length", truncation=True, max_length=24, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = encoder(input_ids=ids).last_hidden_state
    assert expected.shape == (3, 24, 64) and torch.equal(embedder(CAPTIONS), expected)
    assert torch.equal(embedder(CAPTIONS[0]), embedder(CAPTIONS)[:1])


def test_padding_is_not_masked(embedder):
    """Truth: identity. The pad tokens' states depend on the caption: attention runs over them too."""
    states = embedder(CAPTIONS)
    assert (states[0, -1] - states[1, -1]).abs().max() > 0.1


def test_tokenizer_round_trip(embedder):
    """Truth: reference (sentencepiece's own ids) and round trip to text, for all captions of the quickstart."""
    reader = sentencepiece.SentencePieceProcessor(model_file=str(T5 / "spiece.model"))
    captions = [path.read_text().strip() for path in sorted((T5.parent / "clips" / "labels").glob("*.txt"))]
    for text in [*captions, "50% off: #1 {cheap} ~ <b>?", "  two   spaces "]:
        ids = embedder.tokenizer(text).input_ids
        assert ids == [*reader.encode(text), 1]
        assert embedder.tokenizer.decode(ids, skip_special_tokens=True).strip() == " ".join(text.split())


def test_padding_and_truncation(embedder):
    """Truth: golden layout. Ids, `</s>` (1), then pads (0); a long caption keeps its beginning and ends with `</s>`."""
    words = " ".join(["bus"] * 40)
    short, long = embedder.tokenize(["A red bus.", words])
    n = len(embedder.tokenizer("A red bus.").input_ids)
    assert short.shape == (24,) and short[n - 1] == 1 and (short[n:] == 0).all() and (short[:n] != 0).all()
    assert long[-1] == 1 and long[:-1].tolist() == embedder.tokenizer(words).input_ids[:23]


def test_empty_and_cut_captions_are_counted_and_reported_once(caplog):
    """Truth: identity. A caption that fits exactly is not cut."""
    embedder = FrozenT5Embedder(str(T5), max_length=24)
    text = "x" * 200
    fits = embedder.tokenizer.decode(embedder.tokenizer(text).input_ids[:23])
    assert len(embedder.tokenizer(fits).input_ids) == 24
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            embedder(["", "  \n", text, fits, "a bus"])
    assert (embedder.empty_captions, embedder.truncated_captions) == (4, 2)
    assert len([record for record in caplog.records if "empty" in record.message]) == 1
    assert len([record for record in caplog.records if "is cut" in record.message]) == 1


def test_frozen_in_every_mode():
    """Truth: identity. No gradient, no dropout after `.train()`; `freeze: false` has both."""
    frozen = FrozenT5Embedder(str(T5), max_length=24).train()
    assert not any(module.training for module in frozen.modules())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert not frozen(CAPTIONS).requires_grad and torch.equal(frozen(CAPTIONS), frozen(CAPTIONS))
    free = FrozenT5Embedder(str(T5), max_length=24, freeze=False).train()
    free(CAPTIONS).sum().backward()
    assert free.transformer.training and free.transformer.shared.weight.grad is not None


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_dtype_is_the_encoders_own_under_autocast(name):
    """Truth: identity. The loaded dtype decides; autocast around the call changes nothing."""
    dtype = getattr(torch, name)
    embedder = FrozenT5Embedder(str(T5), max_length=24, torch_dtype=name)
    plain = embedder(CAPTIONS)
    assert plain.dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(embedder(CAPTIONS), plain)
        whole = FrozenT5Embedder(str(T5), max_length=24)(CAPTIONS)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(plain.float(), whole, rtol=0, atol=0.15)
    assert embedder.float()(CAPTIONS).dtype == torch.float32


def test_old_config_binds_and_names_weights_like_the_reference():
    """Truth: reference config and weight names (`conditioner.embedders.0.transformer.…`)."""
    conditioner = instantiate(
        {
            "target": "sgm.modules.GeneralConditioner",
            "params": {
                "emb_models": [
                    {
                        "is_trainable": False,
                        "input_key": "txt",
                        "ucg_rate": 0.1,
                        "target": "sgm.modules.encoders.modules.FrozenT5Embedder",
                        "params": {"model_dir": str(T5), "max_length": 226},
                    }
                ]
            },
        }
    )
    assert conditioner({"txt": ["a bus"]})["crossattn"].shape == (1, 226, 64)
    assert all(name.startswith("embedders.0.transformer.") for name in conditioner.state_dict())
    assert "embedders.0.transformer.encoder.block.0.layer.0.SelfAttention.q.weight" in conditioner.state_dict()


def test_diffusers_folder(folder, tmp_path):
    """Truth: round trip. `text_encoder/` and `tokenizer/` side by side give the same states as one flat folder."""
    root = tmp_path / "diffusers"
    for part, names in {
        "text_encoder": ("config.json", "model.safetensors"),
        "tokenizer": ("spiece.model", "tokenizer_config.json"),
    }.items():
        (root / part).mkdir(parents=True)
        for name in names:
            shutil.copy(folder / name, root / part / name)
    split = FrozenT5Embedder(str(root), max_length=24)
    assert torch.equal(split(CAPTIONS), FrozenT5Embedder(str(T5), max_length=24)(CAPTIONS))


def test_tokenizer_json_is_enough(folder, embedder):
    """Truth: round trip. transformers' own tokenizer.json in place of spiece.model gives the same ids."""
    embedder.tokenizer.save_pretrained(folder)
    (folder / "spiece.model").unlink()
    assert torch.equal(FrozenT5Embedder(str(folder), max_length=24).tokenize(CAPTIONS), embedder.tokenize(CAPTIONS))


def assert_refused(model_dir: Any, *wanted: str) -> None:
    with pytest.raises(UserError) as caught:
        FrozenT5Embedder(str(model_dir), max_length=24)
    for text in wanted:
        assert text in str(caught.value)


def test_missing_folder_is_named_with_the_command_that_fetches_it(tmp_path):
    """Truth: the message has the path, what was looked for and the command. Nothing is downloaded."""
    fetch = 'hf download zai-org/CogVideoX-2b --include "text_encoder/*" --include "tokenizer/*" --local-dir'
    path = tmp_path / "nowhere"
    assert_refused(path, str(path), "no such folder", f"{fetch} {path}")
    assert_refused("t5-v1_1-xxl", "`t5-v1_1-xxl`", "local cache", f"{fetch} t5-v1_1-xxl")
    assert_refused("google/t5-v1_1-xxl", "`google/t5-v1_1-xxl`", "local cache", fetch)
    file = tmp_path / "file"
    file.touch()
    assert_refused(file, str(file), "not a folder")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "spiece.model"])
def test_incomplete_folder_is_named(folder, name):
    """Truth: the message names the file that is missing."""
    (folder / name).unlink()
    assert_refused(folder, str(folder), name, "hf download")


def test_missing_shard_is_named(folder):
    """Truth: the message names the shard that the index lists and the folder lacks."""
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"shared.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(folder, "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text("{")
    assert_refused(folder, "model.safetensors.index.json: not an index of weight shards")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "spiece.model"])
def test_truncated_files_are_named(folder, name):
    """Truth: a half-downloaded file is our kind of error, naming the folder."""
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    assert_refused(folder, str(folder), "cannot be read")


def test_weights_that_do_not_fit_the_config_are_refused(folder):
    """Truth: transformers would fill the missing layer with random numbers."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_layers": 3}))
    assert_refused(folder, "lacks 9 weights")
    (folder / "config.json").write_text(json.dumps(config | {"d_ff": 64}))
    assert_refused(folder, "in another shape")


def test_missing_reader_is_named(monkeypatch):
    """Truth: the message has the pip install line."""
    import sys

    for module, package in (("sentencepiece", "sentencepiece"), ("google.protobuf", "protobuf")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            assert_refused(T5, f"pip install {package}")


def test_different_captions_differ_clearly(embedder):
    """Truth: identity. Captions differ by more than half of a state's norm, a single word by a tenth."""
    texts = ["A red bus waits.", "A red bus stops.", "Two children climb over a wall.", "Smoke rises into the sky."]
    states = embedder(texts).flatten(1)
    distance = torch.cdist(states, states) / states.norm(dim=1).mean()
    assert distance[0, 1] > 0.1 and distance[2, 3] > 0.5 and (distance[:2, 2:] > 0.5).all()


def test_quickstart_asset_is_what_its_script_writes(tmp_path, embedder):
    """Truth: round trip. Two runs write the same bytes; weights and tokenizer pieces are those in the repository."""
    from tools.quickstart_t5 import write

    first, second = tmp_path / "first", tmp_path / "second"
    write(first)
    write(second)
    names = sorted(path.name for path in T5.iterdir())
    assert names == sorted(path.name for path in first.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    written = FrozenT5Embedder(str(first), max_length=24)
    assert written.tokenizer.get_vocab() == embedder.tokenizer.get_vocab()
    assert torch.equal(written(CAPTIONS), embedder(CAPTIONS))
    assert sum(path.stat().st_size for path in T5.iterdir()) < 1_000_000


def test_a_cast_to_half_keeps_the_overflowing_linears_in_float32_as_transformers_does(folder):
    """Truth: reference. The dtypes that transformers gives a T5 loaded as float16."""
    ours = FrozenT5Embedder(str(folder), max_length=16).half()
    theirs = T5EncoderModel.from_pretrained(folder, dtype=torch.float16)
    dtypes = {name: parameter.dtype for name, parameter in theirs.named_parameters()}
    assert {name: parameter.dtype for name, parameter in ours.transformer.named_parameters()} == dtypes
    assert {dtype for name, dtype in dtypes.items() if ".wo." in name} == {torch.float32}
