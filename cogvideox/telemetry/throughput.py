# B batch, N text tokens, S video tokens, D width
"""How fast a run is and how much of the hardware it uses: FLOPs of the transformer, peaks of GPUs, rates."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from cogvideox.platform import peak_memory_bytes, reset_peak_memory

GIB = 1024**3
TERA = 1e12


@dataclass(frozen=True)
class ForwardFlops:
    """FLOPs of one forward pass; a multiply-add counts as two."""

    linear: float
    attention: float

    @property
    def total(self) -> float:
        return self.linear + self.attention


def transformer_flops(
    *,
    layers: int,
    hidden: int,
    heads: int,
    head_dim: int,
    text_tokens: int,
    video_tokens: int,
    time_embed_dim: int,
    text_hidden: int,
    patch_in: int,
    patch_out: int,
    batch: int = 1,
) -> ForwardFlops:
    """Matrix products of `DiffusionTransformer.forward`; norms, activations, rotary and LoRA adapters are left out.

    `patch_in` and `patch_out`: values in one patch, channels · pt · ph · pw. Attention is full, over N + S tokens.
    """
    tokens, inner = text_tokens + video_tokens, heads * head_dim
    per_token_of_a_layer = 3 * hidden * inner + inner * hidden + 2 * hidden * (4 * hidden)
    adaln_of_a_layer = time_embed_dim * 12 * hidden
    weights_times_rows = (
        layers * (tokens * per_token_of_a_layer + adaln_of_a_layer)
        + text_tokens * text_hidden * hidden
        + video_tokens * hidden * (patch_in + patch_out)
        + time_embed_dim * (hidden + time_embed_dim + 2 * hidden)
    )
    attention = layers * 2 * (2 * tokens**2 * inner)
    return ForwardFlops(linear=2.0 * batch * weights_times_rows, attention=float(batch * attention))


FULL_MULTIPLE = 3.0
"""A training step in forward passes: the backward pass differentiates by the input and by the weights."""

LORA_MULTIPLE = 2.0
"""The usual count for a frozen base, which is not differentiated by its weights.

