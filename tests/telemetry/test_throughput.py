"""Truth: golden values (the published models' FLOPs, data sheets) and identities (torch's own FLOP counter, rates)."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cogvideox.telemetry.throughput import (
    ForwardFlops,
    Throughput,
    peak_flops,
    training_flops,
    transformer_flops,
)

TWO_B = {"layers": 30, "hidden": 1920, "heads": 30, "patch_in": 64, "patch_out": 64}
FIVE_B = {"layers": 42, "hidden": 3072, "heads": 48, "patch_in": 64, "patch_out": 64}
ONE_POINT_FIVE = {**FIVE_B, "patch_in": 128, "patch_out": 128}


@pytest.mark.parametrize(
    ("model", "text_tokens", "video_tokens", "linear", "attention"),
    [
        (TWO_B, 226, 17_550, 47, 73),
        (FIVE_B, 226, 17_550, 169, 163),
        (ONE_POINT_FIVE, 224, 44_880, 429, 1050),
    ],
    ids=["2b", "5b", "1.5"],
)
def test_published_models(model: dict, text_tokens: int, video_tokens: int, linear: int, attention: int) -> None:
    sizes = {"head_dim": 64, "time_embed_dim": 512, "text_hidden": 4096}
    flops = transformer_flops(**model, **sizes, text_tokens=text_tokens, video_tokens=video_tokens)
    assert flops.linear / 1e12 == pytest.approx(linear, abs=1)
    assert flops.attention / 1e12 == pytest.approx(attention, abs=1)


class Products(nn.Module):
    """The matrix products of a transformer with expert AdaLN, and nothing else of it."""

    def __init__(self, layers: int, hidden: int, time_embed_dim: int, text_hidden: int, patch: int) -> None:
        super().__init__()
        self.text_proj, self.proj = nn.Linear(text_hidden, hidden), nn.Linear(patch, hidden)
        self.time_embed = nn.Sequential(nn.Linear(hidden, time_embed_dim), nn.Linear(time_embed_dim, time_embed_dim))
        self.adaln = nn.ModuleList([nn.Linear(time_embed_dim, 12 * hidden) for _ in range(layers)])
        self.qkv = nn.ModuleList([nn.Linear(hidden, 3 * hidden) for _ in range(layers)])
        self.dense = nn.ModuleList([nn.Linear(hidden, hidden) for _ in range(layers)])
        self.mlp = nn.ModuleList(
            [nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)) for _ in range(layers)]
        )
        self.final_adaln, self.final = nn.Linear(time_embed_dim, 2 * hidden), nn.Linear(hidden, patch)

    def forward(self, text: torch.Tensor, video: torch.Tensor, time: torch.Tensor, heads: int) -> torch.Tensor:
        x = torch.cat([self.text_proj(text), self.proj(video)], dim=1)
        embedded = self.time_embed(time)
        for adaln, qkv, dense, mlp in zip(self.adaln, self.qkv, self.dense, self.mlp, strict=True):
            adaln(embedded)
            q, k, v = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in qkv(x).chunk(3, dim=-1))
            x = dense((q @ k.transpose(-1, -2) @ v).transpose(1, 2).flatten(2))
            x = mlp(x)
        self.final_adaln(embedded)
        return self.final(x[:, text.shape[1] :])


def test_equal_to_the_products_that_torch_counts() -> None:
    model = Products(layers=3, hidden=32, time_embed_dim=24, text_hidden=20, patch=12)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 5, 20), torch.zeros(2, 14, 12), torch.zeros(2, 32), heads=4)
    flops = transformer_flops(
        layers=3,
        hidden=32,
        heads=4,
        head_dim=8,
        text_tokens=5,
        video_tokens=14,
        time_embed_dim=24,
        text_hidden=20,
        patch_in=12,
        patch_out=12,
        batch=2,
    )
    assert flops.total == counter.get_total_flops()


def test_multiples_of_a_training_step() -> None:
    forward = ForwardFlops(linear=10.0, attention=5.0)
    assert training_flops(forward) == 45.0
    assert training_flops(forward, lora=True) == 30.0


@pytest.mark.parametrize(
    ("name", "dtype", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", torch.bfloat16, 312),
        ("NVIDIA A100 80GB PCIe", torch.float16, 312),
        ("NVIDIA A100-PCIE-40GB", torch.float32, 19.5),
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989.4),
        ("NVIDIA H100 PCIe", torch.bfloat16, 756.5),
        ("NVIDIA H100 NVL", torch.bfloat16, 835.5),
        ("NVIDIA H200", torch.bfloat16, 989.4),
        ("NVIDIA H20", torch.bfloat16, 148),
        ("NVIDIA RTX A6000", torch.bfloat16, 154.8),
        ("NVIDIA RTX 6000 Ada Generation", torch.bfloat16, 364.2),
        ("NVIDIA L40S", torch.bfloat16, 362.05),
        ("NVIDIA L40", torch.bfloat16, 181.05),
        ("NVIDIA L4", torch.bfloat16, 121),
        ("NVIDIA A10G", torch.bfloat16, 70),
        ("NVIDIA A10", torch.bfloat16, 125),
        ("NVIDIA A40", torch.bfloat16, 149.7),
        ("NVIDIA GeForce RTX 4090", torch.bfloat16, 165.2),
        ("NVIDIA GeForce RTX 3090", torch.bfloat16, 71),
        ("NVIDIA GeForce RTX 3090 Ti", torch.bfloat16, 80),
        ("Tesla V100-SXM2-16GB", torch.float16, 125),
        ("Tesla V100-PCIE-32GB", torch.float16, 112),
        ("Tesla T4", torch.float16, 65),
    ],
)
def test_peaks_of_the_data_sheets(name: str, dtype: torch.dtype, tera: float) -> None:
    assert peak_flops(name, dtype) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("cpu", torch.bfloat16),
        ("Some Future GPU", torch.bfloat16),
        ("Tesla V100-SXM2-16GB", torch.bfloat16),  # no such unit
        ("Tesla T4", torch.bfloat16),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", torch.bfloat16),  # a slice of it
        ("NVIDIA GeForce RTX 4090 Laptop GPU", torch.bfloat16),  # another chip
        ("NVIDIA GeForce RTX 4090 D", torch.bfloat16),
        ("NVIDIA RTX A4000", torch.bfloat16),  # not an A40
        ("NVIDIA A100-SXM4-80GB", torch.float64),
    ],
)
def test_no_peak_is_guessed(name: str, dtype: torch.dtype) -> None:
    assert peak_flops(name, dtype) is None


def test_tf32_counts_where_it_is_allowed() -> None:
    assert peak_flops("NVIDIA A100-SXM4-80GB", torch.float32, tf32=True) == pytest.approx(156e12)
    assert peak_flops("Tesla T4", torch.float32, tf32=True) == pytest.approx(8.1e12)


def test_rates_of_an_interval() -> None:
    # Four data parallel ranks of two model parallel ones each; five iterations in two additions.
    throughput = Throughput(peak=1e12, data_ranks=4, model_ranks=2)
    throughput.add(wall_s=4.0, data_wait_s=0.5, samples=4, tokens=400, model_flops=4e12, iterations=2)
    throughput.add(wall_s=6.0, data_wait_s=0.5, samples=6, tokens=600, model_flops=6e12, iterations=3)
    rates = throughput.drain()
    assert rates.pop("peak_memory_gib") > 0
    assert rates == pytest.approx(
        {
            "seconds_per_iteration": 2.0,
            "samples_per_second": 4.0,
            "tokens_per_second": 400.0,
            "data_wait_fraction": 0.1,
            "model_tflops": 0.5,
            "mfu": 0.5,
        }
    )


def test_draining_starts_a_new_interval_and_the_unknown_is_left_out() -> None:
    throughput = Throughput()
    throughput.add(wall_s=1.0, samples=1, tokens=10, model_flops=1e12)
    assert "mfu" not in throughput.drain()
    throughput.add(wall_s=0.5, samples=1, tokens=10)
    rates = throughput.drain()
    assert rates["seconds_per_iteration"] == 0.5
    assert "model_tflops" not in rates
    with pytest.raises(AssertionError):
        throughput.drain()
