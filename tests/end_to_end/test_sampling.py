"""Drawing from what training left. Truths: identity (the same latents whatever the batch and the ranks; adapters at
scale 0 are the base, at 1 the merged weights; an average is what its file holds), and what was asked for (frames, size,
rate, records)."""

from __future__ import annotations

import json
from pathlib import Path

import av
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from cogvideox.checkpoint.lora_names import to_peft
from cogvideox.config.sampling import get_sampling_arguments
from cogvideox.config.sampling_record import jobs_of
from sample_video import Studio
from tests.end_to_end.runs import LORA, OPEN_GATES, Run, train
from tests.end_to_end.sampling_runs import sample, sample_on_ranks

PROMPTS = ("a dog in a field", "two boats at night", "a red car")
SHORT = {"args": {"train_iters": 4}}
AVERAGED = {"deepspeed": {"optimizer": {"type": "EmaAdamW", "params": {"ema_decay": 0.5}}}}
OPEN = ("--allow-target", "tests")
IMAGE_MODEL = {"model": {"noised_image_input": True, "network_config": {"params": {"in_channels": 32}}}}
PATCH_OF_TWO = {
    "model": {"network_config": {"params": {"patch_size": [2, 2, 2], "num_frames": 9}}},
    "data": {"params": {"max_num_frames": 9}},
}
for_prompts = tuple(word for prompt in PROMPTS for word in ("--prompt", prompt))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = train(tmp_path_factory.mktemp("base"), SHORT, AVERAGED, OPEN_GATES, flags=("--seed", "5", *OPEN))
    assert run.status == 0, run.output[-3000:]
    return run


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, base: Run) -> Run:
    """Adapters alone, trained on `base` fast enough to be seen."""
    changes = {
        "args": {"load": str(base.folder), "mode": "finetune"},
        "deepspeed": {"optimizer": {"params": {"lr": 0.05}}},
    }
    folder = tmp_path_factory.mktemp("adapted")
    run = train(folder, SHORT, OPEN_GATES, LORA, changes, flags=("--seed", "6", *OPEN))
    assert run.status == 0, run.output[-3000:]
    return run


def latents(*words: str) -> torch.Tensor:
    """What a studio draws for the prompts in one batch, in this process."""
    arguments = get_sampling_arguments([*words, *for_prompts, *OPEN])
    studio = Studio(arguments)
    with torch.no_grad():
        return studio.latents(jobs_of(arguments, arguments.prompts))


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


def test_a_run_s_folder_gives_clips_of_its_size_with_complete_records(tmp_path: Path, base: Run) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("# what to draw\n" + "\n\n".join(PROMPTS))
    words = ("--run", str(base.folder), "--prompts", str(prompts), "--fps", "4", *OPEN)
    status, output = sample(tmp_path / "log", *words)
    assert status == 0, output[-3000:]
    files = sorted((base.folder / "samples/4").glob("*/*.mp4"))
    assert [file.parent.name for file in files] == ["000-a-dog-in-a-field", "001-two-boats-at-night", "002-a-red-car"]
    for number, file in enumerate(files):
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            assert (stream.height, stream.width, stream.average_rate) == (16, 32, 4)
            assert sum(1 for _ in container.decode(stream)) == 5
        record = json.loads(file.with_suffix(".json").read_text())
        expected = {"prompt": PROMPTS[number], "seed": 1234, "num_steps": 2, "guidance_scale": 2.0, "sampler": "dpmpp"}
        expected |= {"frames": 5, "height": 16, "width": 32, "fps": 4, "iteration": 4, "negative_prompt": None}
        expected |= {"checkpoint": str(base.checkpoint(4).resolve()), "precision": "fp32", "prompt_number": number}
        assert expected.items() <= record.items()
        assert record["config_files"] == [str(base.folder / "training_config.yaml")] and "torch" in record["versions"]
    status, output = sample(tmp_path / "log", *words)
    assert status == 0 and "nothing to do" in output
    status, output = sample(tmp_path / "log", *words, "--seed", "2")
    assert status == 2 and "Traceback" not in output and "choose another --output-dir" in output


