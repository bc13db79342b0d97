"""Does a checkpoint load as what was trained?

    python tools/verify_checkpoint.py runs/quickstart/quickstart-…        (its latest checkpoint)
    python tools/verify_checkpoint.py runs/quickstart/quickstart-…/450

Builds the transformer from the run's training_config.yaml, loads the checkpoint as for sampling, and runs it on fixed
noise, on the CPU: with the weights (raw), with their moving averages (ema) where there are any, and in the diffusers
package's class (exported) where that is installed. A run with --verify-save has stored what its live model gave, and
every parameter's checksum: raw and ema must be as there, the parameters to the bit. Exported must give what raw gives.
Exit status 0 if all is well; 1 if not, naming what differs; 2 where something needed is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cogvideox.checkpoint.fingerprint import EMA, RAW, LiveModel, differing  # noqa: E402
from cogvideox.checkpoint.fixed_noise import fixed_forward, relative_difference  # noqa: E402
from cogvideox.checkpoint.inference import weights_to_sample_with  # noqa: E402
from cogvideox.checkpoint.loading import MODEL_FILES, StartingWeights, checkpoint_folder  # noqa: E402
from cogvideox.config.targets import allowed_modules  # noqa: E402
from cogvideox.errors import UserError  # noqa: E402
from cogvideox.transformer.tensor_parallel import merge, shard  # noqa: E402
from diffusion_video import SATVideoDiffusionEngine  # noqa: E402
from tools.verify_exported import NotComparable, exported  # noqa: E402

CPU = torch.device("cpu")
EXPORTED = "exported"
LISTED = 10  # parameters named of those that differ
# How far outputs of the same weights may lie apart: another device, another order of summation.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass
class Row:
    """What was seen of one form of the weights; `problems` make it fail."""

    weights: str
    parameters: str = "–"
    output: str = "–"
    problems: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        return "DIFFERS" if self.problems else "ok"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's folder, the config of its run, and what was stored of the live model (by model parallel rank).

    `base`: where the weights under its adapters are, if not where it says.
    """

    folder: Path
    config: Mapping[str, Any]
    config_file: Path
    ranks: int
    live: list[LiveModel] | None
    base: Path | None = None

    @property
    def network(self) -> Mapping[str, Any]:
        return self.config["model"]["network_config"]["params"]

    @property
    def dtype(self) -> torch.dtype:
        """What the run computed in."""
        args = self.config.get("args") or {}
        return torch.float16 if args.get("fp16") else torch.bfloat16 if args.get("bf16") else torch.float32


def open_checkpoint(path: Path, base: Path | None = None) -> Checkpoint:
    """What `path` names: a run's folder (its latest checkpoint) or one checkpoint. UserError where it is neither."""
    folder = checkpoint_folder(path) if path.exists() else None
    if folder is None:
        raise UserError(f"{path} is neither a run's folder with `latest` in it nor a checkpoint <run>/<n> of one")
    file = folder.parent / "training_config.yaml"
    if not file.is_file():
        raise UserError(f"{file} does not exist: the checkpoint must lie in the folder of the run that wrote it")
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    ranks = len(list(folder.glob(MODEL_FILES)))
    files = [folder / f"mp_rank_{rank:02d}_live_states.pt" for rank in range(ranks)]
    live = [LiveModel.read(each) for each in files] if files[0].is_file() else None
    return Checkpoint(folder, config, file, ranks, live, base)


def build_engine(checkpoint: Checkpoint) -> SATVideoDiffusionEngine:
    """The run's engine on one rank, without VAE and text encoder, which no checkpoint holds; weights not yet loaded."""
    model = dict(checkpoint.config["model"])
    network = dict(checkpoint.network)
    network["transformer_args"] = {**network["transformer_args"], "model_parallel_size": 1, "skip_init": True}
    model |= {
        "network_config": {**model["network_config"], "params": network},
        "first_stage_config": {"target": "torch.nn.Identity"},
        "conditioner_config": {
            "target": "cogvideox.conditioning.conditioner.GeneralConditioner",
            "params": {"emb_models": []},
        },
        "compile_model": False,
    }
    args = argparse.Namespace(model_config=model)
    return SATVideoDiffusionEngine(args, params_dtype=checkpoint.dtype).to(checkpoint.dtype).eval()


def load(engine: SATVideoDiffusionEngine, checkpoint: Checkpoint, ema: bool) -> dict[str, Tensor]:
    """Load base and checkpoint; gives all parameters of the checkpoint by name, those outside of the engine too."""
    ranks = range(checkpoint.ranks)
    chains = [weights_to_sample_with(checkpoint.folder, ema, checkpoint.base, rank, len(ranks)) for rank in ranks]
    layers = [_joined(layer) for layer in zip(*chains, strict=True)]
    for place, layer in enumerate(layers):
        engine.load_weights(layer, allow_missing=place > 0)
    return {**layers[-1].state_dict, **{name: parameter.data for name, parameter in engine.named_parameters()}}


def _joined(shards: Sequence[StartingWeights]) -> StartingWeights:
    """The whole weights, from those of each model parallel rank."""
    first = shards[0]
    if not first.is_shard:
        return first
    whole = {name: merge(name, [each.state_dict[name] for each in shards]) for name in first.state_dict}
    return replace(first, state_dict=whole, is_shard=False)


