"""The prompts of `--interactive`, typed on rank 0 and told to the others."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import torch.distributed as dist

from cogvideox.config.sampling import SamplingArguments
from cogvideox.config.sampling_record import Job, images_of, jobs_of, unfinished
from cogvideox.data.pictures import check_pictures
from cogvideox.data.prompts import fault_of_prompt, parse_prompt
from cogvideox.errors import UserError
from cogvideox.parallel import current

FAREWELLS = ("", "exit", "quit")
POLL_S = 0.2


def typed_jobs(arguments: SamplingArguments) -> Iterator[list[Job]]:
    """The jobs of one typed prompt after the other, read on rank 0 and told to the others."""
    number = 0
    while True:
        host = current().host
        asked = _ask(arguments, number) if host.rank == 0 else None
        _wait_for_first(f"typed-{number}")
        jobs = host.broadcast_object(asked)
        if jobs is None:
            return
        yield jobs
        number += 1


def _ask(arguments: SamplingArguments, number: int) -> list[Job] | None:
    """The clips of the next prompt that can be drawn; None at the end of the conversation."""
    example = "prompt@@image.png" if arguments.takes_image else "prompt"
    while True:
        try:
            line = input(f"{example} (an empty line ends): ").strip()
        except EOFError:
            return None
        if line.lower() in FAREWELLS:
            return None
        prompt = parse_prompt(line)
        try:
            fault = fault_of_prompt(prompt, arguments.takes_image)
            if fault is not None:
                raise UserError(fault)
            jobs = unfinished(arguments, jobs_of(arguments, [prompt], number))
            check_pictures(images_of(jobs), arguments.clip.size)
        except UserError as error:
            sys.stderr.write(f"{error}\n")
            continue
        return jobs


def _wait_for_first(name: str) -> None:
    """Return once rank 0 has come to the place `name`, however long that takes: a collective would run out of time."""
    host = current().host
    if host.size == 1:
        return
    store = dist.distributed_c10d._get_default_store()
    if host.rank == 0:
        store.set(name, "")
    try:
        while not store.check([name]):
            time.sleep(POLL_S)
    except dist.DistError as error:
        raise UserError("the rank that asks for prompts has gone: start again") from error
