"""What `args`, model and DeepSpeed's section say of the same thing. Truth: the stated precedence (golden values)."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from cogvideox.config.load import load_settings
from cogvideox.config.reconcile import reconcile
from cogvideox.config.report import Problem
from cogvideox.config.settings import Settings
from cogvideox.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "configs/quickstart.yaml")
Run = Callable[..., argparse.Namespace]
Write = Callable[..., str]
PLACE = "model.network_config.params.transformer_args"


def reconciled(*overrides: str) -> tuple[Settings, list[str]]:
    """`overrides` alone, as if they were a file and the command line; no GPU is asked for."""
    problems: list[Problem] = []
    settings = load_settings([], overrides, problems)
    notes = reconcile(settings, problems)
    assert not problems
    return settings, notes


@pytest.mark.parametrize(
    ("overrides", "stage"),
    [
        (("args.fp16=true", "args.zero_stage=0"), 1),
        (("args.fp16=true", "deepspeed.zero_optimization.stage=0"), 1),
        (("deepspeed.fp16.enabled=true", "args.zero_stage=0"), 1),
        (("args.fp16=true", "args.zero_stage=2"), 2),
        (("args.bf16=true", "args.zero_stage=0"), 0),
        (("args.fp16=false", "args.zero_stage=0"), 0),
    ],
)
def test_fp16_has_at_least_zero_1(overrides: tuple[str, ...], stage: int) -> None:
    settings, notes = reconciled(*overrides)
    assert settings.get("args.zero_stage") == stage == settings.get("deepspeed.zero_optimization.stage")
    is_raised = stage == 1
    assert any("ZeRO 1 in place of 0" in note for note in notes) == is_raised


@pytest.mark.parametrize(
    ("given", "noted"),
    [
        ((), 0),
        (("deepspeed.zero_allow_untested_optimizer=true", "deepspeed.zero_force_ds_cpu_optimizer=false"), 0),
        (("deepspeed.zero_allow_untested_optimizer=false",), 1),
        (("deepspeed.zero_force_ds_cpu_optimizer=true",), 1),
    ],
)
def test_deepspeed_is_told_to_take_our_optimizers(given: tuple[str, ...], noted: int) -> None:
    settings, notes = reconciled("deepspeed.gradient_clipping=1.0", *given)
    assert settings.get("deepspeed.zero_allow_untested_optimizer") is True
    assert settings.get("deepspeed.zero_force_ds_cpu_optimizer") is False
    assert sum("optimizers are torch's" in note for note in notes) == noted


@pytest.mark.parametrize(
    ("file", "words", "wanted", "is_noted"),
    [
        ("args: {checkpoint_activations: true}", (), True, False),  # `args` of a file, the model says nothing
        ("args: {checkpoint_activations: true}\nmodel: MODEL", (), False, True),  # the model's own wins
        ("model: MODEL", (), False, False),
        ("model: MODEL", ("--checkpoint-activations",), True, False),  # the flag wins
        ("args: {checkpoint_activations: false}", ("--checkpoint-activations",), True, False),
        ("args: {checkpoint_activations: true}", (f"{PLACE}.checkpoint_activations=false",), False, True),
        ("args: {}", (), False, False),  # the default
    ],
)
def test_who_decides_on_recomputation(
    run: Run, write: Write, file: str, words: tuple[str, ...], wanted: bool, is_noted: bool
) -> None:
    silent = write("model: {network_config: {params: {transformer_args: null}}}", "silent.yaml")
    empty = write("model: {network_config: {params: {transformer_args: {skip_init: false}}}}", "empty.yaml")
    own = "{network_config: {params: {transformer_args: {checkpoint_activations: false}}}}"
    args = run(*words, base=(QUICKSTART, silent, empty, write(file.replace("MODEL", own))))
    in_model = args.model_config["network_config"]["params"]["transformer_args"].get("checkpoint_activations", False)
    assert in_model == wanted == args.checkpoint_activations
    assert any("checkpoint_activations" in note for note in args.config_notes) == is_noted


def test_two_overrides_that_disagree_on_recomputation_are_refused(run: Run) -> None:
    with pytest.raises(UserError, match="give one of them only"):
        run("--checkpoint-activations", f"{PLACE}.checkpoint_activations=false")


def test_args_decide_on_model_parallel_ranks(run: Run, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    stale = write("model: {network_config: {params: {transformer_args: {model_parallel_size: 4}}}}")
    args = run("--model-parallel-size", "2", base=(QUICKSTART, stale))
    assert args.model_config["network_config"]["params"]["transformer_args"]["model_parallel_size"] == 2
    assert any("model_parallel_size (4" in note for note in args.config_notes)


def test_a_cache_may_be_asked_for_in_the_data(run: Run, place: Path, write: Write) -> None:
    """Golden values: true is a folder beside the data, a flag wins, false is none."""
    where = "data.params.cache"
    assert run(f"{where}=true").cache == f"{place}/clips.cache"
    assert run(f"{where}=/kept").cache == "/kept" and run(f"{where}=/kept", "--cache", "/mine").cache == "/mine"
    assert run(f"{where}=false").cache is None and "cache" not in run(f"{where}=true").data_config["params"]
    assert run(base=(QUICKSTART, write("args:\n  cache: /file\n"))).cache == "/file"
