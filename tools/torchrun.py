"""torchrun, but with the exit status of the rank that failed, no traceback of torchrun's own, and time for saving.

    python tools/torchrun.py --standalone --nproc_per_node=2 train_video.py --base configs/quickstart.yaml

torchrun itself exits 1 whatever its workers did. Status 2 means that a rank has explained a mistake in what it was
given, so nothing is added; for every other failure torchrun's table of failed ranks is shown. SIGTERM, SIGINT and
SIGUSR1 go on to the ranks, which save and end: within `TORCH_ELASTIC_SHUTDOWN_TIMEOUT` seconds (600 if it is not set;
torchrun's own is 30), else they are killed. The status is then 0 if theirs all are. After a rank has failed the others
get `FAILED_RANK_TIMEOUT_S` seconds to end by themselves.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

USER_ERROR, LOST_ANOTHER = 2, 1
FAILED_RANK_TIMEOUT_S = 10
SHUTDOWN_TIMEOUT_S = 600
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1")


def first_status(statuses: list[int]) -> int:
    """The failure that ended the others, all of which torchrun dates alike: those it stops with SIGTERM, and where they
    have seen the end of a rank themselves their status is 1.
    """
    weights = {-signal.SIGTERM: 2, LOST_ANOTHER: 1}
    return min(statuses, key=lambda status: weights.get(status, 0))


def as_status(code: int) -> int:
    """What a shell makes of a process's exit code: 128 + N for one that signal N ended."""
    return code if code >= 0 else 128 - code


def main(arguments: list[str]) -> int:
    """Run the workers; the status to exit with."""
    under_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    handled = [name for name in SIGNALS if name != "SIGHUP" or not under_nohup]
    for name in handled:  # until torchrun has workers to pass them on to
        signal.signal(getattr(signal, name), lambda number, _: os._exit(128 + number))
    os.environ.setdefault("PET_SIGNALS_TO_HANDLE", ",".join(handled))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_TIMEOUT_S))
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.api import PContext
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    settings = torchrun.parse_args(arguments)
    if settings.nnodes not in ("1", "1:1"):
        # Else the agents keep one store over restarts, in which ranks meet the addresses of those that have ended.
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    codes: list[int] = []
    PContext.close = patient(PContext.close, SignalException, codes)  # type: ignore[method-assign]
    try:
        torchrun.run(settings)
    except ChildFailedError as error:
        status = first_status([failure.exitcode for failure in error.failures.values()])
        if status != USER_ERROR:
            print(error, file=sys.stderr)
        return as_status(status)
    except SignalException as stopped:
        failed = [code for code in codes if code]
        return as_status(first_status(failed)) if failed else 0 if codes else 128 + stopped.sigval
    return 0


def patient(close: Callable[..., None], signalled: type[Any], codes: list[int]) -> Callable[..., None]:
    """torchrun's way to end the ranks, made to pass on every further signal too, and to leave exit codes in `codes`.

    Without a `death_sig` it is called after a rank has failed, or all have ended.
    """

    def close_ranks(context: Any, death_sig: signal.Signals | None = None, timeout: int = 30) -> None:
        timeout = FAILED_RANK_TIMEOUT_S if death_sig is None else timeout
        while True:
            try:
                close(context, death_sig, timeout)
                break
            except signalled as again:
                death_sig = again.sigval
        codes[:] = [handler.proc.poll() for handler in context.subprocess_handlers.values()]

    return close_ranks


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
