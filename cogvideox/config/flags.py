"""Every flag of the entry point, as a table: name, type, default, help. YAML's `args:` keys are these names.

The groups up to "sampling" are SAT's and the reference's; a test holds the names and defaults against SAT 0.4.12.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

EvalIterable = bool | Literal["custom", ""]


MOST_SEED = 2**63 - 1  # of torch's generators


@dataclass(frozen=True)
class Flag:
    """`--name`; `only_flag`: not a key of YAML's `args:`. `minimum`, `maximum`: the bounds of what makes sense.

    `never`: what to do in place of an interval of 0.
    """

    name: str
    annotation: Any
    default: Any
    help: str
    minimum: float | None = None
    only_flag: bool = False
    maximum: float | None = None
    never: str = ""

    @property
    def key(self) -> str:
        return self.name.replace("-", "_")

    def remedy_of(self, value: float) -> str | None:
        """What to give instead of a number that makes no sense here; None for one that does."""
        if self.minimum is not None and value < self.minimum:
            return f"give at least {self.minimum:g}" + (f", or {self.never}" if self.never else "")
        if self.maximum is not None and value > self.maximum:
            return f"give at most {self.maximum}"
        return None


_BASE = [
    Flag("base", list[str], [], "YAML config files, merged in order: a later one wins", only_flag=True),
    Flag("model-parallel-size", int, 1, "ranks that share one copy of the model", 1),
    Flag("force-pretrain", bool, False, "in mode pretrain, start from the weights in --load even if some do not match"),
    Flag("device", int, -1, "GPU index; -1: the one of this process's local rank, or the CPU if there is no GPU"),
    Flag("debug", bool, False, "log at debug level"),
    Flag("log-image", bool, True, "save samples and reconstructions at every evaluation"),
]

_SAMPLING = [
    Flag("output-dir", str, "samples", "folder that sampled videos are written to"),
    Flag("input-dir", str | None, None, "folder with the pictures to animate"),
    Flag("input-type", Literal["cli", "txt"], "cli", "where prompts come from: typed (cli) or --input-file (txt)"),
    Flag("input-file", str, "input.txt", "text file with one prompt a line"),
    Flag("sampling-image-size", list[int], [768, 1360], "height and width of sampled videos, in pixels"),
    Flag("final-size", int, 2048, "longest side of a super-resolved picture, in pixels; kept for old scripts"),
    Flag("sdedit", bool, False, "start sampling from a noised video; kept for old scripts"),
    Flag("grid-num-rows", int, 1, "videos side by side in one written grid", 1),
    Flag("force-inference", bool, False, "sample even if weights are missing from the checkpoint"),
    Flag("lcm-steps", int | None, None, "sampling steps of a consistency-distilled model"),
    Flag("sampling-num-frames", int, 32, "latent frames to sample (49 frames of video are 13)", 1),
    Flag("sampling-fps", int, 8, "frames per second of written videos", 1),
    Flag("only-save-latents", bool, False, "write sampled latents, do not decode them"),
    Flag("only-log-video-latents", bool, False, "at evaluation save latents, do not decode them"),
    Flag("latent-channels", int, 32, "channels of a latent", 1),
    Flag("image2video", bool, False, "the first frame of every video is given"),
]

_TRAIN = [
    Flag("experiment-name", str, "MyModel", "name of the run; date and time are appended for its folder"),
    Flag("train-iters", int | None, None, "optimizer steps to train (10000 if neither this nor --epochs is given)", 0),
    Flag("batch-size", int, 4, "clips per rank and micro-step", 1),
    Flag("lr", float, 1e-4, "learning rate after warmup", 0.0),
    Flag("mode", Literal["pretrain", "finetune", "inference"], "pretrain", "pretrain: from scratch or going on with "
         "--load; finetune: weights from --load, iteration 0; inference: is sample_video.py's"),
    Flag("seed", int, 1234, "seed of everything random, the same on all ranks", 1, maximum=MOST_SEED),
    Flag("zero-stage", Literal[0, 1, 2, 3], 0, "DeepSpeed ZeRO stage: what the ranks share out instead of copying"),
    Flag("checkpoint-activations", bool, False, "recompute activations in the backward pass to save memory; a file's "
         "transformer_args win over its args"),
    Flag("checkpoint-num-layers", int, 1, "layers between two kept activations", 1),
    Flag("checkpoint-skip-layers", int, 0, "last layers that keep their activations", 0),
    Flag("fp16", bool, False, "train in float16 with loss scaling (GPU only)"),
    Flag("bf16", bool, False, "train in bfloat16"),
    Flag("gradient-accumulation-steps", int, 1, "micro-steps per optimizer step", 1),
    Flag("profiling", int, -1, "iterations before CUDA's profiler starts (GPU only); -1: no profiling", -1),
    Flag("epochs", int | None, None, "passes over the training data, instead of --train-iters", 1),
    Flag("log-interval", int, 50, "iterations between two log lines", 1),
    Flag("summary-dir", str, "", "folder of the logs; the run's folder if empty"),
    Flag("save-args", bool, False, "write the arguments to a file beside the logs"),
    Flag("lr-decay-iters", int | None, None, "iterations until the learning rate has decayed; all if not given"),
    Flag("lr-decay-style", Literal["constant", "linear", "cosine", "exponential"], "linear", "how it decays"),
    Flag("lr-decay-ratio", float, 0.1, "learning rate at the end, as a fraction of --lr", 0.0, maximum=1),
    Flag("warmup", float, 0.01, "fraction of all iterations over which the learning rate rises from 0", 0.0, maximum=1),
    Flag("weight-decay", float, 0.01, "AdamW's weight decay", 0.0),
    Flag("save", str | None, None, "folder that holds runs: each makes its own folder there"),
    Flag("load", str | None, None, "weights to start from: a SAT folder, a diffusers folder or a weight file"),
    Flag("force-train", bool, False, "train even if weights are missing from --load (as LoRA's are at first)"),
    Flag("save-interval", int, 5000, "iterations between two checkpoints", 1,
         never="as many as --train-iters for one checkpoint, at the end"),
    Flag("no-save-rng", bool, False, "leave the random state out of checkpoints"),
    Flag("no-load-rng", bool, False, "do not restore the random state from a checkpoint"),
    Flag("resume-dataloader", bool, False, "go on in the data where the checkpoint stopped"),
    Flag("distributed-backend", Literal["nccl", "gloo"] | None, None, "nccl or gloo; chosen by the hardware"),
    Flag("local-rank", int | None, None, "set by the launcher", only_flag=True),
    Flag("exit-interval", int | None, None, "stop after this many iterations", 1),
    Flag("wandb", bool, False, "log to Weights & Biases too"),
    Flag("wandb-project-name", str, "default_project", "project there"),
]  # fmt: skip

_EVALUATION = [
    Flag("eval-batch-size", int | None, None, "clips per rank in evaluation; --batch-size if not given", 1),
    Flag("eval-iters", int, 100, "batches per evaluation", 1),
    Flag(
        "eval-interval",
        int | None,
        None,
        "iterations between two evaluations",
        1,
        never="leave it out (`args.eval_interval=null`) for none",
    ),
    Flag("strict-eval", bool, False, "evaluate each sample of the evaluation data exactly once"),
]

_DATA = [
    Flag("train-data", list[str] | None, None, "folders of clips: DIR/videos/NAME.mp4 with DIR/labels/NAME.txt"),
    Flag("train-data-weights", list[int] | None, None, "how often to draw from each folder, relative to the others"),
    Flag(
        "iterable-dataset",
        bool | Literal["custom"],
        False,
        "the data set is a stream of samples, or (custom) of whole batches",
    ),
    Flag("iterable-dataset-eval", EvalIterable, "", "the same for evaluation; as --iterable-dataset if not given"),
    Flag("batch-from-same-dataset", bool, False, "all clips of a batch come from one folder"),
    Flag("valid-data", list[str] | None, None, "folders of clips for evaluation"),
    Flag("test-data", list[str] | None, None, "folders of clips for the test after training"),
    Flag("split", str, "1000,1,1", "shares of training, evaluation and test, where the latter have no folder"),
    Flag("num-workers", int, 1, "processes that read clips", 0),
    Flag("block-size", int, 10000, "samples shuffled together when splitting a very large data set", 1),
    Flag("prefetch-factor", int, 4, "batches that each worker reads ahead", 1),
]

_DEEPSPEED = [
    Flag("deepspeed", bool, False, "train under DeepSpeed", only_flag=True),
    Flag("deepspeed-config", str | None, None, "DeepSpeed JSON file, laid over YAML's `deepspeed:`", only_flag=True),
]

_OURS = [
    Flag("explain", str | None, None, "print the value of a key and who set it, then stop", only_flag=True),
    Flag("allow-target", list[str], [], "Python modules that `target:` may name besides ours", only_flag=True),
    Flag("cache", str | None, None, "folder that keeps what the VAE and the text encoder make of the data; what is "
         "missing is encoded before the training"),
    Flag("cache-variants", int, 8, "random windows, crops and flips that the cache keeps of each clip", 1),
    Flag("quarantine", str | None, None, "file with names of clips, one a line, that are not to be trained on, as "
         "tools/check_data.py writes it"),
    Flag("max-bad-fraction", float, 0.5, "share of the clips that may fail to decode in training before it ends", 0.0,
         maximum=1),
    Flag("max-bad-steps", int, 3, "steps in a row whose loss or gradients are not finite, after which the run goes "
         "back to its last checkpoint, once, and then ends", 1),
    Flag("auto-warmup", bool, False, "SAT's warmup: 5 % of the learning rate for 100 iterations, then a jump"),
    Flag("profile-phases", bool, False, "log how long each phase of a step takes"),
    Flag("resume", str | None, None, "folder of a run (or `auto`) to continue exactly; auto: the newest run of this "
         "experiment name in --save, or a new one"),
    Flag("async-save", bool, False, "write checkpoints while the training goes on, from copies in the host's memory"),
    Flag("save-full", bool, False, "save the frozen weights too in a LoRA run, not its adapters alone"),
    Flag("save-total-limit", int | None, None, "how many checkpoints to keep, the newest; all if not given", 1),
    Flag("keep-every", int | None, None, "with --save-total-limit: also keep those of every so many iterations", 1),
    Flag("max-hours", float | None, None, "save and end after this many hours, counted from the start of the process",
         1e-6, never="leave it out for as long as it takes"),
    Flag("stall-timeout-s", float, 1800.0, "seconds without progress on any rank (a wait for data is none) after which "
         "the run ends with the stacks of all ranks; 0: never", 0.0, never="0 to wait for ever"),
    Flag("verify-save", bool, False, "load every checkpoint in another process before it gets its name; end the run if "
         "it does not compute what the live model does"),
]  # fmt: skip

GROUPS: dict[str, list[Flag]] = {
    "config and model": _BASE,
    "training": _TRAIN,
    "evaluation": _EVALUATION,
    "data": _DATA,
    "sampling": _SAMPLING,
    "DeepSpeed": _DEEPSPEED,
    "this project": _OURS,
}
# Flags that nothing reads, and why: scripts of the reference's and of SAT's may give them.
INERT_FLAGS: dict[str, str] = {
    "batch_from_same_dataset": "batches mix the folders",
    "block_size": "a split is drawn over the whole data set",
    "checkpoint_num_layers": "every layer is recomputed, or none",
    "checkpoint_skip_layers": "every layer is recomputed, or none",
    "debug": "there is one log level",
    "deepspeed": "training always runs under DeepSpeed",
    "force_pretrain": "--force-train alone says whether weights may be missing",
    "log_image": "every evaluation saves samples; without --eval-interval there is none",
    "no_load_rng": "--load takes weights only, --resume everything",
    "no_save_rng": "checkpoints always hold the random states",
    "resume_dataloader": "a run that goes on does so in its data too",
    "save_args": "training_config.yaml in the run's folder has them",
    "summary_dir": "logs go into the run's folder",
    **{flag.key: "training does not read it" for flag in _SAMPLING if flag.key != "only_log_video_latents"},
}
FLAGS: dict[str, Flag] = {flag.key: flag for flags in GROUPS.values() for flag in flags}
YAML_KEYS: dict[str, Flag] = {key: flag for key, flag in FLAGS.items() if not flag.only_flag}