def test_latents_do_not_depend_on_the_batch_or_the_ranks(tmp_path: Path, base: Run) -> None:
    drawn = {}
    for name, ranks, size in (("one", 1, 1), ("two", 1, 2), ("ranks", 2, 2)):
        words = (
            "--run",
            str(base.folder),
            "--latents-only",
            "--num-samples",
            "2",
            "--output-dir",
            str(tmp_path / name),
        )
        status, output = sample(tmp_path / "log", *words, "--batch-size", str(size), *for_prompts, *OPEN, ranks=ranks)
        assert status == 0, output[-3000:]
        files = sorted((tmp_path / name).glob("*/*.latents.pt"))
        assert len(files) == 2 * len(PROMPTS)
        drawn[name] = torch.stack([torch.load(file, weights_only=True) for file in files])
    assert drawn["one"].shape == (6, 2, 16, 2, 4)
    assert far(drawn["one"], drawn["two"]) <= 1e-5 and far(drawn["one"], drawn["ranks"]) <= 1e-5
    assert far(drawn["one"][0], drawn["one"][1]) > 0.1, "samples of one prompt differ"
    whole = latents("--run", str(base.folder))
    scale = yaml.safe_load((base.folder / "training_config.yaml").read_text())["model"]["scale_factor"]
    assert far(whole[1] / scale, drawn["one"][2]) <= 1e-5, "saved latents are unscaled"


def test_what_is_asked_of_the_sampler_is_done(base: Run) -> None:
    words = ("--run", str(base.folder))
    plain = latents(*words)
    assert far(plain, latents(*words)) == 0
    for changed in (
        ("--seed", "7"),
        ("--num-steps", "3"),
        ("--guidance-scale", "4"),
        ("--sampler", "ddim"),
        ("--negative-prompt", "a red car"),
    ):
        assert far(plain, latents(*words, *changed)) > 1e-3, changed
    unguided = latents(*words, "--guidance-scale", "1")
    assert far(unguided, latents(*words, "--guidance-scale", "1", "--negative-prompt", "a red car")) == 0
    same = latents(*words, "--negative-prompt", PROMPTS[0])
    assert far(same[0], unguided[0]) <= 1e-4 < far(same[1], unguided[1]), "led away from itself, a prompt is unguided"


def test_adapters_at_scale_0_are_the_base_and_at_1_the_merged_weights(base: Run, adapted: Run) -> None:
    words = ("--run", str(adapted.folder))
    plain = latents("--run", str(base.folder))
    full = latents(*words)
    assert far(latents(*words, "--lora-scale", "0"), plain) <= 1e-5
    half = latents(*words, "--lora-scale", "0.5")
    assert min(far(full, plain), far(half, plain), far(half, full)) > 1e-3
    arguments = get_sampling_arguments([*words, *for_prompts, *OPEN])
    studio = Studio(arguments)
    studio.engine.network.get_mixin("lora").merge_lora()
    with torch.no_grad():
        assert far(studio.latents(jobs_of(arguments, arguments.prompts)), full) <= 1e-4


def test_a_base_that_moved_is_named(tmp_path: Path, base: Run, adapted: Run) -> None:
    file = adapted.checkpoint(4)
    content = torch.load(file, weights_only=True)
    assert content["adapters_only"]
    moved = tmp_path / "mp_rank_00_model_states.pt"
    torch.save(content | {"base_weights": "/long/gone"}, moved)
    model = ("--base", str(adapted.folder / "training_config.yaml"), "--load", str(moved), "--seed", "1234")
    status, output = sample(tmp_path / "log", *model, *for_prompts, *OPEN, "--output-dir", str(tmp_path))
    assert status == 2 and "--base-weights PATH" in output and "Traceback" not in output
    found = latents(*model, "--base-weights", str(base.folder))
    assert far(found, latents("--run", str(adapted.folder))) <= 1e-5


def test_adapters_in_peft_s_layout_are_the_same_adapters(tmp_path: Path, base: Run, adapted: Run) -> None:
    sat = torch.load(adapted.checkpoint(4), weights_only=True)["module"]
    sat = {name.removeprefix("model.diffusion_model."): tensor for name, tensor in sat.items()}
    file = tmp_path / "pytorch_lora_weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in to_peft(sat).items()}, file)
    model = ("--base", str(adapted.folder / "training_config.yaml"), "--load", str(file), "--seed", "1234")
    found = latents(*model, "--base-weights", str(base.folder))
    assert far(found, latents("--run", str(adapted.folder))) <= 1e-5
    status, output = sample(tmp_path / "log", *model, *for_prompts, *OPEN, "--output-dir", str(tmp_path))
    assert status == 2 and "holds adapters alone" in output


def test_an_average_is_what_its_file_holds(tmp_path: Path, base: Run) -> None:
    """The average in place of the model file's weights equals a model file that holds the average."""
    of_the_run = ("--run", str(base.folder))
    assert far(latents(*of_the_run, "--ema"), latents(*of_the_run)) > 1e-4
    module = torch.load(base.checkpoint(4), weights_only=True)["module"]
    frozen = {name for name in module if name.endswith("pos_embedding")}
    average = {name: tensor * 0.9 for name, tensor in module.items() if name not in frozen}
    for name, content in {"1": module, "2": module | average}.items():
        (tmp_path / name).mkdir()
        torch.save({"module": content}, tmp_path / name / "mp_rank_00_model_states.pt")
    torch.save({"module": average}, tmp_path / "1/mp_rank_00_ema_states.pt")
    model = ("--base", str(base.folder / "training_config.yaml"), "--load")
    averaged = latents(*model, str(tmp_path / "1"), "--ema")
    assert far(averaged, latents(*model, str(tmp_path / "2"))) == 0
    assert far(averaged, latents(*model, str(tmp_path / "1"))) > 1e-3


