"""Settings of sample_video.py. Truths: identity (what was given comes out, by the order of precedence), golden values
(the reference's counts of frames), and that every mistake is told at once, before torch is imported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from arguments import get_args
from cogvideox.config.sampling import SamplingArguments, get_sampling_arguments
from cogvideox.config.sampling_record import Job, jobs_of, record_of, unfinished
from cogvideox.data.prompts import Prompt
from cogvideox.data.sample_files import record_path, sample_path, slug, write_record
from cogvideox.errors import UserError
from cogvideox.sat_bridge import building
from sample_video import Studio

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART, TASK = str(ROOT / "configs/quickstart.yaml"), str(ROOT / "configs/inference.yaml")
Get = Callable[..., SamplingArguments]


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder of two checkpoints, empty files, of which the second is the latest."""
    for iteration in (10, 20):
        (tmp_path / f"weights/{iteration}").mkdir(parents=True)
        (tmp_path / f"weights/{iteration}/mp_rank_00_model_states.pt").write_bytes(b"PK\x03\x04")
    (tmp_path / "weights/latest").write_text("20")
    return tmp_path / "weights"


@pytest.fixture
def get(weights: Path) -> Get:
    """The settings of the quickstart's model with weights and a prompt, and more words."""

    def call(*words: str, base: tuple[str, ...] = (QUICKSTART,), prompt: str | None = "a dog") -> SamplingArguments:
        given = ["--base", *base, "--load", str(weights), *(["--prompt", prompt] if prompt else [])]
        return get_sampling_arguments([*given, *words])

    return call


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def call(text: str, name: str = "task.yaml") -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return call


def refusal(get: Get, *words: str, **changes: object) -> str:
    with pytest.raises(UserError) as error:
        get(*words, **changes)
    return str(error.value)


def test_what_is_not_said_is_the_model_s(get: Get, weights: Path) -> None:
    args = get()
    network = yaml.safe_load(Path(QUICKSTART).read_text())["model"]["network_config"]["params"]
    size = (network["num_frames"], network["latent_height"] * 8, network["latent_width"] * 8)
    assert (args.clip.frames, args.clip.height, args.clip.width, args.clip.fps) == (*size, 8)
    assert (args.num_steps, args.asked_scale, args.guidance_scale, args.guider) == (25, None, 2.0, "VanillaCFG")
    assert (args.sampler, args.precision, args.lora_scale, args.use_ema) == ("dpmpp", "fp32", 1.0, False)
    assert args.checkpoint.path == weights / "20" and args.checkpoint.iteration == 20
    assert args.prompts == (Prompt("a dog", None, "--prompt"),) and args.output_dir == Path("samples")


def test_the_shipped_task_says_what_the_defaults_say(get: Get) -> None:
    alone, with_task = get(), get(base=(QUICKSTART, TASK))
    for name in ("clip", "seed", "num_samples", "batch_size", "num_steps", "sampler", "output_dir", "model_config"):
        assert getattr(alone, name) == getattr(with_task, name), name


def test_the_command_line_wins_over_files_whatever_the_name(get: Get, write: Callable[..., str]) -> None:
    task = write("args: {frames: 5, sampling_image_size: [32, 48], sampling_fps: 4, num_steps: 7, sampler: ddim}\n")
    args = get(base=(QUICKSTART, task))
    assert (args.clip.frames, args.clip.size, args.clip.fps) == (5, (32, 48), 4)
    assert (args.num_steps, args.sampler) == (7, "ddim")
    args = get("--sampling-num-frames", "1", "--height", "64", "--num-steps", "9", "--fps=16", base=(QUICKSTART, task))
    assert (args.clip.frames, args.clip.size, args.clip.fps, args.num_steps) == (1, (64, 48), 16, 9)
    args = get("model.sampler_config.params.num_steps=3", "data.params.max_num_frames=9", base=(QUICKSTART, task))
    assert args.num_steps == 7 and args.clip.frames == 9
    assert get("--sampler", "ddim").model_config["sampler_config"]["target"].endswith("VideoDDIMSampler")


@pytest.mark.parametrize(("patch", "latent_frames", "frames"), [("2", 13, 49), ("[2, 2, 2]", 22, 81), ("2", 1, 1)])
def test_latent_frames_are_counted_as_the_reference_does(
    get: Get, write: Callable[..., str], patch: str, latent_frames: int, frames: int
) -> None:
    text = f"args: {{sampling_num_frames: {latent_frames}}}\nmodel: {{network_config: {{params: {{num_frames: 81, "
    task = write(text + f"patch_size: {patch}}}}}}}\n")
    assert get(base=(QUICKSTART, task)).clip.frames == frames


def test_the_size_of_1_5_is_what_it_was_trained_on(get: Get, write: Callable[..., str]) -> None:
    sizes = "num_frames: 81, latent_height: 300, latent_width: 300, patch_size: [2, 2, 2]"
    clip = get(
        base=(write(f"extends: {QUICKSTART}\nmodel: {{network_config: {{params: {{{sizes}}}}}}}\ndata: null\n"),)
    ).clip
    assert (clip.frames, clip.size, clip.fps) == (81, (768, 1360), 16)