Attention has no weights and costs 3 forwards either way, so that the MFU of a LoRA run is understated (by a fifth for
5B at 49×480×720), never overstated.
"""


def training_flops(forward: ForwardFlops, *, lora: bool = False) -> float:
    """Model FLOPs of one training step, the numerator of MFU (PaLM, Chowdhery et al. 2022, appendix B)."""
    return forward.total * (LORA_MULTIPLE if lora else FULL_MULTIPLE)


@dataclass(frozen=True)
class _Peak:
    """Dense TFLOP/s, tensor cores accumulating in float32 (what torch's matmul does). None: no such unit."""

    name: str
    bf16: float | None
    fp16: float
    tf32: float | None
    fp32: float


# The first pattern found in the device's name counts. Sources: NVIDIA's data sheets of each card, halved where they
# state sparsity; for GeForce and RTX cards the appendices of NVIDIA's GA102, Ada and Blackwell RTX whitepapers, row
# "Peak FP16 Tensor TFLOPS with FP32 Accumulate".
_PEAKS = (
    _Peak(r"\bB200\b", 2250.0, 2250.0, 1125.0, 75.0),
    _Peak(r"(H100|H200) NVL", 835.5, 835.5, 417.5, 60.0),
    _Peak(r"H100 PCIe", 756.5, 756.5, 378.0, 51.2),
    _Peak(r"(H100|H200|H800|GH200)\b", 989.4, 989.4, 494.7, 66.9),
    _Peak(r"H20\b", 148.0, 148.0, 74.0, 44.0),
    _Peak(r"(A100|A800)\b", 312.0, 312.0, 156.0, 19.5),
    _Peak(r"A40\b", 149.7, 149.7, 74.8, 37.4),
    _Peak(r"A30\b", 165.0, 165.0, 82.0, 10.3),
    _Peak(r"A10G\b", 70.0, 70.0, 35.0, 35.0),
    _Peak(r"A10\b", 125.0, 125.0, 62.5, 31.2),
    _Peak(r"L40S\b", 362.05, 362.05, 183.0, 91.6),
    _Peak(r"L40\b", 181.05, 181.05, 90.5, 90.5),
    _Peak(r"L4\b", 121.0, 121.0, 60.0, 30.3),
    _Peak(r"RTX 6000 Ada", 364.2, 364.2, 182.1, 91.1),
    _Peak(r"RTX A6000$", 154.8, 154.8, 77.4, 38.7),
    _Peak(r"RTX 5090$", 209.5, 209.5, 104.8, 104.8),
    _Peak(r"RTX 4090$", 165.2, 165.2, 82.6, 82.6),
    _Peak(r"RTX 4080$", 97.5, 97.5, 48.7, 48.7),
    _Peak(r"RTX 3090 Ti$", 80.0, 80.0, 40.0, 40.0),
    _Peak(r"RTX 3090$", 71.0, 71.0, 35.6, 35.6),
    _Peak(r"V100S", None, 130.0, None, 16.4),
    _Peak(r"V100-SXM", None, 125.0, None, 15.7),
    _Peak(r"V100-PCIE", None, 112.0, None, 14.0),
    _Peak(r"\bT4\b", None, 65.0, None, 8.1),
)


def peak_flops(device_name: str, dtype: torch.dtype, *, tf32: bool = False) -> float | None:
    """Peak dense FLOP/s of one GPU, by the name that the driver gives it; None for a CPU, a MIG slice, the unknown.

    `tf32`: float32 products may use TensorFloat-32, as `torch.set_float32_matmul_precision("high")` allows.
    """
    if "MIG" in device_name or "Laptop" in device_name:
        return None
    peak = next((row for row in _PEAKS if re.search(row.name, device_name)), None)
    if peak is None:
        return None
    by_dtype = {
        torch.bfloat16: peak.bf16,
        torch.float16: peak.fp16,
        torch.float32: peak.tf32 if tf32 and peak.tf32 is not None else peak.fp32,
    }
    tera = by_dtype.get(dtype)
    return None if tera is None else tera * TERA


class Throughput:
    """Rates between two log lines, from what this rank counted. `peak`: FLOP/s of one device, None where unknown.

    Every data parallel rank is taken to do the same work as this one; the ranks of a model parallel group share it.
    """

    def __init__(self, peak: float | None = None, *, data_ranks: int = 1, model_ranks: int = 1) -> None:
        self._peak, self._data_ranks, self._model_ranks = peak, data_ranks, model_ranks
        self._clear()

    def add(
        self,
        *,
        wall_s: float,
        samples: int,
        tokens: int,
        data_wait_s: float = 0.0,
        model_flops: float = 0.0,
        iterations: int = 1,
    ) -> None:
        """Count some iterations: training time only (no evaluation, no saving), and this rank's samples and tokens.

        `tokens`: text and video tokens that went through the transformer. `model_flops`: `training_flops` of all of it.
        """
        self._wall_s += wall_s
        self._data_wait_s += data_wait_s
        self._samples += samples
        self._tokens += tokens
        self._model_flops += model_flops
        self._iterations += iterations

    def drain(self) -> dict[str, float]:
        """The rates since the last call, named as in metrics.jsonl; what cannot be known is left out.

        Samples and tokens a second are of all ranks together, `model_tflops` and `mfu` of one device, and
        `peak_memory_gib` is this rank's since the last call (on a CPU: since the process began).
        """
        assert self._iterations > 0 and self._wall_s > 0, "nothing was counted since the last log line"
        rates = {
            "seconds_per_iteration": self._wall_s / self._iterations,
            "samples_per_second": self._samples * self._data_ranks / self._wall_s,
            "tokens_per_second": self._tokens * self._data_ranks / self._wall_s,
            "data_wait_fraction": self._data_wait_s / self._wall_s,
            "peak_memory_gib": peak_memory_bytes() / GIB,
        }
        if self._model_flops:
            achieved = self._model_flops / self._model_ranks / self._wall_s
            rates["model_tflops"] = achieved / TERA
            if self._peak is not None:
                rates["mfu"] = achieved / self._peak
        reset_peak_memory()
        self._clear()
        return rates

    def _clear(self) -> None:
        self._wall_s = self._data_wait_s = self._model_flops = 0.0
        self._samples = self._tokens = self._iterations = 0
