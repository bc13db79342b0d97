"""One of two ranks of test_model_parallel.py, in a process forked from one that has everything imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cogvideox.transformer.model import DiffusionTransformer
from cogvideox.transformer.tensor_parallel import mpu, shard


def run(rank: int, folder: Path, config: dict[str, Any], inputs: dict[str, torch.Tensor]) -> None:
    """Load this rank's share of `state.pt`, run forward and backward, and write what came of it to `RANK.pt`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mpu.initialize_model_parallel(2)
    torch.manual_seed(3)
    model = DiffusionTransformer(**config)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    whole = torch.load(folder / "state.pt", weights_only=True)
    model.load_weights({name: shard(name, tensor, rank, 2) for name, tensor in whole.items()})
    out = model(**inputs)
    out.square().sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    torch.save({"out": out.detach(), "grads": grads, "fresh": fresh}, folder / f"{rank}.pt")