def test_a_task_file_of_the_reference_is_understood(get: Get, write: Callable[..., str]) -> None:
    prompts = write("a cat\n\na dog\n", "test.txt")
    keys = f"""args:
      latent_channels: 16
      mode: inference
      batch_size: 3
      input_type: txt
      input_file: {prompts}
      sampling_num_frames: 3
      sampling_image_size: [64, 96]
      sampling_fps: 8
      bf16: True
      output_dir: outputs/
      force_inference: True
    """
    args = get(base=(QUICKSTART, write(keys)), prompt=None)
    assert [prompt.text for prompt in args.prompts] == ["a cat", "a dog"]
    assert (args.clip.frames, args.clip.size, args.num_samples) == (9, (64, 96), 3)
    assert (args.precision, args.output_dir, args.is_interactive) == ("bf16", Path("outputs"), False)
    for word in ("latent_channels", "force_inference", "batch_size"):
        assert sum(word in note for note in args.notes) == 1, word
    args = get("--input-type", "cli", base=(QUICKSTART, write(keys)), prompt=None)
    assert args.is_interactive and not args.prompts
    assert [prompt.text for prompt in get(base=(QUICKSTART, write(keys))).prompts] == ["a dog"]


MISTAKES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "an unknown flag": (("--promts", "x.txt"), ("--promts: unknown flag", "--prompts")),
    "a word alone": (("dog",), ("dog: stands alone", "quote a prompt")),
    "a wrong type": (("--frames", "many"), ("--frames many", "give a whole number")),
    "too few": (("--num-samples", "0"), ("give at least 1",)),
    "a seed beyond torch's": (("--seed", "99999999999999999999999"), ("give at most 9223372036854775807",)),
    "a wrong choice": (("--sampler", "euler"), ("'euler'", "'dpmpp'")),
    "an odd length": (("--frames", "8"), ("8 is not 4k + 1", "use 5 or 9")),
    "a crooked size": (("--height", "60"), ("not divisible by 16", "use [64, 96]")),
    "beyond the positions": (("--width", "960"), ("beyond the positions", "[64, 96]")),
    "too many steps": (("--num-steps", "1001"), ("is 1001", "give 2 to 1000")),
    "no such iteration": (("--iteration", "30"), ("no checkpoint of iteration 30", "10, 20")),
    "no average": (("--ema",), ("has no moving average",)),
    "no adapters": (("--lora-scale", "0.5"), ("the model has no adapters",)),
    "an empty prompt": (("--prompt", " "), ("the prompt is empty",)),
    "an image for text": (("--prompt", "a@@b.png"), ("the model draws from text alone",)),
    "no prompts file": (("--prompts", "/no/such.txt"), ("there is no file /no/such.txt",)),
    "prompts and a talk": (("--interactive",), ("are to be asked for",)),
    "no images taken": (("--image2video",), ("the model takes no image",)),
    "no base": (("--base-weights", "/no/such"), ("there is no /no/such",)),
    "a bad override": (("model.scale_factr=2",), ("did you mean `scale_factor`",)),
    "no folder": (("--output-dir", f"{__file__}/out"), ("is not a folder",)),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_with_its_remedy(get: Get, name: str) -> None:
    words, parts = MISTAKES[name]
    said = refusal(get, *words)
    assert said.startswith("1 problem with"), said
    assert all(part in said for part in parts), said


def test_all_mistakes_are_told_at_once(get: Get) -> None:
    said = refusal(get, "--frames", "8", "--num-steps", "1", "--seed", "x", "--what", "--load", "/no/such", prompt=None)
    for part in ("4k + 1", "give at least 2", "--seed x", "--what", "there is no /no/such", "no prompt is given"):
        assert said.count(part) == 1, said


def test_an_image_model_wants_an_image_for_every_prompt(get: Get, tmp_path: Path) -> None:
    words = ("model.noised_image_input=true", "model.network_config.params.in_channels=32")
    assert "write `a dog@@image.png`" in refusal(get, *words)
    assert "there is no image /no.png" in refusal(get, *words, prompt="a dog@@/no.png")
    (tmp_path / "a.png").touch()
    args = get(*words, "--image2video", prompt=f"a dog@@{tmp_path}/a.png")
    assert args.takes_image and args.prompts[0].image == tmp_path / "a.png"


def test_a_run_gives_its_model_and_its_checkpoints_and_nothing_of_its_training(weights: Path) -> None:
    config = yaml.safe_load(Path(QUICKSTART).read_text().replace("${repo}", str(ROOT)))
    config["args"] |= {"batch_size": 7, "seed": 3, "bf16": True, "load": "/long/gone"}
    (weights / "training_config.yaml").write_text(yaml.safe_dump(config))
    args = get_sampling_arguments(["--run", str(weights), "--prompt", "a", "--iteration", "10"])
    assert (args.batch_size, args.seed, args.precision) == (1, 1234, "bf16")
    assert args.checkpoint.file == weights / "10/mp_rank_00_model_states.pt"
    assert args.output_dir == weights / "samples/10"
    (weights / "samples").write_text("no folder")
    with pytest.raises(UserError, match=r"args.output_dir: cannot write to .*samples/20: .*samples is not a folder"):
        get_sampling_arguments(["--run", str(weights), "--prompt", "a"])
    (weights / "samples").unlink()
    args = get_sampling_arguments(["--run", str(weights), "--prompt", "a", "--base", TASK, "--precision", "fp32"])
    assert args.precision == "fp32" and args.config_files == (str(weights / "training_config.yaml"), TASK)
    with pytest.raises(UserError, match="--run has weights of its own"):
        get_sampling_arguments(["--run", str(weights), "--prompt", "a", "--load", str(weights)])
    with pytest.raises(UserError, match="there is no /no/such/training_config.yaml"):
        get_sampling_arguments(["--run", "/no/such", "--prompt", "a"])


