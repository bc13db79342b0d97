"""Files that a config names, looked at before torch is imported. Truth: what the later reader accepts (reference)."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cogvideox.config import preflight
from cogvideox.errors import UserError

Run = Callable[..., argparse.Namespace]
SHARD, INDEX = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json"


@pytest.mark.parametrize(
    "files",
    [
        ("latest", "1/mp_rank_00_model_states.pt"),
        ("latest",),
        ("mp_rank_00_model_states.pt",),
        ("mp_rank_01_model_states.pt",),
        ("3d-vae.pt",),
        ("diffusion_pytorch_model.bin",),
        ("weights.pt",),
        (SHARD,),
        ("config.json", SHARD),
        ("config.json",),
        ("a.safetensors", "b.safetensors"),
        (INDEX, SHARD, "b.safetensors"),
        ("transformer/config.json", f"transformer/{SHARD}"),
        (),
    ],
)
def test_a_folder_of_weights_is_accepted_exactly_if_the_reader_reads_it(tmp_path: Path, files: tuple[str, ...]) -> None:
    import torch
    from safetensors.torch import save_file

    from cogvideox.checkpoint.reading import read_state_dict

    for name in files:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        if name.endswith((".pt", ".bin")):
            torch.save({"module": {"w": torch.zeros(1)}}, file)
        elif name.endswith(".safetensors"):
            save_file({"w": torch.zeros(1)}, file)
        else:
            file.write_text("1" if name == "latest" else json.dumps({"weight_map": {"w": SHARD}}))
    try:
        is_readable = bool(read_state_dict(tmp_path))
    except UserError:
        is_readable = False
    assert (preflight._fault_of_weights(tmp_path) is None) == is_readable


def test_the_transformer_inside_a_diffusers_folder_is_named(run: Run, place: Path) -> None:
    import torch
    from safetensors.torch import save_file

    (place / "whole/transformer").mkdir(parents=True)
    save_file({"w": torch.zeros(1)}, place / f"whole/transformer/{SHARD}")
    with pytest.raises(UserError, match=f"{place}/whole/transformer may be meant"):
        run("--load", f"{place}/whole")
    assert run("--load", f"{place}/whole/transformer").load == f"{place}/whole/transformer"


def test_the_command_that_fetches_the_text_encoder_is_that_of_its_reader(run: Run) -> None:
    from cogvideox.conditioning.t5_files import FETCH

    assert preflight.FETCH_TEXT_ENCODER == FETCH
    with pytest.raises(UserError) as caught:
        run("model.conditioner_config.params.emb_models.0.params.model_dir=/nowhere")
    assert FETCH.format(folder="/nowhere") in str(caught.value)
