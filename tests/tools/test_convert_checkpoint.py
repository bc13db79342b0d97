"""convert_checkpoint.py for whole networks: SAT ↔ diffusers.

Truths checked: round trip (to the bit, every name), reference (diffusers' classes load the folder and compute the
same), golden messages, identity (about one copy of the weights in memory).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from safetensors.torch import save_file

from cogvideox.checkpoint.opening import open_weights
from cogvideox.checkpoint.reading import read_state_dict
from cogvideox.checkpoint.transformer_names import PATCH_WEIGHT, POSITIONS, SAT_ONLY
from cogvideox.transformer.tensor_parallel import shard
from tests.checkpoint.files import assert_equal, run_folder, sat_folder, write_training_config
from tests.transformer import five
from tools.convert_checkpoint import main

ROOT = Path(__file__).resolve().parents[2]


def convert(*arguments: Any) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    return captured.err


def network(path: Path) -> dict[str, torch.Tensor]:
    return open_weights(path).shards[0]


@pytest.mark.parametrize("name", five.KINDS)
def test_transformer_there_and_back(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    model: Any = run_folder(tmp_path / "run", name)
    convert(tmp_path / "run", tmp_path / "diffusers")
    twin = CogVideoXTransformer3DModel.from_pretrained(tmp_path / "diffusers", low_cpu_mem_usage=False)
    stored = read_state_dict(tmp_path / "diffusers")
    assert stored.keys() == twin.state_dict().keys()
    twin.norm_out.norm.eps = 1e-6  # the published models', which the class cannot be told
    inputs = five.tiny_inputs(five.KINDS[name])
    with torch.no_grad():
        assert (five.run_twin(twin, **inputs) - model(**inputs)).abs().max() <= 1e-5
    convert(tmp_path / "diffusers", tmp_path / "sat")
    assert_equal(network(tmp_path / "sat"), model.state_dict())
    assert (tmp_path / "sat" / "latest").read_text() == "1"
    assert "config.json from" in capsys.readouterr().out


@pytest.mark.parametrize("name", five.KINDS)
def test_diffusers_own_package_there_and_back(tmp_path: Path, name: str) -> None:
    kind = five.KINDS[name]
    twin = CogVideoXTransformer3DModel(**five.diffusers_options(kind, five.TINY))
    twin.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "sat", "--to", "sat")
    convert(tmp_path / "sat", tmp_path / "back", "--base", write_training_config(tmp_path, name))
    assert_equal(read_state_dict(tmp_path / "back"), twin.state_dict())
    ours, theirs = (json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("back", "theirs"))
    unread = ("_diffusers_version", "patch_bias")  # the class has a bias for temporal patches in any case
    assert {k: v for k, v in ours.items() if k not in unread} == {k: v for k, v in theirs.items() if k not in unread}


def test_published_files_of_1_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A Conv2d patch weight, tables that a formula gives, embeddings that nobody reads, another network."""
    model = five.tiny_model(five.KINDS["5B"])
    state = dict(model.state_dict())
    weight = state[f"mixins.{PATCH_WEIGHT}"]
    extras = {f"mixins.{PATCH_WEIGHT}": weight.reshape(len(weight), -1, 2, 2), **dict.fromkeys(SAT_ONLY, weight)}
    sat_folder(tmp_path / "run", {**state, **extras})
    write_training_config(tmp_path / "run", "5B")
    convert(tmp_path / "run", tmp_path / "diffusers")
    said = capsys.readouterr().out
    assert all(name in said for name in SAT_ONLY)
    convert(tmp_path / "diffusers", tmp_path / "sat")
    assert_equal(network(tmp_path / "sat"), {name: t for name, t in state.items() if name not in SAT_ONLY})


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_types(tmp_path: Path, dtype: str) -> None:
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    model: Any = run_folder(tmp_path / "run", "2B")
    convert(tmp_path / "run", tmp_path / "diffusers", "--dtype", dtype)
    convert(tmp_path / "diffusers", tmp_path / "sat")
    assert_equal(network(tmp_path / "sat"), {name: tensor.to(kind) for name, tensor in model.state_dict().items()})


