"""Old config files train. Truths: the reference's names of weights (reference), and that training starts from them.

The files are those of tests/config/old_configs.py. Laid over them: tiny sizes, the quickstart's VAE and text encoder,
and one iteration. The weights are a SAT folder of the reference's layout, with what its files hold beside our names.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from arguments import get_args
from cogvideox.config import instantiate
from tests.config.old_configs import OLD_MODELS, old_model, old_task
from tests.end_to_end.tiny import arguments, train_tiny, write

PREFIX = "model.diffusion_model."
ADAPTERS = 2 * 8  # layers × matrices: A and B for queries, keys, values and the output


def published_weights(folder: Path, network: dict[str, Any]) -> dict[str, Tensor]:
    """Save random weights as the reference does: `latest`, one file, a convolution's kernel, tables that no one reads.

    Returns the state dict by our names.
    """
    torch.manual_seed(0)
    network["params"]["modules"].pop("lora_config", None)  # published weights have no adapters
    state = {name: torch.randn_like(value) * 0.02 for name, value in instantiate(network).state_dict().items()}
    saved = dict(state)
    if isinstance(network["params"]["patch_size"], int):
        name = "mixins.patch_embed.proj.weight"
        channels, side = network["params"]["in_channels"], network["params"]["patch_size"]
        saved[name] = state[name].unflatten(1, (channels, side, side))
    if "Rotary" in network["params"]["modules"]["pos_embed_config"]["target"]:
        saved["transformer.position_embeddings.weight"] = torch.zeros(64, network["params"]["hidden_size"])
        saved["mixins.pos_embed.freqs_sin"] = torch.zeros(3)
    saved = {PREFIX + name: value.bfloat16() for name, value in saved.items()}
    saved |= {"first_stage_model.encoder.conv_in.conv.weight": torch.zeros(1)}
    (folder / "1000").mkdir(parents=True)
    (folder / "latest").write_text("1000")
    torch.save({"module": saved}, folder / "1000" / "mp_rank_00_model_states.pt")
    return state


@pytest.mark.parametrize("name", OLD_MODELS)
def test_an_old_config_trains_a_step_from_published_weights(tmp_path: Path, name: str) -> None:
    files = [write(tmp_path, "model", old_model(name)), write(tmp_path, "task", old_task(name))]
    network = get_args(arguments(tmp_path, *files, words=("args.load=null", "args.mode=pretrain"))).model_config[
        "network_config"
    ]
    before = published_weights(tmp_path / "weights", network)

    words = ("--train-iters", "1", "--log-interval", "1", "--load", str(tmp_path / "weights"))
    done = train_tiny(tmp_path, *files, words=words)

    assert done.status == 0, done.output[-3000:]
    assert len(done.losses) == 1 and math.isfinite(done.losses[0])
    assert done.metrics[0]["grad_norm"] > 0
    is_lora = name.endswith("_lora")
    assert f"; {ADAPTERS if is_lora else 0} adapters start anew" in done.output
    assert "stay random" not in done.output
    after = torch.load(done.checkpoint(1), map_location="cpu", weights_only=True)["module"]
    if is_lora:
        assert len(after) == ADAPTERS and all(".matrix_" in key for key in after)
        return
    trained = {key.removeprefix(PREFIX): value.float() for key, value in after.items()}
    for key, value in before.items():
        if key != "mixins.pos_embed.pos_embedding" or name.startswith("5b_i2v"):  # 2B's is a formula
            torch.testing.assert_close(trained[key], value, atol=1e-3, rtol=0)  # the values' deviation is 0.02
