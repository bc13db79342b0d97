"""Truths: a fingerprint tells tensors apart that differ in one value (identity); fixed inputs are the same everywhere,
fit every shipped model's positions, and draw from no stream of the process (identity); only the verifier's verdict
refuses a checkpoint (the table of its exit status in docs/run-folder.md).
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import pytest
import torch

from cogvideox.checkpoint import fingerprint
from cogvideox.checkpoint.fingerprint import EMA, RAW, Fingerprint, LiveModel, differing
from cogvideox.checkpoint.fixed_noise import fixed_inputs, relative_difference, why_not_fixed
from cogvideox.checkpoint.saving import UntrustedCheckpoint
from cogvideox.errors import UserError
from cogvideox.sat_bridge import verification
from tests.transformer import tiny


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_one_value_changed_or_two_exchanged_change_the_fingerprint(dtype: torch.dtype) -> None:
    tensor = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = Fingerprint.of(tensor)
    assert Fingerprint.of(tensor.clone()) == before
    for place in range(tensor.numel()):
        changed = tensor.clone().flatten()
        changed[place] = -changed[place]
        assert Fingerprint.of(changed).checksum != before.checksum
        swapped = tensor.clone().flatten()
        swapped[[place, (place + 1) % 35]] = swapped[[(place + 1) % 35, place]]
        assert Fingerprint.of(swapped).checksum != before.checksum


def test_a_fingerprint_is_the_sum_written_out_whatever_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.randn(100, generator=torch.Generator().manual_seed(1))
    expected = sum((2 * i + 1) * bits for i, bits in enumerate(tensor.view(torch.int32).tolist())) % 2**64
    assert Fingerprint.of(tensor).checksum == expected
    monkeypatch.setattr(fingerprint, "AT_A_TIME", 7)
    found = Fingerprint.of(tensor)
    assert found.checksum == expected and found.norm == pytest.approx(float(tensor.double().norm()))


def test_a_view_has_the_fingerprint_of_its_values() -> None:
    flat = torch.arange(40.0)
    assert Fingerprint.of(flat[10:22].view(3, 4).t()) == Fingerprint.of(flat[10:22].view(3, 4).t().clone())


def test_what_differs_is_named_with_its_norm_and_what_is_missing_too() -> None:
    live = {name: Fingerprint.of(torch.full((4,), value)) for name, value in (("a", 1.0), ("b", 2.0), ("c", 3.0))}
    lines = differing(live, {"a": torch.full((4,), 1.0), "b": torch.full((4,), 2.5)})
    compared = "of 4 values compared the largest difference is 0.5"
    assert lines == [f"b: norm 5, live 4; {compared}", "c: not in the checkpoint"]


def test_a_live_model_survives_its_file(tmp_path: Path) -> None:
    raw = {"a": Fingerprint.of(torch.ones(3)), "b": Fingerprint.of(torch.zeros(2))}
    averaged = {"a": Fingerprint.of(torch.full((3,), 0.5))}
    live = LiveModel({RAW: raw, EMA: averaged}, {RAW: torch.ones(2, 2)})
    torch.save(live.content(), tmp_path / "mp_rank_01_live_states.pt")
    read = LiveModel.read(tmp_path / "mp_rank_01_live_states.pt")
    assert read.expected(RAW) == raw and read.expected(EMA) == {**raw, **averaged}
    assert torch.equal(read.outputs[RAW], torch.ones(2, 2))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", None])
def test_a_damaged_file_of_a_live_model_is_one_error(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "mp_rank_00_live_states.pt"
    if content is None:
        torch.save({"fingerprints": 3}, file)
    else:
        file.write_bytes(content)
    with pytest.raises(UserError, match="mp_rank_00_live_states.pt: (cannot be read|is no record)"):
        LiveModel.read(file)


def test_fixed_inputs_leave_the_random_stream_alone_and_are_always_the_same() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first, second = fixed_inputs(tiny.config()), fixed_inputs(tiny.config())
    assert torch.equal(torch.rand(4), expected)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({}, (1, 2, 4, 4, 6)),
        ({"patch_size": [2, 2, 2], "num_frames": 81}, (1, 4, 4, 4, 6)),
        ({"patch_size": [2, 2, 2], "num_frames": 9}, (1, 2, 4, 4, 6)),
        ({"num_frames": 1, "latent_height": 2, "latent_width": 4, "in_channels": 8}, (1, 1, 8, 2, 4)),
    ],
)
def test_fixed_inputs_stay_within_the_positions(changes: dict, shape: tuple) -> None:
    x, t, context = fixed_inputs(tiny.config(**changes))
    assert tuple(x.shape) == shape and t.shape == (1,)
    assert tuple(context.shape) == (1, tiny.TEXT_TOKENS, tiny.TEXT_WIDTH)


def test_relative_difference_is_nan_where_a_value_is() -> None:
    ones = torch.ones(4)
    assert relative_difference(1.5 * ones, ones) == pytest.approx(0.5)
    assert not relative_difference(ones.index_fill(0, torch.tensor([2]), torch.nan), ones) <= 1.0


def settings(network: dict) -> argparse.Namespace:
    model = {"network_config": {"params": network}}
    return argparse.Namespace(verify_save=True, model_config=model, allow_target=["mine"], seed=0)


def gate_with_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> verification.LiveGate:
    tool = tmp_path / "tool.py"
    tool.write_text(script)
    monkeypatch.setattr(verification, "TOOL", tool)
    gate = verification.gate_of(settings(tiny.config()))
    assert gate is not None
    return gate


def test_a_verdict_of_the_tool_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import sys; print(sys.argv[1:]); print('raw: differs'); print('NOT verified'); sys.exit(1)"
    gate = gate_with_tool(tmp_path, monkeypatch, script)
    with pytest.raises(UntrustedCheckpoint, match=r"(?s)is not what was trained.*'--allow-target', 'mine'.*raw: diff"):
        gate.check(tmp_path / "5.incomplete")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("import os; print('loading', flush=True); os.kill(os.getpid(), 9)", "signal 9, as when memory runs out"),
        ("import sys; print('loading'); sys.exit('error: no package x')", "exit status 1"),
        ("import sys; print('a\\n' * 50 + 'loading'); sys.exit(2)", "exit status 2"),
        ("import sys; print('loading'); sys.exit(3)", "exit status 3"),
        ("print('loading'); import no_such_package", "exit status 1"),
    ],
)
def test_a_tool_without_a_verdict_is_a_warning_with_its_last_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, script: str, said: str
) -> None:
    gate = gate_with_tool(tmp_path, monkeypatch, script)
    gate.check(tmp_path / "5.incomplete")
    (record,) = caplog.records
    message = record.getMessage()
    assert record.levelno == logging.WARNING and "5.incomplete could not be verified, training goes on" in message
    assert said in message and "loading" in message and len(message.splitlines()) <= 6


def test_a_tool_that_does_not_start_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate = gate_with_tool(tmp_path, monkeypatch, "")
    monkeypatch.setattr(verification.sys, "executable", str(tmp_path / "nothing"))
    gate.check(tmp_path / "5.incomplete")
    assert "did not start" in caplog.text


@pytest.mark.parametrize(
    ("change", "lacks"),
    [
        ({"patch_size": ...}, "patch_size"),
        ({"modules": {}}, "pos_embed_config"),
        ({"num_frames": None}, "the shapes of its inputs"),
        ({"transformer_args": ...}, "transformer_args"),
    ],
)
def test_a_network_with_other_params_gets_no_gate_and_one_warning(
    caplog: pytest.LogCaptureFixture, change: dict, lacks: str
) -> None:
    network = {name: value for name, value in tiny.config(**change).items() if value is not ...}
    assert verification.gate_of(settings(network)) is None
    assert len(caplog.records) == 1 and lacks in caplog.text and "it goes on without" in caplog.text


def test_the_shipped_networks_can_be_verified() -> None:
    assert why_not_fixed(tiny.config()) is None and why_not_fixed(tiny.config(patch_size=[2, 2, 2])) is None