def test_a_talk_draws_prompt_after_prompt(tmp_path: Path, base: Run) -> None:
    words = ("--run", str(base.folder), "--interactive", "--output-dir", str(tmp_path / "out"), *OPEN)
    status, output = sample(
        tmp_path / "log", *words, typed="a dog\nan owl@@no.png\na cat\nexit\nnever drawn\n", ranks=2
    )
    assert status == 0, output[-3000:]
    assert sorted(file.parent.name for file in (tmp_path / "out").glob("*/000.mp4")) == ["000-a-dog", "001-a-cat"]
    assert output.count("an image is given") == 1


def test_a_talk_may_pause_longer_than_a_collective(tmp_path: Path, base: Run) -> None:
    words = ("--run", str(base.folder), "--interactive", "--output-dir", str(tmp_path / "out"), *OPEN)
    status, output = sample(tmp_path / "log", *words, typed="a dog\n", ranks=2, after_s=10, patience_s=6)
    assert status == 0 and "Traceback" not in output, output[-3000:]
    assert len(list((tmp_path / "out").glob("*/000.mp4"))) == 1


@pytest.mark.parametrize("flags", [(), ("--model-parallel-size", "2")], ids=["data", "model"])
def test_a_clip_that_cannot_be_written_ends_all_ranks_alike(tmp_path: Path, base: Run, flags: tuple[str, ...]) -> None:
    """A file stands where the second clip's folder should; told once, and the other clip of the ranks is there."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "001-two-boats-at-night").touch()
    words = ("--run", str(base.folder), "--output-dir", str(out), *for_prompts[:4], *flags, *OPEN)
    codes, output = sample_on_ranks(tmp_path / "log", words, 2)
    assert codes == [2, 2] and "Traceback" not in output, output[-3000:]
    assert output.count("cannot write") == 1
    assert (out / "000-a-dog-in-a-field/000.mp4").is_file()


def test_the_vae_s_chunks_change_nothing(base: Run) -> None:
    clips = []
    for words in ((), ("--latents-per-chunk", "1")):
        arguments = get_sampling_arguments(["--run", str(base.folder), "--prompt", "a dog", *OPEN, *words])
        studio = Studio(arguments)
        with torch.no_grad():
            clips.append(
                studio.engine.decode_clips(torch.randn(1, *studio.shape, generator=torch.Generator().manual_seed(0)))
            )
    assert far(*clips) <= 1e-4


@pytest.mark.parametrize("changes", [(IMAGE_MODEL,), (IMAGE_MODEL, PATCH_OF_TWO)], ids=["i2v", "1.5-i2v"])
def test_an_image_starts_a_clip(tmp_path: Path, changes: tuple[dict, ...]) -> None:
    run = train(tmp_path, SHORT, OPEN_GATES, *changes, flags=OPEN)
    assert run.status == 0, run.output[-3000:]
    frames = 9 if PATCH_OF_TWO in changes else 5
    for name, colour in {"red": (200, 30, 30), "blue": (30, 30, 200)}.items():
        Image.new("RGB", (100, 90), colour).save(tmp_path / f"{name}.png")
    images = [word for name in ("red", "blue") for word in ("--prompt", f"a thing@@{tmp_path}/{name}.png")]
    words = ("--run", str(run.folder), *OPEN, *images)
    status, output = sample(tmp_path / "log", *words)
    assert status == 0, output[-3000:]
    files = sorted(run.folder.glob("samples/4/*/000.mp4"))
    assert len(files) == 2
    for file in files:
        with av.open(str(file)) as container:
            assert sum(1 for _ in container.decode(video=0)) == frames
        assert len(json.loads(file.with_suffix(".json").read_text())["image_sha256"]) == 64
    arguments = get_sampling_arguments([*words])
    studio = Studio(arguments)
    red, blue = jobs_of(arguments, arguments.prompts)
    with torch.no_grad():
        both = studio.latents([red, blue])
        assert far(both[1:], studio.latents([blue])) <= 1e-5
        as_red = type(blue)(red.prompt, blue.prompt_number, blue.sample_number, blue.path)
        assert far(both[1:], studio.latents([as_red])) > 1e-4