def loaded_row(engine: SATVideoDiffusionEngine, checkpoint: Checkpoint, kind: str) -> tuple[Row, Tensor | None]:
    """Load the weights of `kind`; what came of it, held against the live model, and the output if they loaded."""
    row = Row(kind)
    try:
        parameters = load(engine, checkpoint, ema=kind == EMA)
    except UserError as error:
        row.problems.append(f"does not load: {error}")
        return row, None
    output = fixed_forward(engine.model, checkpoint.network, CPU)
    _check_finite(row, output)
    for rank, live in enumerate(checkpoint.live or []):
        _check_parameters(row, live, parameters, rank, checkpoint.ranks)
        if rank == 0:
            _compare(row, output, live.outputs[kind], checkpoint.dtype, "live")
    return row, output


def _check_parameters(row: Row, live: LiveModel, parameters: Mapping[str, Tensor], rank: int, ranks: int) -> None:
    expected = live.expected(row.weights)
    wrong = differing(expected, {name: shard(name, tensor, rank, ranks) for name, tensor in parameters.items()})
    if wrong:
        where = f" of model parallel rank {rank}" if ranks > 1 else ""
        row.problems.append(f"{len(wrong)} of {len(expected)} parameters{where} are not the live model's:")
        row.problems += [f"  {line}" for line in _some(wrong)]
    row.parameters = f"{len(expected) - len(wrong)} of {len(expected)} as live"


def _compare(row: Row, found: Tensor, expected: Tensor, dtype: torch.dtype, name: str) -> None:
    if found.shape != expected.shape:
        row.problems.append(f"its output has shape {tuple(found.shape)}, {name} {tuple(expected.shape)}")
        return
    difference = relative_difference(found, expected)
    row.output = f"{difference:.1e} from {name}"
    if not difference <= TOLERANCE[dtype]:
        row.problems.append(
            f"its output on fixed noise is {difference:.3g} (relative) from {name}'s, allowed {TOLERANCE[dtype]:g}; "
            f"largest difference {float((found - expected).abs().max()):.3g}"
        )


def _check_finite(row: Row, output: Tensor) -> None:
    bad = int((~torch.isfinite(output)).sum())
    row.output = "finite" if not bad else "not finite"
    if bad:
        row.problems.append(f"{bad} of {output.numel()} values of its output on fixed noise are not finite")


def verify(path: Path, base: Path | None = None) -> tuple[list[Row], list[str]]:
    """A row for each form of the weights, and what could not be checked. UserError where something is missing."""
    checkpoint = open_checkpoint(path, base)
    notes = []
    if checkpoint.live is None:
        notes.append("nothing to compare raw and ema with: the run was not started with --verify-save")
    engine = build_engine(checkpoint)
    rows = []
    if any(checkpoint.folder.glob("mp_rank_*_ema_states.pt")) or (
        checkpoint.live and EMA in checkpoint.live[0].outputs
    ):
        rows.append(loaded_row(engine, checkpoint, EMA)[0])
    row, output = loaded_row(engine, checkpoint, RAW)
    rows.insert(0, row)
    if output is None:
        return rows, notes
    try:
        rows.append(_exported_row(engine, checkpoint, output))
    except NotComparable as reason:
        notes.append(f"the exported form: {reason}")
    return rows, notes


def _exported_row(engine: SATVideoDiffusionEngine, checkpoint: Checkpoint, raw: Tensor) -> Row:
    found = exported(engine, checkpoint.config["model"], str(checkpoint.config_file))
    row = Row(EXPORTED, parameters=f"{found.names}, and back to the bit")
    if found.changed:
        row.parameters = f"{found.names}, {len(found.changed)} changed"
        row.problems.append("not the same after export and import:")
        row.problems += [f"  {name}" for name in _some(found.changed)]
    _check_finite(row, found.output)
    _compare(row, found.output, raw, checkpoint.dtype, RAW)
    return row


def _some(lines: Sequence[str]) -> list[str]:
    more = len(lines) - LISTED
    return [*lines[:LISTED], *([f"and {more} more"] if more > 0 else [])]


def table(rows: Sequence[Row]) -> str:
    """A line for each row, aligned, and below it what is wrong with it."""
    cells = [("weights", "parameters", "output", ""), *((r.weights, r.parameters, r.output, r.verdict) for r in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    details = [f"{row.weights}: {problem}" for row in rows for problem in row.problems]
    return "\n".join([*lines, *([""] if details else []), *details])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and the verdict; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a run's folder, or one checkpoint in it")
    parser.add_argument("--base-weights", type=Path, help="of a LoRA run, if they are not where they were")
    parser.add_argument("--allow-target", action="append", default=[], help="as for train_video.py")
    options = parser.parse_args(arguments)
    for module in options.allow_target:
        allowed_modules.allow(module)
    try:
        rows, notes = verify(options.folder, options.base_weights)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.folder}\n{table(rows)}")
    for note in notes:
        print(f"not checked: {note}")
    is_good = not any(row.problems for row in rows)
    print("verified" if is_good else "NOT verified")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