def test_the_levels_of_diffusers_are_asked_for_as_the_docs_say(get: Get, weights: Path) -> None:
    denoiser, sampler = (
        f"model.{part}_config.params.discretization_config.params.rescale_before_picking=true"
        for part in ("denoiser", "sampler")
    )
    docs = (ROOT / "docs/sampling.md").read_text()
    assert denoiser in docs and sampler in docs
    model = get(denoiser).model_config
    (weights / "training_config.yaml").write_text(yaml.safe_dump({"model": get().model_config}))
    of_a_run = get_sampling_arguments(["--run", str(weights), "--prompt", "a", sampler]).model_config
    for each in (model, of_a_run):
        assert each["sampler_config"]["params"]["discretization_config"]["params"]["rescale_before_picking"]


def test_files_are_named_by_prompt_and_sample(get: Get, tmp_path: Path) -> None:
    args = get("--prompt", "Ein Müller/../im Café!", "--num-samples", "2", "--output-dir", str(tmp_path))
    names = [str(job.path.relative_to(tmp_path)) for job in jobs_of(args, args.prompts)]
    folders = ("000-a-dog", "001-ein-müller-im-café")
    assert names == [f"{folder}/{sample}.mp4" for folder in folders for sample in ("000", "001")]
    assert slug("@@") == "no-text" and len(slug("word " * 100)) <= 48
    assert sample_path(Path("o"), 1000, "x", 2, ".latents.pt") == Path("o/1000-x/002.latents.pt")


def test_what_is_complete_is_passed_over_and_nothing_is_replaced_unasked(get: Get, tmp_path: Path) -> None:
    words = ("--output-dir", str(tmp_path / "out"), "--num-samples", "2")
    args = get(*words)
    first, second = jobs_of(args, args.prompts)

    def pretend(job: Job) -> None:
        write_record(job.path, record_of(args, job))
        job.path.write_bytes(b"clip")

    pretend(first)
    assert unfinished(args, [first, second]) == [second]
    other = get(*words, "--seed", "5")
    with pytest.raises(UserError, match="other settings .seed 1234, now 5"):
        unfinished(other, [first])
    assert unfinished(get(*words, "--seed", "5", "--overwrite"), [first]) == [first]
    write_record(first.path, record_of(args, first))
    assert not first.path.exists(), "a clip does not outlive its record"
    second.path.write_bytes(b"somebody's")
    with pytest.raises(UserError, match="no 001.json says how"):
        unfinished(args, [second])
    assert record_path(first.path).is_file()


@pytest.mark.parametrize("content", [{"adapters_only": True, "base_weights": "/long/gone"}, {}])
def test_a_missing_base_is_told_before_a_model_is_built(
    get: Get, weights: Path, monkeypatch: pytest.MonkeyPatch, content: dict
) -> None:
    module = {"transformer.layers.0.attention.dense.matrix_A.0": torch.zeros(2, 4)}
    torch.save({"module": module, **content}, weights / "20/mp_rank_00_model_states.pt")
    monkeypatch.setattr(building, "get_model", lambda *_: pytest.fail("the model was built"))
    with pytest.raises(UserError, match="--base-weights PATH"):
        Studio(get())


@pytest.mark.parametrize(
    ("words", "status", "said"), [(["--help"], 0, "--guidance-scale"), (["--seed", "x"], 2, "4 problems")]
)
def test_help_and_mistakes_do_not_wait_for_heavy_imports(words: list[str], status: int, said: str) -> None:
    code = (
        "import atexit, sys\n"
        "heavy = {'torch', 'sat', 'deepspeed', 'transformers', 'av'}\n"
        "atexit.register(lambda: print('imported:', sorted(heavy & set(sys.modules))))\n"
        "import sample_video\n"
        "sys.exit(sample_video.main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stderr
    assert said in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "imported: []"


def test_ranks_that_cannot_be_are_told_as_in_training(get: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {"RANK": "4", "WORLD_SIZE": "4", "LOCAL_RANK": "first"}.items():
        monkeypatch.setenv(name, text)
    said = refusal(get)
    assert "rank 4 of a world of 4" in said and "LOCAL_RANK=first: is not a whole number" in said
    with pytest.raises(UserError) as error:
        get_args(["--base", QUICKSTART])
    assert [line for line in said.splitlines() if "environment" in line] == [
        line for line in str(error.value).splitlines() if "environment" in line
    ]
