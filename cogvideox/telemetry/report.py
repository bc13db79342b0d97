"""report.html: what a run was, how it went and what it makes, in one file that opens without a network.

Nothing in it runs and nothing is fetched; videos are relative links into the run's folder. Captions, config values and
file names come from outside and are escaped.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from cogvideox.config.bounds import safe_yaml
from cogvideox.parallel import current
from cogvideox.platform import device_count, device_type
from cogvideox.telemetry.chart import Point, Series, line_chart
from cogvideox.telemetry.metrics_file import read_metrics
from cogvideox.telemetry.progress import duration
from cogvideox.telemetry.report_style import STYLE
from cogvideox.telemetry.samples import last_samples

PACKAGES = ("torch", "deepspeed", "SwissArmyTransformer", "transformers", "numpy", "av", "safetensors")

# What is shown of the config without opening it, in this order, where it is there.
HIGHLIGHTS = (
    "args.experiment_name",
    "args.mode",
    "args.load",
    "args.train_iters",
    "args.seed",
    "args.model_parallel_size",
    "args.checkpoint_activations",
    "args.train_data",
    "args.valid_data",
    "data.params.video_size",
    "data.params.fps",
    "data.params.max_num_frames",
    "model.scale_factor",
    "model.not_trainable_prefixes",
    "model.network_config.params.num_layers",
    "model.network_config.params.hidden_size",
    "model.network_config.params.modules.lora_config.params.r",
    "deepspeed.train_micro_batch_size_per_gpu",
    "deepspeed.gradient_accumulation_steps",
    "deepspeed.gradient_clipping",
    "deepspeed.zero_optimization.stage",
    "deepspeed.bf16.enabled",
    "deepspeed.fp16.enabled",
    "deepspeed.optimizer.type",
    "deepspeed.optimizer.params.lr",
    "deepspeed.optimizer.params.weight_decay",
)

CONTENT_POLICY = "script-src 'none'; object-src 'none'; base-uri 'none'"

# Row of the summary → metric, and how its median over the logged iterations reads.
MEDIANS = {
    "seconds per iteration": ("seconds_per_iteration", "{:.3f}"),
    "samples per second": ("samples_per_second", "{:.3f}"),
    "tokens per second": ("tokens_per_second", "{:.0f}"),
    "model TFLOP/s per device": ("model_tflops", "{:.2f}"),
    "MFU": ("mfu", "{:.1%}"),
    "waiting for data": ("data_wait_fraction", "{:.1%}"),
}

Row = Mapping[str, Any]


def write_report(run_folder: Path) -> Path:
    """Write `report.html` into a run's folder from the files that are there; whole or not at all. Returns its path."""
    metrics_path = run_folder / "metrics.jsonl"
    objects = read_metrics(metrics_path) if metrics_path.is_file() else []
    lines = in_force(objects)
    train = [line for line in lines if "split" not in line]
    val = [line for line in lines if line.get("split") == "val"]
    told = [line for line in lines if line.get("split") == "data"]
    title = escape(run_folder.resolve().name)
    sections = [
        _summary(train, val, told),
        _curves(train, val),
        _samples(run_folder),
        _config(run_folder),
        _environment(),
    ]
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n" + "\n".join(sections) + "\n</body></html>\n"
    )
    path = run_folder / "report.html"
    partial = path.with_suffix(".html.partial")
    partial.write_text(page, encoding="utf-8", errors="backslashreplace")
    os.replace(partial, path)
    return path


def in_force(objects: Iterable[Row]) -> list[Row]:
    """The lines that a resumed run did not make void: where training goes back, what lay ahead is dropped."""
    kept: list[Row] = []
    reached = -1
    for each in (each for each in objects if "iteration" in each):
        if "split" not in each:
            if each["iteration"] <= reached:
                kept = [before for before in kept if before["iteration"] < each["iteration"]]
            reached = each["iteration"]
        kept.append(each)
    return kept


def points_of(rows: Iterable[Row], key: str) -> list[Point]:
    """(iteration, value) of every row that has `key`; NaN where the value was not finite."""
    return [(float(row["iteration"]), math.nan if row[key] is None else row[key]) for row in rows if key in row]


