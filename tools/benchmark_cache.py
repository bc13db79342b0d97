"""What `--cache` saves: steps and peak memory of train_video.py with and without it. A part of tools/benchmark.py.

Text encoder and VAE have the shapes of real ones and random weights; the transformer is as small as is asked for.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from transformers import T5Config, T5EncoderModel

from cogvideox.config import instantiate
from tools.benchmark_sizes import SIZES, TEXT_ENCODERS
from tools.benchmark_step import ROOT, WARM_UP_STEPS, run, step_config, summarize_steps, train, write_clip

TOKENIZER = ROOT / "assets" / "quickstart" / "t5"
VOCABULARY = 32128
DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def write_text_encoder(folder: Path, name: str, dtype: torch.dtype) -> dict[str, Any]:
    """A T5 v1.1 encoder of the published shape `name` with random weights; gives its parameters and width."""
    width, inner, layers, heads = TEXT_ENCODERS[name]
    config = T5Config(
        vocab_size=VOCABULARY, d_model=width, d_ff=inner, d_kv=64, num_layers=layers, num_heads=heads,
        feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False,
    )  # fmt: skip
    model = T5EncoderModel(config).to(dtype)
    model.save_pretrained(folder)
    for file in ("spiece.model", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / file, folder / file)
    return {"parameters": sum(each.numel() for each in model.parameters()), "width": width}


def write_vae(path: Path, params: dict[str, Any]) -> int:
    """Random weights of the quickstart's VAE with other `params`; gives its number of parameters."""
    quickstart = OmegaConf.load(ROOT / "configs" / "quickstart.yaml").model.first_stage_config
    node: Any = OmegaConf.to_container(OmegaConf.merge(quickstart, {"params": params}), resolve=True)
    state = instantiate(node).state_dict()
    torch.save(state, path)
    return sum(each.numel() for each in state.values())


def cache_config(folder: Path, args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, int]]:
    """A config of train_video.py with both encoders' files in `folder`, and the encoders' parameters."""
    size = SIZES[args.model]
    config = step_config(folder, size, args.dtype, args.runs + WARM_UP_STEPS)
    config["args"]["valid_data"] = None  # evaluations need a VAE in spite of the cache
    text = write_text_encoder(folder / "t5", args.text_encoder, DTYPE[args.dtype])
    network = config["model"]["network_config"]["params"]
    network["modules"]["patch_embed_config"]["params"]["text_hidden_size"] = text["width"]
    (embedder,) = config["model"]["conditioner_config"]["params"]["emb_models"]
    embedder["params"]["model_dir"] = str(folder / "t5")
    coder = {"params": {"ch": args.vae_channels, "ch_mult": [1, 2, 2, 4], "num_res_blocks": 3}}
    vae = config["model"]["first_stage_config"]["params"]
    vae |= {"encoder_config": coder, "decoder_config": coder}
    counts = {"text_encoder": text["parameters"], "vae": write_vae(folder / "vae.pt", vae)}
    vae["ckpt_path"] = str(folder / "vae.pt")
    return config, counts


def benchmark_cache(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One result: the same steps without and with a cache that was filled before."""
    with tempfile.TemporaryDirectory(prefix="benchmark-cache-") as name:
        folder = Path(name)
        torch.manual_seed(0)
        write_clip(folder / "data", SIZES[args.model])
        config, parameters = cache_config(folder, args)
        without = summarize_steps(train(folder, config, args))
        start = time.perf_counter()
        run(["tools/cache_latents.py", "--base", str(folder / "step.yaml"), "--cache", str(folder / "cache")], args)
        fill_s = time.perf_counter() - start
        config["args"]["cache"] = str(folder / "cache")
        cached = summarize_steps(train(folder, config, args))
    settings = {name: getattr(args, name) for name in ("model", "dtype", "text_encoder", "vae_channels")}
    saved = without["peak_memory_gib"] - cached["peak_memory_gib"]
    result = settings | {
        "parameters": parameters,
        "without": without,
        "cached": cached,
        "fill_s": fill_s,
        "memory_saved_gib": saved,
        "steps_over": without["median_s"] / cached["median_s"],
    }
    for kind in ("without", "cached"):
        print(f"{kind:8} {result[kind]['median_s']:8.3f} s a step, peak {result[kind]['peak_memory_gib']:.2f} GiB")
    print(f"a cached step is {result['steps_over']:.2f}× as fast and takes {saved:.2f} GiB less")
    return [result]
