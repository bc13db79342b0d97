"""tools/verify_checkpoint.py. Truth: identity. A checkpoint passes as it was written and fails with one value, one
base weight or one line of its config changed, and what differs is named.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from cogvideox.checkpoint.fingerprint import EMA, RAW, Fingerprint, LiveModel
from tests.end_to_end.runs import LORA, OPEN_GATES, train
from tools import verify_checkpoint, verify_exported

DENSE = "model.diffusion_model.transformer.layers.1.attention.dense.weight"
ADAPTER = "model.diffusion_model.transformer.layers.1.attention.dense.matrix_B.0"
TESTS = ("--allow-target", "tests")
AVERAGED = {"args": {"train_iters": 2}, "deepspeed": {"optimizer": {"type": "EmaAdamW"}}}


def unseen(_arguments: list[str]) -> tuple[int, str]:
    return 0, "verified"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full run under `full`, one of adapters on a base under `lora`; the live models stored, nothing damaged.

    What `--verify-save` asks is answered unseen: the tests below verify.
    """
    folder = tmp_path_factory.mktemp("runs")
    flags = (*TESTS, "--verify-save")
    full = train(folder / "f", AVERAGED, OPEN_GATES, flags=flags, verifier=unseen)
    assert full.status == 0, full.output[-3000:]
    load = {"args": {"load": str(full.folder), "mode": "finetune"}}
    lora = train(folder / "l", AVERAGED, OPEN_GATES, LORA, load, flags=flags, verifier=unseen)
    assert lora.status == 0, lora.output[-3000:]
    full.folder.rename(folder / "full")
    lora.folder.rename(folder / "lora")
    return folder


