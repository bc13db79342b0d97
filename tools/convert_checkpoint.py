"""Convert CogVideoX weights between SAT's layout and diffusers', for the transformer, the VAE and LoRA adapters.

    python tools/convert_checkpoint.py runs/mine/sft-11-24-09-30 my-model/transformer             # SAT → diffusers
    python tools/convert_checkpoint.py CogVideoX-2b/transformer CogVideoX-2b-sat/transformer      # diffusers → SAT
    python tools/convert_checkpoint.py 3d-vae.pt my-model/vae --model 5b
    python tools/convert_checkpoint.py runs/mine/lora-11-24-09-30 my-lora --lora export   # for load_lora_weights
    python tools/convert_checkpoint.py runs/mine/lora-11-24-09-30 my-model/transformer --lora merge

INPUT is told apart by looking at it: a SAT folder (`latest` and mp_rank_XX files, several ranks too), 3d-vae.pt, a
diffusers component's folder (in shards too), a LoRA file, or a single .pt or .safetensors file. Weights are mapped, not
read, and written tensor by tensor. Everything must fit: what is missing, unknown or of another size ends it, and then
nothing is written. docs/weights.md has more.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import cogvideox  # noqa: E402, F401  (ends here if packages are missing)  # isort: skip

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from tqdm import tqdm  # noqa: E402

from cogvideox.checkpoint import packages  # noqa: E402
from cogvideox.checkpoint.converting import Conversion  # noqa: E402
from cogvideox.checkpoint.diffusers_config import vae_config  # noqa: E402
from cogvideox.checkpoint.lora_names import is_sat_adapter  # noqa: E402
from cogvideox.checkpoint.naming import NETWORK_PREFIX  # noqa: E402
from cogvideox.checkpoint.opening import Weights, open_weights  # noqa: E402
from cogvideox.checkpoint.published import MODELS  # noqa: E402
from cogvideox.checkpoint.transformer_names import SAT_ONLY  # noqa: E402
from cogvideox.checkpoint.vae_names import diffusers_from_sat, sat_from_diffusers  # noqa: E402
from cogvideox.errors import UserError  # noqa: E402
from tools import convert_lora  # noqa: E402
from tools.convert_description import Description, describe  # noqa: E402
from tools.convert_transformer import to_diffusers_folder, to_sat_folder  # noqa: E402
from tools.convert_vae import check_vae  # noqa: E402

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
BAR_FROM_BYTES = 10**9  # smaller conversions show no progress bar
Writer = Callable[[Conversion, packages.Watch], list[str]]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits with status 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path, metavar="INPUT")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="a folder; a VAE or LoRA may be named as a file")
    parser.add_argument("--part", choices=["vae"], help="the VAE that a transformer's checkpoint holds besides")
    parser.add_argument("--to", choices=["diffusers", "sat"], help="[the layout that INPUT does not have]")
    parser.add_argument("--lora", choices=["merge", "export", "import"], help="adapters: into the weights, out, back")
    parser.add_argument(
        "--base-weights", type=Path, metavar="PATH", help="what adapters are for [as the checkpoint notes]"
    )
    parser.add_argument("--lora-alpha", type=float, metavar="A", help="[as in the training config]")
    parser.add_argument("--ema", action="store_true", help="take the running average of the weights")
    parser.add_argument("--base", nargs="+", metavar="YAML", help="training config [training_config.yaml of the run]")
    parser.add_argument("--model", choices=MODELS, help="which published model it is [seen in the sizes; of a VAE not]")
    parser.add_argument("--dtype", choices=DTYPES, help="[as they are]")
    parser.add_argument(
        "--max-shard-size", type=byte_count, default="10GB", metavar="SIZE", help="of a diffusers file [10GB]"
    )
    parser.add_argument("--force", action="store_true", help="replace OUTPUT")
    args = parser.parse_args(arguments)
    if args.base and args.model:
        parser.error("--base and --model: give one of them")
    return args


def byte_count(text: str) -> int:
    """`10GB`, `500MB`, `2GiB` in bytes. Raises argparse.ArgumentTypeError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]i?B|)", text, re.IGNORECASE)
    count = int(float(match[1]) * UNITS[match[2].upper()]) if match else 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a size as 10GB or 500MB")
    return count


def convert(args: argparse.Namespace) -> Iterator[str]:
    """Do what the command line asks for, and tell what was done. UserError: anything that does not fit."""
    if args.input.resolve().is_relative_to(args.output.resolve()):
        raise UserError(f"{args.output}: INPUT is this or lies in it: give OUTPUT another name")
    _check_base_weights(args)
    weights = open_weights(args.input, args.ema, args.part)
    description = describe(args, weights)
    yield _told(args.input, weights)
    if weights.kind == "VAE":
        yield from _convert_vae(args, weights, description)
    elif args.lora == "export" and weights.layout == "SAT":
        conversion, header, said = convert_lora.exported(args, weights, description)
        yield from said
        yield from _written(args, conversion, lambda c, w: packages.write_lora(args.output, c, header, args.force, w))
    elif args.lora == "import" and weights.layout == "PEFT":
        conversion, beside, said = convert_lora.imported(args, weights, description)
        yield from said
        conversion = conversion.then(_with_prefix)
        yield from _written(args, conversion, lambda c, w: packages.write_sat(args.output, c, beside, args.force, w))
    else:
        yield from _convert_transformer(args, weights, description)


