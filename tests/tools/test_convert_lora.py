"""convert_checkpoint.py for LoRA adapters: into the weights, out to PEFT's layout, and back.

Truths checked: reference (diffusers' `load_lora_weights` and its classes compute what our adapted model computes),
identity (merged equals adapted), round trip (to the bit where alpha / r is a power of two), golden messages.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel
from safetensors import safe_open
from safetensors.torch import save_file

from cogvideox.checkpoint.loading import read_starting_weights
from cogvideox.checkpoint.lora_names import from_peft
from cogvideox.checkpoint.opening import open_weights
from cogvideox.checkpoint.reading import read_state_dict
from cogvideox.transformer.lora import is_adapter
from tests.checkpoint.files import LORA, adapters_folder, assert_equal, plain, run_folder, sat_folder
from tests.tools.test_convert_checkpoint import convert, network, refused
from tests.transformer import five

PLAIN = "base"


def adapters_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if is_adapter(name)}


def twin_from(folder: Path) -> CogVideoXTransformer3DModel:
    twin = CogVideoXTransformer3DModel.from_pretrained(folder, low_cpu_mem_usage=False)
    twin.norm_out.norm.eps = 1e-6
    return twin


def pipeline_with(twin: CogVideoXTransformer3DModel, lora: Path) -> CogVideoXPipeline:
    pipeline = CogVideoXPipeline(tokenizer=None, text_encoder=None, vae=None, transformer=twin, scheduler=None)
    pipeline.load_lora_weights(lora)
    return pipeline


def assert_same_output(twin: CogVideoXTransformer3DModel, model: Any, name: str) -> None:
    inputs = five.tiny_inputs(five.KINDS[name])
    with torch.no_grad():
        assert (five.run_twin(twin, **inputs) - model(**inputs)).abs().max() <= 1e-5


@pytest.mark.parametrize("name", five.KINDS)
def test_diffusers_loads_exported_adapters(tmp_path: Path, name: str) -> None:
    model = adapters_folder(tmp_path / "run", name, base=None)
    base = sat_folder(tmp_path / PLAIN, plain(model))
    convert(tmp_path / "run", tmp_path / "lora", "--lora", "export")
    convert(base, tmp_path / "diffusers", "--base", tmp_path / "run" / "training_config.yaml")
    twin = twin_from(tmp_path / "diffusers")
    before = five.run_twin(twin, **five.tiny_inputs(five.KINDS[name])).detach()
    pipeline_with(twin, tmp_path / "lora")
    assert_same_output(twin, model, name)
    inputs = five.tiny_inputs(five.KINDS[name])
    assert (five.run_twin(twin, **inputs) - before).abs().max() > 0.01


@pytest.mark.parametrize("lora", [{"r": 3, "lora_alpha": 0.7}, {"r": 8}, {"r": 4, "layer_range": [1]}], ids=str)
def test_any_rank_alpha_and_number_of_layers(tmp_path: Path, lora: dict[str, Any]) -> None:
    model = adapters_folder(tmp_path / "run", "5B", base=None, lora=lora)
    base = sat_folder(tmp_path / PLAIN, plain(model))
    convert(tmp_path / "run", tmp_path / "lora.safetensors", "--lora", "export")
    convert(base, tmp_path / "diffusers", "--base", tmp_path / "run" / "training_config.yaml")
    twin = twin_from(tmp_path / "diffusers")
    pipeline_with(twin, tmp_path / "lora.safetensors")
    assert_same_output(twin, model, "5B")


@pytest.mark.parametrize("kind", ["adapters", "whole"])
@pytest.mark.parametrize("base_layout", ["SAT", "diffusers"])
def test_merged_weights_compute_what_adapters_do(tmp_path: Path, kind: str, base_layout: str) -> None:
    model = five.tiny_model(five.KINDS["5B-I2V"], LORA)
    base = sat_folder(tmp_path / PLAIN, plain(model))
    if kind == "adapters":
        adapters_folder(tmp_path / "run", "5B-I2V", base=base)
    else:
        run_folder(tmp_path / "run", "5B-I2V", LORA)
    options: list[Any] = []
    if base_layout == "diffusers":
        convert(base, tmp_path / "base2", "--base", tmp_path / "run" / "training_config.yaml")
        options = ["--base-weights", tmp_path / "base2"]
    convert(tmp_path / "run", tmp_path / "diffusers", "--lora", "merge", *options)
    assert_same_output(twin_from(tmp_path / "diffusers"), model, "5B-I2V")
    convert(tmp_path / "run", tmp_path / "sat", "--lora", "merge", "--to", "sat", *options)
    model.mixins["lora"].merge_lora()
    assert_equal(network(tmp_path / "sat"), model.state_dict())


def test_base_weights_take_the_place_of_those_in_the_checkpoint(tmp_path: Path) -> None:
    model: Any = run_folder(tmp_path / "run", "5B", LORA)
    other = {name: tensor + 1 for name, tensor in plain(model).items()}
    base = sat_folder(tmp_path / PLAIN, other)
    convert(tmp_path / "run", tmp_path / "out", "--lora", "merge", "--to", "sat", "--base-weights", base)
    model.load_state_dict({n: t if is_adapter(n) else t + 1 for n, t in model.state_dict().items()})
    model.mixins["lora"].merge_lora()
    assert_equal(network(tmp_path / "out"), model.state_dict())


@pytest.mark.parametrize("lowest", ["plain", "whole"])
def test_the_newest_of_several_adapters_counts(tmp_path: Path, lowest: str) -> None:
    """As `read_chain` loads them: into the same place, one after another."""
    model: Any = five.tiny_model(five.KINDS["5B"], LORA)
    if lowest == "plain":
        base = sat_folder(tmp_path / PLAIN, plain(model))
    else:
        base = sat_folder(tmp_path / PLAIN, {n: t * 3 if is_adapter(n) else t for n, t in model.state_dict().items()})
    older = {name: tensor * 2 for name, tensor in adapters_of(model).items()}
    sat_folder(tmp_path / "older", older, adapters_only=True, base_weights=str(base))
    adapters_folder(tmp_path / "run", "5B", base=tmp_path / "older")
    convert(tmp_path / "run", tmp_path / "out", "--lora", "merge", "--to", "sat")
    model.mixins["lora"].merge_lora()
    assert_equal(network(tmp_path / "out"), model.state_dict())


def test_bases_that_lead_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = adapters_folder(tmp_path / "run", "5B", base=None)
    out, base = tmp_path / "out", sat_folder(tmp_path / PLAIN, plain(model))
    convert(tmp_path / "run", tmp_path / "lora", "--lora", "export")
    for kind, source in (("merge", "run"), ("import", "lora")):
        message = refused(capsys, tmp_path / source, out, "--lora", kind, "--base-weights", tmp_path / "nowhere")
        assert "nowhere: no such weight file or folder" in message
    assert "goes with --lora merge" in refused(
        capsys, tmp_path / "run", out, "--lora", "export", "--base-weights", base
    )
    imported = (tmp_path / "lora", base, "--lora", "import", "--force", "--base-weights", base)
    assert "--base-weights is this or lies in it" in refused(capsys, *imported)
    message = refused(capsys, tmp_path / "lora", out, "--lora", "import", "--base-weights", tmp_path / "lora")
    assert "--base-weights is INPUT itself" in message
    adapters_folder(tmp_path / "circle", "5B", base=tmp_path / "circle")
    assert "which leads back" in refused(capsys, tmp_path / "circle", out, "--lora", "merge")
    assert not out.exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("alpha", [1.0, 0.7])
def test_export_and_import_are_a_round_trip(tmp_path: Path, dtype: torch.dtype, alpha: float) -> None:
    """Exact for half precision and for powers of two, else to the last bit of float32."""
    lora = {"r": 4, "lora_alpha": alpha}
    model = five.tiny_model(five.KINDS["5B"], lora).to(dtype)
    adapters_folder(tmp_path / "run", "5B", base=None, lora=lora)
    adapters = adapters_of(model)
    sat_folder(tmp_path / "half", adapters, adapters_only=True)
    config = ["--base", tmp_path / "run" / "training_config.yaml"]
    convert(tmp_path / "half", tmp_path / "lora", "--lora", "export", *config)
    convert(tmp_path / "lora", tmp_path / "back", "--lora", "import")
    found = network(tmp_path / "back")
    if dtype == torch.float32 and alpha == 0.7:
        assert found.keys() == adapters.keys()
        for name, tensor in adapters.items():
            torch.testing.assert_close(found[name], tensor, rtol=2e-7, atol=0)
    else:
        assert_equal(found, adapters)


def test_imported_adapters_load_on_the_base_that_they_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = adapters_folder(tmp_path / "run", "5B", base=None)
    base = sat_folder(tmp_path / PLAIN, plain(model))
    convert(tmp_path / "run", tmp_path / "lora", "--lora", "export")
    capsys.readouterr()
    convert(tmp_path / "lora", tmp_path / "back", "--lora", "import", "--base-weights", base)
    assert "set in lora_config.params: r: 4, lora_alpha: 6" in capsys.readouterr().out
    start = read_starting_weights(tmp_path / "back")
    assert (start.base, start.iteration) == (base, 1)
    assert network(tmp_path / "back").keys() == adapters_of(model).keys()


def test_files_of_other_trainers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """PEFT adapters whose alpha is in diffusers' metadata, as `save_lora_weights` writes it."""
    model = adapters_folder(tmp_path / "run", "5B", base=None)
    convert(tmp_path / "run", tmp_path / "ours", "--lora", "export")
    state = read_state_dict(tmp_path / "ours" / "pytorch_lora_weights.safetensors")
    state = {name: tensor / 1.5 if "lora_B" in name else tensor for name, tensor in state.items()}
    metadata = {"r": 4, "lora_alpha": 6.0, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"]}
    bare = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    CogVideoXPipeline.save_lora_weights(tmp_path / "theirs", bare, transformer_lora_adapter_metadata=metadata)
    capsys.readouterr()
    convert(tmp_path / "theirs", tmp_path / "back", "--lora", "import")
    assert "r: 4, lora_alpha: 4" in capsys.readouterr().out
    given = network(tmp_path / "back")
    for name, tensor in adapters_of(model).items():
        expected = tensor * 1.5 if ".matrix_B." in name else tensor
        torch.testing.assert_close(given[name], expected, rtol=1e-6, atol=0)
    convert(tmp_path / "theirs", tmp_path / "six", "--lora", "import", "--lora-alpha", 6)
    for name, tensor in adapters_of(model).items():
        torch.testing.assert_close(network(tmp_path / "six")[name], tensor, rtol=1e-6, atol=0)


def test_peft_adapters_are_merged_into_a_base(tmp_path: Path) -> None:
    model = adapters_folder(tmp_path / "run", "5B", base=None)
    base = sat_folder(tmp_path / PLAIN, plain(model))
    convert(tmp_path / "run", tmp_path / "lora", "--lora", "export")
    config = ["--base", tmp_path / "run" / "training_config.yaml"]
    convert(tmp_path / "lora", tmp_path / "out", "--lora", "merge", "--base-weights", base, *config)
    assert_same_output(twin_from(tmp_path / "out"), model, "5B")


def test_alpha_of_a_folder_that_peft_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """r 4 and lora_alpha 64 count 16 times: in the config beside the file."""
    model = adapters_folder(tmp_path / "run", "5B", base=None)
    convert(tmp_path / "run", tmp_path / "lora", "--lora", "export")
    state = read_state_dict(tmp_path / "lora")
    theirs = {
        name.replace("transformer.", "base_model.model.", 1): tensor / (16 if ".lora_B." in name else 1)
        for name, tensor in state.items()
    }
    folder = tmp_path / "peft"
    folder.mkdir()
    save_file(theirs, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 64}))
    convert(folder, tmp_path / "back", "--lora", "import", "--lora-alpha", LORA["lora_alpha"])
    for name, tensor in adapters_of(model).items():
        torch.testing.assert_close(network(tmp_path / "back")[name], tensor, rtol=1e-6, atol=0)
    (folder / "adapter_config.json").unlink()
    message = refused(capsys, folder, tmp_path / "out", "--lora", "import")
    assert "there is no" in message and "adapter_config.json" in message