def test_fp16_that_would_overflow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model: Any = five.tiny_model(five.KINDS["5B"])
    model.time_embed[0].weight.data[0, 0] = 1e6
    sat_folder(tmp_path / "run", model.state_dict())
    write_training_config(tmp_path / "run", "5B")
    message = refused(capsys, tmp_path / "run", tmp_path / "out", "--dtype", "fp16")
    assert "time_embedding.linear_1.weight reaches 1e+06, beyond what fp16 holds" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_shards(tmp_path: Path) -> None:
    model: Any = run_folder(tmp_path / "run", "5B-I2V")
    convert(tmp_path / "run", tmp_path / "diffusers", "--max-shard-size", "1MB")
    files = sorted(path.name for path in (tmp_path / "diffusers").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"diffusion_pytorch_model-00001-of-{len(files):05d}.safetensors"
    assert all((tmp_path / "diffusers" / name).stat().st_size < 1.1e6 for name in files)
    index = json.loads((tmp_path / "diffusers" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    twin = CogVideoXTransformer3DModel.from_pretrained(tmp_path / "diffusers", low_cpu_mem_usage=False)
    assert index["weight_map"].keys() == twin.state_dict().keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in read_state_dict(tmp_path / "diffusers").values())
    convert(tmp_path / "diffusers", tmp_path / "sat")
    assert_equal(network(tmp_path / "sat"), model.state_dict())


def test_model_parallel_ranks_are_put_together(tmp_path: Path) -> None:
    model = five.tiny_model(five.KINDS["5B"])
    folder = sat_folder(tmp_path / "run", {}, "7") / "7"
    for rank in range(2):
        module = {f"model.diffusion_model.{n}": shard(n, t, rank, 2) for n, t in model.state_dict().items()}
        torch.save({"module": module}, folder / f"mp_rank_{rank:02d}_model_states.pt")
    write_training_config(tmp_path / "run", "5B")
    convert(tmp_path / "run", tmp_path / "one", "--to", "sat")
    assert_equal(network(tmp_path / "one"), model.state_dict())
    convert(tmp_path / "run", tmp_path / "diffusers")
    convert(tmp_path / "diffusers", tmp_path / "sat")
    assert_equal(network(tmp_path / "sat"), model.state_dict())


def test_averaged_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model: Any = run_folder(tmp_path / "run", "5B")
    averages = {f"model.diffusion_model.{n}": t + 1 for n, t in model.state_dict().items() if "bias" in n}
    torch.save({"module": averages}, tmp_path / "run" / "1000" / "mp_rank_00_ema_states.pt")
    convert(tmp_path / "run", tmp_path / "diffusers", "--ema")
    assert "tensors, averaged" in capsys.readouterr().out
    convert(tmp_path / "diffusers", tmp_path / "sat")
    expected = {name: tensor + ("bias" in name) for name, tensor in model.state_dict().items()}
    assert_equal(network(tmp_path / "sat"), expected)


def test_a_transformer_is_told_how_diffusers_scales_the_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder(tmp_path / "run", "1.5-5B-I2V")
    for scale, noted in ((1.0, True), (1.4286, False)):
        write_training_config(tmp_path / "run", "1.5-5B-I2V", scale_factor=0.7, image_scale_factor=scale)
        convert(tmp_path / "run", tmp_path / "out", "--force")
        assert ("image_scale_factor=1.4286" in capsys.readouterr().out) is noted


def test_what_cannot_be_written_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_folder(tmp_path / "run", "5B")
    (tmp_path / "file").write_text("mine")
    message = refused(capsys, tmp_path / "run", tmp_path / "file" / "out")
    assert "could not be written" in message and "Traceback" not in message
    message = refused(capsys, tmp_path / "run", tmp_path / "file", "--force")
    assert "file is a file, but a folder is to be written" in message
    assert (tmp_path / "file").read_text() == "mine"


def test_an_unreadable_file_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_folder(tmp_path / "run", "5B")

    def failing(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", "latest")

    monkeypatch.setattr("tools.convert_checkpoint.open_weights", failing)
    assert "Permission denied: 'latest'" in refused(capsys, tmp_path / "run", tmp_path / "out")


def test_transformer_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = dict(five.tiny_model(five.KINDS["5B"]).state_dict())
    out = tmp_path / "out"

    def attempt(changes: dict[str, Any], *options: Any) -> str:
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        sat_folder(folder, {name: t for name, t in {**state, **changes}.items() if t is not None})
        return refused(capsys, folder, out, *(options or ("--base", write_training_config(tmp_path, "5B"))))

    assert "1 weights of the transformer are missing: time_embed.0.bias" in attempt({"time_embed.0.bias": None})
    assert "1 weights are not those of a CogVideoX transformer" in attempt({"transformer.stranger": torch.zeros(1)})
    assert "sizes of no published model: give their training config (--base)" in attempt({}, "--to", "diffusers")
    assert "not of the model that --model 2b describes: it has num_layers 30" in attempt({}, "--model", "2b")
    assert "no averaged weights" in attempt({}, "--ema", "--model", "5b")
    assert "holds no LoRA adapters: leave out --lora" in attempt({}, "--lora", "merge", "--model", "5b")
    assert "--lora import takes PEFT's adapters; " in attempt({}, "--lora", "import", "--model", "5b")
    assert not out.exists()


def test_positions_of_another_formula(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = dict(five.tiny_model(five.KINDS["2B"]).state_dict())
    state[POSITIONS] = state[POSITIONS] + 1
    sat_folder(tmp_path / "run", state)
    write_training_config(tmp_path / "run", "2B")
    message = refused(capsys, tmp_path / "run", tmp_path / "out")
    assert "pos_embedding differs by 1 from what diffusers computes" in message


def test_outputs_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_folder(tmp_path / "run", "5B")
    convert(tmp_path / "run", tmp_path / "out")
    before = (tmp_path / "out" / "config.json").stat().st_mtime_ns
    assert "is there already: give another name, or --force" in refused(capsys, tmp_path / "run", tmp_path / "out")
    assert (tmp_path / "out" / "config.json").stat().st_mtime_ns == before
    convert(tmp_path / "run", tmp_path / "out", "--force", "--dtype", "bf16")
    assert next(iter(read_state_dict(tmp_path / "out").values())).dtype == torch.bfloat16
    for inside in ("run", "run/1000", "run/1000/mp_rank_00_model_states.pt"):
        assert "INPUT is this or lies in it" in refused(capsys, tmp_path / inside, tmp_path / "run", "--force")


@pytest.mark.parametrize("options", [["--max-shard-size", "ten"], ["--base", "a", "--model", "5b"], ["--lora", "x"]])
def test_the_command_line_is_checked(tmp_path: Path, options: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path), str(tmp_path / "out"), *options])
    assert caught.value.code == 2


WAYS = (("theirs", "sat"), ("sat", "back"))
MEASURE = """
import sys
sys.path.insert(0, sys.argv[1])
from tools.convert_checkpoint import main
import cogvideox.transformer.positions, cogvideox.transformer.tensor_parallel
def high_water() -> int:
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
for arguments in (sys.argv[2:6], sys.argv[6:]):
    open("/proc/self/clear_refs", "w").write("5")  # the mark starts again
    before = high_water()
    assert main(arguments) == 0
    print("grew", high_water() - before)
"""


def write_large_package(folder: Path, kind: five.Kind, size: five.Size) -> int:
    """A diffusers folder with random weights, and a training config above it; gives the bytes of the weights."""
    with torch.device("meta"):
        twin = CogVideoXTransformer3DModel(**five.diffusers_options(kind, size))
    state = {name: torch.randn(tensor.shape) for name, tensor in twin.state_dict().items()}
    folder.mkdir()
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    config = {"_class_name": "CogVideoXTransformer3DModel", **five.diffusers_options(kind, size)}
    (folder / "config.json").write_text(json.dumps(config))
    training = {"model": {"network_config": {"params": five.params_of(kind, size)}}}
    (folder.parent / "training_config.yaml").write_text(json.dumps(training))
    return sum(tensor.nbytes for tensor in state.values())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_stays_near_one_copy(tmp_path: Path) -> None:
    """Mapped pages of the input count, too."""
    total = write_large_package(tmp_path / "theirs", five.KINDS["5B"], five.Size(4, 16, 226, 49, 60, 90))
    assert total > 200e6
    base = ["--base", str(tmp_path / "training_config.yaml")]
    words = [word for source, target in WAYS for word in (str(tmp_path / source), str(tmp_path / target), *base)]
    done = subprocess.run([sys.executable, "-c", MEASURE, str(ROOT), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grown = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("grew ")]
    assert len(grown) == 2 and all(0.5 * total < growth <= 1.3 * total for growth in grown), (done.stdout, total)
