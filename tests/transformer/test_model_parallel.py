"""Truth: identity. Two model-parallel ranks compute what one does: output, every gradient, fresh weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.transformer.tensor_parallel import DIVIDED, merge, shard
from tests.end_to_end.warm_start import warm_context
from tests.transformer import model_parallel_worker, tiny


def run_two_ranks(folder: Path, state: dict[str, torch.Tensor], lora: bool, recompute: bool) -> list[dict[str, Any]]:
    torch.save(state, folder / "state.pt")
    divided = {"model_parallel_size": 2, "checkpoint_activations": recompute}
    config = tiny.config(lora={"r": 4, "lora_alpha": 2.0} if lora else None, transformer_args=divided)
    ranks = [
        warm_context().Process(target=model_parallel_worker.run, args=(rank, folder, config, tiny.inputs()))
        for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
        rank.kill()
    assert [rank.exitcode for rank in ranks] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize(("lora", "recompute"), [(False, True), (True, False)], ids=["full", "lora"])
def test_two_ranks_equal_one(tmp_path: Path, lora: bool, recompute: bool) -> None:
    torch.manual_seed(3)
    one = tiny.DiffusionTransformer(**tiny.config(lora={"r": 4, "lora_alpha": 2.0} if lora else None))
    fresh = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    tiny.fill_randomly(one)
    out = one(**tiny.inputs())
    out.square().sum().backward()
    ranks = run_two_ranks(tmp_path, one.state_dict(), lora, recompute)
    for rank in ranks:
        torch.testing.assert_close(rank["out"], out.detach(), rtol=1e-4, atol=1e-4)
    for name, parameter in one.named_parameters():
        shards = [rank["grads"][name] for rank in ranks]
        if not any(name.endswith(ending) for ending, _, _ in DIVIDED):
            assert torch.equal(*shards), f"{name} is whole on each rank, but its gradients differ"
        limit = 1e-4 * max(1.0, float(parameter.grad.abs().max()))
        torch.testing.assert_close(merge(name, shards), parameter.grad, rtol=0, atol=limit, msg=name)
    for name, tensor in fresh.items():
        assert torch.equal(merge(name, [rank["fresh"][name] for rank in ranks]), tensor), name


def test_shard_and_merge_are_inverse() -> None:
    for lora in (None, {"r": 4}):
        for name, tensor in tiny.model(lora=lora).state_dict().items():
            assert torch.equal(merge(name, [shard(name, tensor, rank, 2) for rank in range(2)]), tensor)


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="does not divide by 2"):
        shard("mlp.dense_h_to_4h.bias", torch.zeros(5), 0, 2)
