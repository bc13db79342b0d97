"""Does a checkpoint load as what was trained?

    python tools/verify_checkpoint.py runs/quickstart/quickstart-…        (its latest checkpoint)
    python tools/verify_checkpoint.py runs/quickstart/quickstart-…/450

Builds the transformer from the run's training_config.yaml, loads the checkpoint as for sampling, and runs it on fixed
noise, on the CPU: with the weights (raw), with their moving averages (ema) where there are any, and in the diffusers
package's class (exported) where that is installed. A run with --verify-save has stored what its live model gave, and
every parameter's checksum: raw and ema must be as there, the parameters to the bit. Exported must give what raw gives.
The adapters of a LoRA run must be the live ones under the names of an export (adapters) too.
Exit status 0 if all is well; 1 if not, naming what differs; 2 where something needed is missing; 3 if the weights load
and compute finite numbers, and there is nothing to compare them with.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import cogvideox  # noqa: E402, F401  (ends here if packages are missing)  # isort: skip

import torch  # noqa: E402
import yaml  # noqa: E402
from torch import Tensor  # noqa: E402

from cogvideox.checkpoint.fingerprint import EMA, RAW, LiveModel  # noqa: E402
from cogvideox.checkpoint.fixed_noise import fixed_forward, why_not_fixed  # noqa: E402
from cogvideox.checkpoint.inference import weights_to_sample_with  # noqa: E402
from cogvideox.checkpoint.loading import MODEL_FILES, StartingWeights, checkpoint_folder  # noqa: E402
from cogvideox.checkpoint.lora_names import from_peft, is_sat_adapter, to_peft  # noqa: E402
from cogvideox.checkpoint.naming import NETWORK_PREFIX  # noqa: E402
from cogvideox.config.bounds import safe_yaml  # noqa: E402
from cogvideox.config.targets import allowed_modules  # noqa: E402
from cogvideox.errors import UserError  # noqa: E402
from cogvideox.transformer.tensor_parallel import merge  # noqa: E402
from diffusion_video import SATVideoDiffusionEngine  # noqa: E402
from tools.verify_exported import NotComparable, exported  # noqa: E402
from tools.verify_rows import (  # noqa: E402
    DIFFERS,
    GOOD,
    MISTAKE,
    NOT_COMPARED,
    VERDICTS,
    Row,
    check_finite,
    check_parameters,
    compare,
    some,
    table,
)

CPU = torch.device("cpu")
EXPORTED, ADAPTERS = "exported", "adapters"


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
    """What `path` names: a run's folder (its latest checkpoint) or one checkpoint.

    UserError where it is neither, and where the run's config is damaged or of a network that takes other inputs.
    """
    folder = checkpoint_folder(path) if path.exists() else None
    if folder is None:
        raise UserError(
            f"{path} is neither a run's folder with `latest` in it nor a checkpoint <run>/<n> of one: correct the path"
        )
    file = folder.parent / "training_config.yaml"
    if not file.is_file():
        raise UserError(f"{file} does not exist: put the checkpoint into the folder of the run that wrote it")
    config = _config_of(file)
    ranks = len(list(folder.glob(MODEL_FILES)))
    files = [folder / f"mp_rank_{rank:02d}_live_states.pt" for rank in range(ranks)]
    live = [LiveModel.read(each) for each in files] if files[0].is_file() else None
    return Checkpoint(folder, config, file, ranks, live, base)


def _config_of(file: Path) -> Mapping[str, Any]:
    try:
        config = safe_yaml(file)
        network = config["model"]["network_config"]["params"]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file} is no YAML ({reason}): put back the file that the run wrote") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"{file} has no model.network_config.params: put back the file that the run wrote") from error
    unfit = why_not_fixed(network)
    if unfit is not None:
        raise UserError(f"{file}: its network cannot be verified: {unfit}")
    return config


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


@dataclass(frozen=True)
class Loaded:
    """The checkpoint's parameters by name, and what the engine gives with them."""

    parameters: Mapping[str, Tensor]
    output: Tensor


def loaded_row(engine: SATVideoDiffusionEngine, checkpoint: Checkpoint, kind: str) -> tuple[Row, Loaded | None]:
    """Load the weights of `kind`; what came of it, held against the live model, and the weights if they loaded."""
    row = Row(kind)
    try:
        parameters = load(engine, checkpoint, ema=kind == EMA)
    except UserError as error:
        row.problems.append(f"does not load: {error}")
        return row, None
    output = fixed_forward(engine.model, checkpoint.network, CPU)
    check_finite(row, output)
    for rank, live in enumerate(checkpoint.live or []):
        check_parameters(row, live.expected(kind), parameters, rank, checkpoint.ranks)
        if rank == 0:
            compare(row, output, live.outputs[kind], checkpoint.dtype, "live")
    return row, Loaded(parameters, output)


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
    row, loaded = loaded_row(engine, checkpoint, RAW)
    rows.insert(0, row)
    if loaded is None:
        return rows, notes
    rows += _adapters_row(checkpoint, loaded.parameters)
    try:
        rows.append(_exported_row(engine, checkpoint, loaded.output))
    except NotComparable as reason:
        notes.append(f"the exported form: {reason}")
    return rows, notes


def _adapters_row(checkpoint: Checkpoint, parameters: Mapping[str, Tensor]) -> list[Row]:
    """None without live adapters. Their scale is left out: an exported B times it is rounded once."""
    own = {name.removeprefix(NETWORK_PREFIX): tensor for name, tensor in parameters.items() if is_sat_adapter(name)}
    if not own or checkpoint.live is None:
        return []
    row = Row(ADAPTERS)
    try:
        back = {NETWORK_PREFIX + name: tensor for name, tensor in from_peft(to_peft(own)).items()}
    except UserError as error:
        row.problems.append(f"cannot be exported: {error}")
        return [row]
    for rank, live in enumerate(checkpoint.live):
        expected = {name: each for name, each in live.expected(RAW).items() if is_sat_adapter(name)}
        check_parameters(row, expected, back, rank, checkpoint.ranks)
    return [row]


def _exported_row(engine: SATVideoDiffusionEngine, checkpoint: Checkpoint, raw: Tensor) -> Row:
    found = exported(engine, checkpoint.config["model"], str(checkpoint.config_file))
    row = Row(EXPORTED, parameters=f"{found.names}, and back to the bit")
    if found.changed:
        row.parameters = f"{found.names}, {len(found.changed)} changed"
        row.problems.append("not the same after export and import:")
        row.problems += [f"  {name}" for name in some(found.changed)]
    check_finite(row, found.output)
    compare(row, found.output, raw, checkpoint.dtype, RAW)
    return row


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
        return MISTAKE
    print(f"{options.folder}\n{table(rows)}")
    for note in notes:
        print(f"not checked: {note}")
    status = DIFFERS if any(row.problems for row in rows) else GOOD
    if status == GOOD and not any(row.is_compared for row in rows):
        status = NOT_COMPARED
    print(VERDICTS[status])
    return status


if __name__ == "__main__":
    sys.exit(main())