def test_peft_adapters_of_some_linears(tmp_path: Path) -> None:
    """What has no adapter is as before: keys here, and the output."""
    model = adapters_folder(tmp_path / "run", "5B", base=None)
    base = sat_folder(tmp_path / PLAIN, plain(model))
    convert(tmp_path / "run", tmp_path / "lora", "--lora", "export")
    state = read_state_dict(tmp_path / "lora")
    kept = {name: tensor for name, tensor in state.items() if "to_q" in name or "to_v" in name}
    save_file(kept, tmp_path / "some.safetensors")
    config = ["--base", tmp_path / "run" / "training_config.yaml"]
    convert(tmp_path / "some.safetensors", tmp_path / "out", "--lora", "merge", "--base-weights", base, *config)
    for name, tensor in model.state_dict().items():
        if name.endswith(("matrix_B.1", "dense.matrix_B.0")):
            tensor.zero_()
    assert_same_output(twin_from(tmp_path / "out"), model, "5B")


def test_adapters_are_exported_from_whole_checkpoints(tmp_path: Path) -> None:
    run_folder(tmp_path / "whole", "5B", LORA)
    adapters_folder(tmp_path / "alone", "5B", base=None)
    for name in ("whole", "alone"):
        convert(tmp_path / name, tmp_path / f"{name}-lora", "--lora", "export")
    assert_equal(read_state_dict(tmp_path / "whole-lora"), read_state_dict(tmp_path / "alone-lora"))


