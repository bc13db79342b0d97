"""How a rank's end is told: its own error with its traceback, or in one line whose error it was; and to the others."""

from __future__ import annotations

import argparse
import faulthandler
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch.distributed as dist

from cogvideox.errors import UserError
from cogvideox.sat_bridge import distributed, stopping
from cogvideox.sat_bridge.lifeline import Lifeline

FAILURE = 1
STDERR = 2
# In what gloo and NCCL say where another rank has gone; torch has no class for gloo's.
SIGNS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
LOGGED = ", as stands above or in its log"
MOST_LETTERS = 200  # of an error that other ranks quote


@dataclass
class _Process:
    lifeline: Lifeline = field(default_factory=Lifeline)


_process = _Process()


@contextmanager
def attached(args: argparse.Namespace) -> Iterator[Lifeline]:
    """A lifeline to the other ranks, from inside the process group on; a block that ends well says so to them."""
    faulthandler.enable(STDERR)  # a crash in C code has a stack too
    _process.lifeline = lifeline = Lifeline(args.rank, args.world_size)
    if args.world_size > 1:
        lifeline.join(dist.distributed_c10d._get_default_store())
    stopping.current().at_once.append(lambda: lifeline.fail("was ended by a signal"))
    yield lifeline
    lifeline.leave()


def tell(error: Exception) -> int:
    """Say why this rank ends, to the user and to the other ranks; the exit status."""
    lifeline = _process.lifeline
    quoted = (str(error).strip().splitlines() or [""])[0][:MOST_LETTERS]
    if isinstance(error, UserError):
        if distributed.first_to_say(str(error)):
            sys.stderr.write(f"{error}\n")
        sys.stderr.flush()
        lifeline.fail(f"has ended ({quoted}){LOGGED}", error.exit_status)
        return error.exit_status
    loss = lifeline.wait_for_loss() if _may_be_anothers(error) and lifeline.size > 1 else None
    if loss is None:
        traceback.print_exception(error)
        sys.stderr.flush()
        lifeline.fail(f"has failed ({type(error).__name__}: {quoted}){LOGGED}", FAILURE)
    else:
        if lifeline.speaks(loss):
            sys.stderr.write(f"{lifeline.describe(loss)}\n")
            sys.stderr.flush()
        lifeline.fail("has ended with it", FAILURE)
    return FAILURE


def _may_be_anothers(error: BaseException | None) -> bool:
    """Whether it is how torch tells that a rank does not answer, or was raised while that was told."""
    if error is None:
        return False
    told = isinstance(error, dist.DistError) or any(sign in str(error) for sign in SIGNS)
    return told or _may_be_anothers(error.__cause__ or error.__context__)
