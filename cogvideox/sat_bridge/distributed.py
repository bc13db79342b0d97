"""Start torch.distributed, DeepSpeed's communication and the groups that SAT and we ask for ranks."""

from __future__ import annotations

import argparse
import logging
import os
import random
import zlib
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from cogvideox.errors import UserError
from cogvideox.parallel import Group, Groups, install
from cogvideox.platform import has_gpu, select_device
from cogvideox.sat_bridge import importing

# Rank 0 samples videos during an evaluation, or writes a large checkpoint, while the others wait for it.
PATIENCE = timedelta(hours=4)
FIRST_PORT, PORTS = 20000, 20000


def initialize(args: argparse.Namespace) -> Groups:
    """Bring up communication for `args.rank` of `args.world_size` and install the groups; idempotent.

    Sets the global seeds to `args.seed`, the same on every rank, so that `--seed` decides the initial weights.

    Raises:
        UserError: a world of several nodes without `MASTER_ADDR`, or one that cannot be joined.
    """
    importing.prepare()
    from sat import mpu

    if not dist.is_initialized():
        select_device(args.local_rank)
        _join_world(args)
    if not mpu.model_parallel_is_initialized():
        mpu.initialize_model_parallel(args.model_parallel_size)
    _initialize_deepspeed(args)
    rank, size = dist.get_rank(), dist.get_world_size()
    groups = Groups(
        world=Group(rank, size, dist.group.WORLD),
        data=_group(mpu.get_data_parallel_group()),
        model=_group(mpu.get_model_parallel_group()),
        host=another_host_group(),
    )
    install(groups)
    seed_everything(args.seed)
    return groups


def another_host_group() -> Group:
    """All ranks, over the CPU and patient; for one thread of each. Every rank must call this."""
    rank, size = dist.get_rank(), dist.get_world_size()
    return Group(rank, size, dist.new_group(backend="gloo", timeout=PATIENCE) if size > 1 else None)


def shutdown() -> None:
    """Leave the process group; without this torch warns about leaked resources at exit."""
    if dist.is_initialized():
        dist.destroy_process_group()
    install(Groups())


def first_to_say(message: str) -> bool:
    """Whether this process is the first of the world to ask about `message`: of many that fail alike, one speaks."""
    if not dist.is_initialized():
        return os.environ.get("LOCAL_RANK", "0") == "0"
    store = dist.distributed_c10d._get_default_store()
    try:
        return store.add(f"said-{zlib.crc32(message.encode())}", 1) == 1
    except dist.DistError:
        return False  # the rank that keeps the store has spoken and gone


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all its devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_of_draws(seed: int, data_parallel_rank: int, iteration: int = 0) -> int:
    """The seed of one data parallel rank's noise, timesteps and caption dropout from `iteration` on: unlike between
    ranks, alike within a model parallel group. Mixed, so that run 1's rank 1 does not draw what run 2's rank 0 draws.
    """
    mixed = [seed, data_parallel_rank, *([iteration] if iteration else [])]
    return int(np.random.SeedSequence(mixed).generate_state(1, np.uint32)[0])


def _group(process_group: dist.ProcessGroup) -> Group:
    return Group(dist.get_rank(process_group), dist.get_world_size(process_group), process_group)


def _join_world(args: argparse.Namespace) -> None:
    common = {"backend": args.distributed_backend, "rank": args.rank, "world_size": args.world_size}
    if args.world_size == 1:
        dist.init_process_group(**common, store=dist.HashStore())
        return
    os.environ.setdefault("MASTER_ADDR", _default_master_address(args.world_size))
    os.environ.setdefault("MASTER_PORT", str(_default_master_port()))
    try:
        store, _, _ = next(rendezvous("env://", args.rank, args.world_size))
        dist.init_process_group(**common, store=dist.PrefixStore(_attempt(), store))
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UserError(
            f"rank {args.rank} of {args.world_size} cannot meet the others at {address} ({error}). "
            "Set MASTER_ADDR and MASTER_PORT to an address of the first node and a free port there, alike on all nodes."
        ) from error


def _attempt() -> str:
    """torchrun's agent (torch 2.13) keeps its store over restarts, with the addresses of those that have ended: each of
    its attempts gets a place of its own. Agents of several machines count theirs apart; tools/torchrun.py has a new
    store for each there.
    """
    is_one_agent = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    return f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') if is_one_agent else '0'}"


def _default_master_address(world_size: int) -> str:
    """This machine, where the launcher says that all ranks are on it."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    if local < world_size:
        raise UserError(
            f"MASTER_ADDR is not set and only {local} of {world_size} ranks are on this node. Export MASTER_ADDR with "
            "the first node's name, for example under Slurm: "
            'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
        )
    return "127.0.0.1"


def _default_master_port() -> int:
    """A port that all ranks of one launcher job agree on and two jobs on one machine rarely share."""
    for name in ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "SLURM_JOB_ID"):
        if name in os.environ:
            return FIRST_PORT + zlib.crc32(os.environ[name].encode()) % PORTS
    return 29500


def _initialize_deepspeed(args: argparse.Namespace) -> None:
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    if not has_gpu():
        # Else DeepSpeed compiles a C++ shared-memory op for half a minute and needs a compiler for it.
        __compatible_ops__["deepspeed_shm_comm"] = False
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))  # DeepSpeed 0.19 asserts that it is there
    deepspeed.init_distributed(dist_backend=args.distributed_backend, dist_init_required=False, verbose=False)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