def test_averaged_adapters(tmp_path: Path) -> None:
    model = adapters_folder(tmp_path / "run", "5B", base=None)
    averages = {f"model.diffusion_model.{name}": tensor * 2 for name, tensor in adapters_of(model).items()}
    torch.save({"module": averages}, tmp_path / "run" / "1000" / "mp_rank_00_ema_states.pt")
    convert(tmp_path / "run", tmp_path / "lora", "--lora", "export", "--ema", "--lora-alpha", 4)
    file = tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    assert_equal(from_peft(read_state_dict(file)), {name: tensor * 2 for name, tensor in adapters_of(model).items()})
    with safe_open(file, framework="pt") as opened:
        assert json.loads(opened.metadata()["sat_lora"]) == {"r": 4, "lora_alpha": 4.0, "dtype": "float32"}


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = adapters_folder(tmp_path / "run", "5B", base=None)
    out = tmp_path / "out"
    adapters = sat_folder(tmp_path / "bare", adapters_of(model))
    assert "say --lora merge to add them to the weights, or --lora export" in refused(capsys, tmp_path / "run", out)
    message = refused(capsys, tmp_path / "run", out, "--lora", "merge")
    assert "name the weights that they are for (--base-weights)" in message
    assert "does not say what alpha" in refused(capsys, adapters, out, "--lora", "export")
    config = tmp_path / "run" / "training_config.yaml"
    config.write_text(config.read_text().replace("r: 4", "r: 8"))
    assert "adapters of rank 4, but" in refused(capsys, tmp_path / "run", out, "--lora", "export")
    whole = run_folder(tmp_path / "whole", "5B", LORA)
    message = refused(capsys, adapters, out, "--lora", "merge", "--lora-alpha", 1, "--base-weights", tmp_path / "whole")
    assert "is no plain transformer to add adapters to" in message
    short = {name: tensor for name, tensor in plain(whole).items() if ".layers.1." not in name}
    base = sat_folder(tmp_path / "short", short)
    message = refused(capsys, adapters, out, "--lora", "merge", "--lora-alpha", 1, "--base-weights", base)
    assert "adapters for layers that the base weights do not have: transformer.layers.1." in message
    assert not out.exists()


def test_reading_an_exported_file_back_is_told_apart(tmp_path: Path) -> None:
    adapters_folder(tmp_path / "run", "5B", base=None)
    convert(tmp_path / "run", tmp_path / "lora", "--lora", "export")
    weights = open_weights(tmp_path / "lora")
    assert (weights.kind, weights.layout, len(weights.shards[0])) == ("adapters", "PEFT", 16)
