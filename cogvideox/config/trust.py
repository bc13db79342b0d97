"""What a config file may not say, since it may come from anybody: commands to run, names that lead out of a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator

from cogvideox.config.report import Problem
from cogvideox.config.settings import Settings
from cogvideox.config.targets import is_in

COMMAND = "pipe:"
DATA_KEYS = ("args.train_data", "args.valid_data", "args.test_data")
LONGEST_NAME = 200  # bytes; the time and a number are appended, and file systems take 255
SAFE_MODULES = "deepspeed.torch_autocast.lower_precision_safe_modules"


def check_trust(settings: Settings) -> Iterator[Problem]:
    """Problems with commands in files, with the run's name, and with modules that DeepSpeed would import."""
    yield from _commands(settings)
    name, key = settings.get("args.experiment_name"), "args.experiment_name"
    if isinstance(name, str) and (fault := fault_of_name(name)):
        yield Problem(settings.source(key), key, f"{name!r} {fault}", "give letters, digits, - and _")
    modules = settings.get(SAFE_MODULES)
    for module in modules if isinstance(modules, list) else ():
        if not (isinstance(module, str) and is_in(module.rpartition(".")[0], ("torch.nn",))):
            what = f"{module!r} is none of torch's modules, and DeepSpeed would import it"
            yield Problem(settings.source(SAFE_MODULES), SAFE_MODULES, what, "name classes of torch.nn only")


def fault_of_name(name: str) -> str | None:
    """Why a text cannot be the name of one folder; None where it can."""
    if os.path.basename(name) != name or name in ("", ".", ".."):
        return "is no name of a folder but a path"
    if not name.isprintable() or name.startswith("-"):
        return "holds control characters" if not name.isprintable() else "begins like a flag"
    return f"is longer than {LONGEST_NAME} bytes" if len(os.fsencode(name)) > LONGEST_NAME else None


def _commands(settings: Settings) -> Iterator[Problem]:
    """Data from the output of a command is for those who type it."""
    for key in DATA_KEYS:
        sources = settings.get(key)
        for place, source in enumerate(sources if isinstance(sources, list) else ()):
            if not str(source).lstrip().startswith(COMMAND) or settings.is_from_command_line(f"{key}.{place}"):
                continue
            flag = key.partition(".")[2].replace("_", "-")
            what = f"{source!r} is a command, and a config file may come from anybody"
            remedy = f"if you trust it, give it on the command line with `--{flag}`"
            yield Problem(settings.source(f"{key}.{place}"), key, what, remedy)