def _summary(train: Sequence[Row], val: Sequence[Row], told: Sequence[Row]) -> str:
    """What became of the run; `told` are steps left out, spikes and clips that did not decode, by kind."""
    rows: list[tuple[str, str]] = []
    if train:
        rows.append(("iterations", str(train[-1]["iteration"])))
    if losses := [value for _, value in points_of(train, "loss")]:
        tenth = max(1, len(losses) // 10)
        first, last = statistics.fmean(losses[:tenth]), statistics.fmean(losses[-tenth:])
        rows.append(("train loss, mean of first and last 10 %", f"{first:.5f} → {last:.5f}"))
        rows.append(("logged losses that are not finite", str(sum(not math.isfinite(loss) for loss in losses))))
    if evaluations := points_of(val, "loss"):
        rows.append((f"validation loss at {evaluations[-1][0]:.0f}", f"{evaluations[-1][1]:.5f}"))
    for name, (key, text) in MEDIANS.items():
        if values := _finite(train, key):
            rows.append((f"{name}, median", text.format(statistics.median(values))))
    if seconds := _finite(train, "seconds_per_iteration"):
        rows.append(("training time, about", duration(statistics.fmean(seconds) * train[-1]["iteration"])))
    if peaks := _finite(train, "peak_memory_gib"):
        rows.append(("peak memory of rank 0", f"{max(peaks):.2f} GiB"))
    for kind in dict.fromkeys(str(row.get("kind")) for row in told):
        iterations = sorted({row["iteration"] for row in told if str(row.get("kind")) == kind})
        rows.append((kind, f"at {len(iterations)} iterations, first {iterations[0]}, last {iterations[-1]}"))
    return _table(rows) if rows else '<p class="note">No metrics were logged.</p>'


def _finite(rows: Iterable[Row], key: str) -> list[float]:
    return [value for _, value in points_of(rows, key) if math.isfinite(value)]


def _curves(train: Sequence[Row], val: Sequence[Row]) -> str:
    raw, evaluated = points_of(train, "loss"), points_of(val, "loss")
    window = max(1, len(raw) // 25)
    series = [Series("train", "raw" if window > 1 else "train", raw)]
    if window > 1:
        series.append(Series(f"train, mean of {window}", "train", _running_mean(raw, window)))
    if evaluated:
        series.append(Series("validation", "val", evaluated, has_dots=True))
    charts = [
        line_chart("Loss", series, log_if_wide=True),
        line_chart("Learning rate", [Series("lr", "train", points_of(train, "lr"))]),
    ]
    return "<h2>Curves</h2>\n" + "\n".join(charts) if any(charts) else ""


def _running_mean(points: Sequence[Point], window: int) -> list[Point]:
    """The mean of the last `window` finite values at every finite point."""
    finite = [point for point in points if math.isfinite(point[1])]
    means = []
    for index, (x, _) in enumerate(finite):
        last = finite[max(0, index + 1 - window) : index + 1]
        means.append((x, statistics.fmean(y for _, y in last)))
    return means


def _samples(run_folder: Path) -> str:
    samples = last_samples(run_folder)
    if samples is None:
        return ""
    parts = [f"<h2>Samples at iteration {samples.iteration}</h2>"]
    for caption, paths in samples.rows:
        text = escape(caption) if caption else '<span class="note">no caption</span>'
        videos = [
            f'<div><span class="kind">{escape(kind)}</span><br>'
            f'<video controls loop muted preload="metadata" src="{escape(quote(path.as_posix()))}"></video></div>'
            for kind, path in paths.items()
        ]
        parts.append(f'<figure><figcaption>{text}</figcaption><div class="kinds">{"".join(videos)}</div></figure>')
    return "\n".join(parts)


def _config(run_folder: Path) -> str:
    path = run_folder / "training_config.yaml"
    if not path.is_file():
        return ""
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        values = flatten(safe_yaml(path))
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        values = {}
    rows = [(key, str(values[key])) for key in HIGHLIGHTS if values.get(key) is not None]
    details = f"<details><summary>training_config.yaml</summary><pre>{escape(text)}</pre></details>"
    return f"<h2>Config</h2>\n{_table(rows)}\n{details}"


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    if not isinstance(node, Mapping):
        return {prefix: node}
    found: dict[str, Any] = {}
    for key, value in node.items():
        found.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return found


def _environment() -> str:
    rows = [("python", platform.python_version()), ("system", platform.platform())]
    rows.append(("devices", f"{device_type()}, {device_count()} GPUs here, {current().world.size} processes"))
    for package in PACKAGES:
        try:
            rows.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            rows.append((package, "not installed"))
    return f"<h2>Environment</h2>\n{_table(rows)}"


def _table(rows: Iterable[tuple[str, str]]) -> str:
    body = "\n".join(f"<tr><th>{escape(key)}</th><td>{escape(text)}</td></tr>" for key, text in rows)
    return f"<table>\n{body}\n</table>"
