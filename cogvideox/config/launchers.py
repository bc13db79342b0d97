"""What each launcher tells its processes about their ranks."""

from __future__ import annotations

from collections.abc import MutableMapping

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