@pytest.fixture
def full(runs: Path, tmp_path: Path) -> Path:
    """A copy of the full run that a test may damage."""
    shutil.copytree(runs / "full", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def lora(runs: Path, full: Path, tmp_path: Path) -> Path:
    """The same of the run of adapters, which says that its base is `full`."""
    shutil.copytree(runs / "lora", tmp_path / "lora")
    rewrite(
        tmp_path / "lora" / "2" / "mp_rank_00_model_states.pt", lambda content: content.update(base_weights=str(full))
    )
    return tmp_path / "lora"


def rewrite(file: Path, change: Callable[[dict], object]) -> None:
    content = torch.load(file, weights_only=False)  # DeepSpeed's own file, written by this test
    change(content)
    torch.save(content, file)


def flip(name: str, index: int = 5) -> Callable[[dict], None]:
    """Change the sign of one value."""

    def change(content: dict) -> None:
        tensor = content["module"][name].clone()
        tensor.view(-1)[index] = -tensor.view(-1)[index] + 0.01
        content["module"][name] = tensor

    return change


def verified(folder: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str]:
    capsys.readouterr()
    status = verify_checkpoint.main([str(folder), *TESTS, *flags])
    printed = capsys.readouterr()
    return status, printed.out + printed.err


def lines_of(printed: str, start: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith(start)]


@pytest.mark.parametrize("name", ["full", "lora"])
def test_what_was_written_passes_in_every_form(
    name: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    run: Path = request.getfixturevalue(name)
    status, printed = verified(run, capsys)
    assert status == 0, printed
    forms = ("raw", "ema", "exported", *(("adapters",) if name == "lora" else ()))
    for form in forms:
        (line,) = lines_of(printed, f"{form} ")
        assert line.endswith("ok"), printed
    assert len([line for line in printed.splitlines() if line.endswith("ok")]) == len(forms)
    assert printed.endswith("\nverified\n") and "not checked" not in printed


def test_one_checkpoint_of_a_run_is_what_is_asked_for(full: Path) -> None:
    assert verify_checkpoint.open_checkpoint(full / "2").folder == full / "2"
    assert verify_checkpoint.open_checkpoint(full).folder == full / "2"


def test_a_flipped_value_is_named(full: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(full / "2" / "mp_rank_00_model_states.pt", flip(DENSE))
    status, printed = verified(full, capsys)
    assert status == 1
    assert lines_of(printed, f"raw:   {DENSE}: norm "), printed
    assert lines_of(printed, "raw: 1 of ") and lines_of(printed, "raw ")[0].endswith("DIFFERS")
    assert lines_of(printed, "ema ")[0].endswith("ok") and printed.endswith("NOT verified\n")


def test_a_flipped_average_is_named(full: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(full / "2" / "mp_rank_00_ema_states.pt", flip(DENSE))
    status, printed = verified(full, capsys)
    assert status == 1 and lines_of(printed, f"ema:   {DENSE}: norm "), printed
    assert lines_of(printed, "raw ")[0].endswith("ok")


def test_a_large_change_shows_in_the_output_too(full: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "model.diffusion_model.mixins.final_layer.linear.weight"
    rewrite(full / "2" / "mp_rank_00_model_states.pt", lambda content: content["module"][name].mul_(1.5))
    status, printed = verified(full, capsys)
    assert status == 1 and lines_of(printed, "raw: its output on fixed noise is "), printed


def test_a_missing_file_of_averages_is_told(full: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (full / "2" / "mp_rank_00_ema_states.pt").unlink()
    status, printed = verified(full, capsys)
    assert status == 1 and lines_of(printed, "ema: does not load: ") and "mp_rank_00_ema_states.pt" in printed


def test_a_file_that_is_cut_off_is_told(full: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = full / "2" / "mp_rank_00_model_states.pt"
    file.write_bytes(file.read_bytes()[:-5000])
    status, printed = verified(full, capsys)
    assert status == 1 and lines_of(printed, "raw: does not load: ") and not lines_of(printed, "exported ")


def test_a_base_that_is_not_the_one_trained_on_is_named(
    full: Path, lora: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(full / "2" / "mp_rank_00_model_states.pt", flip(DENSE))
    status, printed = verified(lora, capsys)
    original = DENSE.replace(".weight", ".original.weight")
    assert status == 1 and lines_of(printed, f"raw:   {original}: norm "), printed


def test_a_base_that_was_moved_is_named(full: Path, lora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full.rename(full.with_name("moved"))
    status, printed = verified(lora, capsys)
    assert status == 1 and lines_of(printed, "raw: does not load: ") and "--base-weights" in printed
    status, printed = verified(lora, capsys, "--base-weights", str(full.with_name("moved")))
    assert status == 0, printed


def test_adapters_that_count_otherwise_show_in_the_output(lora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every parameter is as it was; the config says another alpha."""
    rewrite(lora / "2" / "mp_rank_00_model_states.pt", lambda content: content["module"][ADAPTER].fill_(0.5))
    store_again(lora)
    config = yaml.safe_load((lora / "training_config.yaml").read_text())
    config["model"]["network_config"]["params"]["modules"]["lora_config"]["params"]["lora_alpha"] = 40
    (lora / "training_config.yaml").write_text(yaml.safe_dump(config))
    status, printed = verified(lora, capsys)
    assert status == 1 and not lines_of(printed, "raw: 1 of"), printed
    assert lines_of(printed, "raw: its output on fixed noise is ")


def store_again(run: Path) -> None:
    """As if the live model had been what now lies in the files of `run`."""
    checkpoint = verify_checkpoint.open_checkpoint(run)
    engine = verify_checkpoint.build_engine(checkpoint)
    kinds, outputs = {}, {}
    for kind in (RAW, EMA):
        parameters = verify_checkpoint.load(engine, checkpoint, ema=kind == EMA)
        kinds[kind] = {name: Fingerprint.of(tensor) for name, tensor in parameters.items()}
        network = checkpoint.network
        outputs[kind] = verify_checkpoint.fixed_forward(engine.model, network, torch.device("cpu"))
    torch.save(LiveModel(kinds, outputs).content(), checkpoint.folder / "mp_rank_00_live_states.pt")


def test_without_a_live_model_it_says_so_and_finds_what_is_not_finite(
    full: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (full / "2" / "mp_rank_00_live_states.pt").unlink()
    status, printed = verified(full, capsys)
    assert status == 0 and "nothing to compare raw and ema with" in printed
    rewrite(full / "2" / "mp_rank_00_ema_states.pt", lambda content: content["module"][DENSE].fill_(torch.nan))
    status, printed = verified(full, capsys)
    assert status == 1 and lines_of(printed, "ema: ") and "not finite" in printed


def test_an_export_that_changes_a_name_is_caught(
    full: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exchanged(*arguments: object) -> dict:
        weights = to_diffusers(*arguments)
        first, second = (f"transformer_blocks.0.attn1.to_{each}.weight" for each in "qk")
        return weights | {first: weights[second], second: weights[first]}

    to_diffusers = verify_exported.to_diffusers
    monkeypatch.setattr(verify_exported, "to_diffusers", exchanged)
    status, printed = verified(full, capsys)
    assert status == 1 and lines_of(printed, "exported ")[0].endswith("DIFFERS"), printed
    assert any("layers.0.attention.query_key_value.weight" in line for line in lines_of(printed, "exported: "))


def test_adapters_exchanged_by_an_export_are_caught(
    lora: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exchanged(adapters: dict, *scale: float) -> dict:
        return {name.replace("to_q", "to_k"): tensor for name, tensor in to_peft(adapters, *scale).items()}

    to_peft = verify_checkpoint.to_peft
    monkeypatch.setattr(verify_checkpoint, "to_peft", exchanged)
    status, printed = verified(lora, capsys)
    assert status == 1 and lines_of(printed, "adapters ")[0].endswith("DIFFERS"), printed
    assert any("query_key_value.matrix_A.0: not in the checkpoint" in line for line in lines_of(printed, "adapters: "))
    assert lines_of(printed, "raw ")[0].endswith("ok")


def test_with_nothing_to_compare_with_it_does_not_say_verified(
    full: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (full / "2" / "mp_rank_00_live_states.pt").unlink()
    monkeypatch.setattr(verify_exported, "is_installed", lambda name: False)
    status, printed = verified(full, capsys)
    assert status == 3 and printed.endswith("\nloads and computes finite numbers; nothing to compare with\n")
    assert "verified" not in printed and lines_of(printed, "raw ")[0].endswith("loads")


def test_without_diffusers_it_says_what_was_not_checked(
    full: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_exported, "is_installed", lambda name: False)
    status, printed = verified(full, capsys)
    assert status == 0 and "not checked: the exported form: diffusers is not installed" in printed
    assert not lines_of(printed, "exported ")


@pytest.mark.parametrize("path", ["", "nothing", "file"])
def test_a_folder_that_is_none_is_a_users_mistake(
    path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    status, printed = verified(tmp_path / path, capsys)
    assert status == 2 and printed.startswith("error: ") and len(printed.splitlines()) == 1


def test_a_checkpoint_away_from_its_run_is_a_users_mistake(full: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (full / "training_config.yaml").unlink()
    status, printed = verified(full, capsys)
    assert status == 2 and "training_config.yaml does not exist" in printed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: [1, 2\nargs: {", "is no YAML"),
        ("model: {}", "has no model.network_config.params"),
        ("", "has no model.network_config.params"),
        (
            "model: {network_config: {target: mine.Net, params: {layers: 2}}}",
            "its network cannot be verified: its params have no patch_size",
        ),
    ],
)
def test_a_config_that_is_broken_or_of_another_network_is_one_error(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "3").mkdir()
    torch.save({"module": {}}, tmp_path / "3" / "mp_rank_00_model_states.pt")
    (tmp_path / "training_config.yaml").write_text(text)
    status, printed = verified(tmp_path / "3", capsys)
    assert status == 2 and printed.startswith("error: ") and len(printed.splitlines()) == 1, printed
    assert "training_config.yaml" in printed and said in printed