def _check_base_weights(args: argparse.Namespace) -> None:
    if args.base_weights is None:
        return
    if args.lora not in ("merge", "import"):
        raise UserError("--base-weights goes with --lora merge and --lora import")
    base = args.base_weights.resolve()
    if base.is_relative_to(args.output.resolve()):
        raise UserError(f"{args.output}: --base-weights is this or lies in it: give OUTPUT another name")
    if base == args.input.resolve():
        raise UserError(f"{args.base_weights}: --base-weights is INPUT itself: name the weights below the adapters")


def _convert_transformer(args: argparse.Namespace, weights: Weights, description: Description) -> Iterator[str]:
    if args.lora == "merge":
        conversion = convert_lora.merged(args, weights, description)
    else:
        conversion = convert_lora.network(weights)
        if args.lora is not None:
            kind = {"export": "SAT's adapters", "import": "PEFT's adapters"}[args.lora]
            raise UserError(f"--lora {args.lora} takes {kind}; {args.input} holds {weights.layout} {weights.kind}")
        if any(is_sat_adapter(name) for name in conversion.outline()):
            raise UserError(
                f"{args.input} holds LoRA adapters: say --lora merge to add them to the weights, or --lora "
                f"{'import' if weights.layout == 'PEFT' else 'export'} to convert them alone"
            )
    target = args.to or ("sat" if weights.layout == "diffusers" else "diffusers")
    if target == "diffusers":
        conversion, config, said = to_diffusers_folder(conversion, description)
        yield from said
        yield from _written(
            args,
            conversion,
            lambda c, w: packages.write_diffusers(args.output, c, config, args.max_shard_size, args.force, w),
        )
    else:
        conversion, said = to_sat_folder(conversion, description)
        yield from said
        conversion = conversion.then(_with_prefix)
        yield from _written(args, conversion, lambda c, w: packages.write_sat(args.output, c, None, args.force, w))


def _with_prefix(part: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {NETWORK_PREFIX + name: tensor for name, tensor in part.items()}


def _convert_vae(args: argparse.Namespace, weights: Weights, description: Description) -> Iterator[str]:
    if args.lora:
        raise UserError(f"{args.input} holds a VAE: leave out --lora, which is for transformers")
    state = {name: tensor for name, tensor in weights.shards[0].items() if not name.startswith("loss.")}
    dropped = len(weights.shards[0]) - len(state)
    if dropped:
        yield f"left out: {dropped} of the VAE's own training loss (loss.…)"
    sat = sat_from_diffusers(state) if weights.layout == "diffusers" else state
    diffusers = diffusers_from_sat(sat)
    check_vae(sat, args.input)
    target = args.to or ("sat" if weights.layout == "diffusers" else "diffusers")
    if target == "diffusers":
        config = vae_config(diffusers, description.vae(args.input))
        if (note := description.image_scale_note(config)) is not None:
            yield note
        conversion = Conversion((diffusers,), dict)
        yield from _written(
            args,
            conversion,
            lambda c, w: packages.write_diffusers(args.output, c, config, args.max_shard_size, args.force, w),
        )
    else:
        yield from _written(
            args, Conversion((sat,), dict), lambda c, w: packages.write_vae(args.output, c, args.force, w)
        )


def _told(path: Path, weights: Weights) -> str:
    """What was found at `path`, in a line or two."""
    count = len(weights.shards[0])
    parts = [f"{path}: {weights.kind} in {weights.layout} layout, {count:,} tensors"]
    if len(weights.shards) > 1:
        parts.append(f"in {len(weights.shards)} model parallel parts")
    if weights.averaged:
        parts.append("averaged")
    line = ", ".join(parts)
    unused = [name for name in weights.shards[0] if name in SAT_ONLY]
    if unused:
        line += f"\nleft out: {', '.join(unused)}, of which no model makes use"
    if weights.left_out:
        line += f"\nleft out: {len(weights.left_out):,} tensors of other networks ({weights.left_out[0]}, …)"
    return line


def _written(args: argparse.Namespace, conversion: Conversion, write: Writer) -> Iterator[str]:
    """Write the result in the type that is asked for, with a progress bar where that takes long."""
    conversion = replace(conversion, dtype=DTYPES.get(args.dtype, conversion.dtype))
    plan = conversion.plan()
    total = packages.size(plan)
    with tqdm(total=total, unit="B", unit_scale=True, disable=total < BAR_FROM_BYTES or None) as bar:
        files = write(conversion, lambda tensors: _counted(tensors, bar))
    kinds = ", ".join(sorted({str(planned.dtype).removeprefix("torch.") for planned in plan}))
    values = sum(math.prod(planned.shape) for planned in plan)
    is_file = len(files) > 1 or args.output.suffix in (".pt", ".safetensors")
    where = args.output if is_file else args.output / files[0]
    found = f"{len(plan):,} tensors of {values:,} values, {kinds}, {total / 1e9:.3g} GB in {len(files)} file(s)"
    yield f"wrote {where}: {found}"


def _counted(tensors: Iterator[tuple[str, Tensor]], bar: Any) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors:
        yield name, tensor
        bar.update(tensor.nbytes)


def main(arguments: list[str] | None = None) -> int:
    """Convert; the exit status is 0, or 2 for a mistake in what was given."""
    args = parse(arguments)
    try:
        for line in convert(args):
            print(line)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
