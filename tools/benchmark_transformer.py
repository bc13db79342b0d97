# B batch, T latent frames, C channels, H W, N text tokens, D width
"""Time the transformer's forward and backward, alone or in turns with diffusers'. A part of tools/benchmark.py."""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import Any

import torch

from cogvideox import platform
from cogvideox.checkpoint.transformer_names import to_diffusers
from cogvideox.errors import UserError
from cogvideox.transformer.model import DTYPES, DiffusionTransformer
from tools.benchmark_sizes import HEAD_SIZE, LATENT_CHANNELS, SIZES, Size, network_params

GIB = 1024**3

Network = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Case:
    """One thing to time."""

    model: str
    dtype: str
    rotary: bool
    checkpointing: bool
    device: str

    @property
    def size(self) -> Size:
        return SIZES[self.model]


def build_ours(case: Case) -> DiffusionTransformer:
    """Our model with weights from seed 0, none of them zero."""
    torch.manual_seed(0)
    params = network_params(case.size, case.rotary, case.checkpointing, case.size.text_width)
    with torch.device(case.device):
        model = DiffusionTransformer(**params, dtype=case.dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.01)
    return model


def inputs_of(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latent (1, T, C, H, W), text states (1, N, D), timestep (1,)."""
    frames, rows, columns = case.size.latent
    like: dict[str, Any] = {"dtype": DTYPES[case.dtype], "device": case.device}
    latent = torch.randn(1, frames, LATENT_CHANNELS, rows, columns, **like)
    text = torch.randn(1, case.size.text_tokens, case.size.text_width, **like)
    return latent, text, torch.tensor([500], device=case.device)


def ours(case: Case) -> tuple[torch.nn.Module, Network]:
    """Our model and a call of its forward."""
    model = build_ours(case)
    latent, text, timestep = inputs_of(case)
    return model, lambda: model(latent, timesteps=timestep, context=text)


def diffusers(case: Case) -> tuple[torch.nn.Module, Network]:
    """diffusers' class of the same size and weights; raises UserError where the package is missing."""
    if importlib.util.find_spec("diffusers") is None:
        raise UserError("--against diffusers needs the package: pip install diffusers")
    from diffusers import CogVideoXTransformer3DModel
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    size, (frames, rows, columns) = case.size, case.size.latent
    with torch.device(case.device):
        model: Any = CogVideoXTransformer3DModel(
            num_attention_heads=size.heads,
            attention_head_dim=HEAD_SIZE,
            time_embed_dim=size.time_embed,
            text_embed_dim=size.text_width,
            num_layers=size.layers,
            sample_width=columns,
            sample_height=rows,
            sample_frames=size.frames,
            max_text_seq_length=size.text_tokens,
            spatial_interpolation_scale=1.0,
            use_rotary_positional_embeddings=case.rotary,
        )
    torch.nn.Module.to(model, DTYPES[case.dtype])
    model.load_state_dict(to_diffusers(build_ours(case).state_dict(), (1, 2, 2)))
    if case.checkpointing:
        model.enable_gradient_checkpointing()
    grid = (rows // 2, columns // 2)
    rotary = None
    if case.rotary:
        rotary = get_3d_rotary_pos_embed(HEAD_SIZE, ((0, 0), grid), grid, frames, device=torch.device(case.device))
    latent, text, timestep = inputs_of(case)
    return model, lambda: model(latent, text, timestep, image_rotary_emb=rotary, return_dict=False)[0]


CONTESTANTS = {"ours": ours, "diffusers": diffusers}


def time_once(model: torch.nn.Module, network: Network) -> float:
    """Seconds for one forward and backward."""
    model.zero_grad(set_to_none=True)
    platform.synchronize()
    start = time.perf_counter()
    network().float().square().mean().backward()
    platform.synchronize()
    return time.perf_counter() - start


def peak_gib(name: str, case: Case) -> float:
    """Peak memory of one forward and backward; call it in a process of its own, since a CPU's peak cannot be reset."""
    model, network = CONTESTANTS[name](case)
    platform.reset_peak_memory()
    time_once(model, network)
    return platform.peak_memory_bytes() / GIB


def time_in_turns(case: Case, names: list[str], runs: int) -> dict[str, Any]:
    """A B A B ...: medians, memory, and the ratio of ours to the other (below 1: ours is faster)."""
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = pool.starmap(peak_gib, [(name, case) for name in names], chunksize=1)
    built = {name: CONTESTANTS[name](case) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for run in range(runs + 1):
        for name in names:
            taken = time_once(*built[name])
            if run > 0:
                seconds[name].append(taken)
    result: dict[str, Any] = {
        name: {"median_s": statistics.median(seconds[name]), "seconds": seconds[name], "peak_memory_gib": peak}
        for name, peak in zip(names, peaks, strict=True)
    }
    if len(names) == 2:
        mine, theirs = (seconds[name] for name in names)
        result["ratio"] = statistics.median(mine) / statistics.median(theirs)
        result["median_ratio_of_neighbours"] = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
    return result


def benchmark_transformer(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One result for each dtype."""
    names = ["ours"] + ([args.against] if args.against else [])
    device = args.device or str(platform.current_device())
    rotary = SIZES[args.model].rotary if args.positions is None else args.positions == "rotary"
    results = []
    for dtype in args.dtype:
        case = Case(args.model, dtype, rotary, args.checkpointing, device)
        result = asdict(case) | time_in_turns(case, names, args.runs)
        results.append(result)
        for name in names:
            one = result[name]
            title = f"{args.model} {dtype} {'rotary' if rotary else 'sincos'} on {device}"
            print(f"{title}: {name:9} {one['median_s']:.3f} s, peak {one['peak_memory_gib']:.2f} GiB")
        if "ratio" in result:
            neighbours = result["median_ratio_of_neighbours"]
            print(f"  ours / {args.against}: {result['ratio']:.3f} (neighbours {neighbours:.3f})")
    return results
