"""One forward of a transformer on fixed noise: what it computes, in a few hundred numbers.

# B batch, T latent frames, C channels, h w latent size, N text tokens, D width of the text states
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

SEED = 20240806
TIMESTEP = 500
TOKENS = (2, 2, 3)  # time, height, width: at most
TEXT_TOKENS = 16  # where the config does not say


def fixed_inputs(network: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Noise (1,T,C,h,w), timestep (1,) and text states (1,N,D), float32, from `network_config.params` alone.

    They are of the smallest size that has neighbours along every axis, and no larger than the tables of positions.
    """
    pt, ph, pw = patch_of(network)
    frames = (network["num_frames"] - 1) // network["time_compressed_rate"] + 1
    largest = (frames // pt, network["latent_height"] // ph, network["latent_width"] // pw)
    t, h, w = (max(1, min(pair)) for pair in zip(TOKENS, largest, strict=True))
    modules = network["modules"]
    text_tokens = (modules["pos_embed_config"].get("params") or {}).get("text_length") or TEXT_TOKENS
    text_width = modules["patch_embed_config"]["params"]["text_hidden_size"]
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(1, t * pt, network["in_channels"], h * ph, w * pw, generator=generator)
    context = torch.randn(1, text_tokens, text_width, generator=generator)
    return x, torch.tensor([TIMESTEP]), context


def why_not_fixed(network: Mapping[str, Any]) -> str | None:
    """Why there are no `fixed_inputs` for a network with these params, as of another target; None if there are."""
    try:
        fixed_inputs(network)
    except KeyError as error:
        return f"its params have no {error.args[0]}, from which the shapes of its inputs would follow"
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        return f"the shapes of its inputs do not follow from its params ({error})"
    if "transformer_args" not in network:
        return "its params have no transformer_args"
    return None


def patch_of(network: Mapping[str, Any]) -> tuple[int, int, int]:
    """`patch_size` as (time, height, width)."""
    size = network["patch_size"]
    return (1, size, size) if isinstance(size, int) else tuple(size)


@torch.no_grad()
def fixed_forward(model: Callable[..., Tensor], network: Mapping[str, Any], device: torch.device) -> Tensor:
    """The v (1,T,C_out,h,w) that the network's wrapper gives for `fixed_inputs`, float32 on the CPU.

    Not compiled, so that a run with `compile_model` does not see another shape for this.
    """
    x, t, context = (tensor.to(device) for tensor in fixed_inputs(network))
    with torch.compiler.set_stance("force_eager"):
        return model(x, t, {"crossattn": context}).float().cpu()


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖; NaN where one of them is not finite."""
    scale = torch.linalg.vector_norm(expected.double())
    return float(torch.linalg.vector_norm(found.double() - expected.double()) / scale.clamp_min(1e-30))
