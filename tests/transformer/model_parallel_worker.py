"""One of two ranks of test_model_parallel.py: loads its shard, runs forward and backward, saves what it got.

python model_parallel_worker.py RANK STORE STATE RESULT LORA CHECKPOINT
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist

from cogvideox.transformer.tensor_parallel import mpu, shard
from tests.transformer import tiny


def main(rank: int, store: str, state: str, result: str, lora: bool, recompute: bool) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mpu.initialize_model_parallel(2)
    torch.manual_seed(3)
    model = tiny.DiffusionTransformer(
        **tiny.config(
            lora={"r": 4, "lora_alpha": 2.0} if lora else None,
            transformer_args={"model_parallel_size": 2, "checkpoint_activations": recompute},
        )
    )
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    whole = torch.load(state, weights_only=True)
    model.load_weights({name: shard(name, tensor, rank, 2) for name, tensor in whole.items()})
    out = model(**tiny.inputs())
    out.square().sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    torch.save({"out": out.detach(), "grads": grads, "fresh": fresh}, result)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(int(arguments[0]), *arguments[1:4], arguments[4] == "True", arguments[5] == "True")
