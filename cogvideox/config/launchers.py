"""What each launcher tells its processes about their ranks."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, MutableMapping

from cogvideox.config.report import Problem

# What each launcher calls RANK, WORLD_SIZE, …; the first whose required names are all there counts.
LAUNCHERS: dict[str, dict[str, str]] = {
    "Open MPI": {
        "RANK": "OMPI_COMM_WORLD_RANK",
        "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
        "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
        "LOCAL_WORLD_SIZE": "OMPI_COMM_WORLD_LOCAL_SIZE",
    },
    "Slurm": {
        "RANK": "SLURM_PROCID",
        "WORLD_SIZE": "SLURM_NTASKS",
        "LOCAL_RANK": "SLURM_LOCALID",
        "LOCAL_WORLD_SIZE": "SLURM_NTASKS_PER_NODE",
    },
}
REQUIRED = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


# A launcher ends all ranks when the first one ends, so the one that tells of a mistake has to be the first.
PATIENCE_OF_THE_SILENT_S = 10.0


def tell_once(mistake: object) -> None:
    """Print a mistake that every rank has found by itself, on the first rank of a machine; the others wait to be ended
    with it, or end by themselves after a while.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":
        sys.stderr.write(f"{mistake}\n")
        sys.stderr.flush()
    else:
        time.sleep(PATIENCE_OF_THE_SILENT_S)


def map_launcher_variables(environ: MutableMapping[str, str]) -> None:
    """Give `environ` the variables of torch.distributed from those of Open MPI, or of Slurm where none are set.

    torchrun's own win: it may itself have been started by one of the others.
    """
    if "TORCHELASTIC_RUN_ID" in environ:
        return
    for launcher, names in LAUNCHERS.items():
        if launcher == "Slurm" and "RANK" in environ:
            continue
        if all(names[wanted] in environ for wanted in REQUIRED):
            environ.update({wanted: environ[theirs] for wanted, theirs in names.items() if theirs in environ})
            return


def ranks_from(environ: Mapping[str, str], local_rank: int | None, problems: list[Problem]) -> dict[str, int]:
    """`rank`, `world_size` and `local_rank` from a launcher's variables; `local_rank` is what `--local-rank` says."""
    ranks = {}
    for name, default in (("rank", 0), ("world_size", 1), ("local_rank", 0)):
        text = environ.get(name.upper(), str(default))
        if not text.isdigit():
            where = f"environment: {name.upper()}={text}"
            problems.append(Problem(where, "", "is not a whole number", "unset it, or start with torchrun"))
            text = str(default)
        ranks[name] = int(text)
    if local_rank is not None:
        ranks["local_rank"] = local_rank
    if ranks["rank"] >= ranks["world_size"]:
        what = f"rank {ranks['rank']} of a world of {ranks['world_size']}"
        problems.append(Problem("environment: RANK, WORLD_SIZE", "", what, "start with torchrun, or unset both"))
        ranks["world_size"] = ranks["rank"] + 1
    return ranks
