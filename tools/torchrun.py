"""torchrun, but with the exit status of the rank that failed, and no traceback of torchrun's own.

    python tools/torchrun.py --standalone --nproc_per_node=2 train_video.py --base configs/quickstart.yaml

torchrun itself exits 1 whatever its workers did. Status 2 means that a rank has explained a mistake in what it was
given, so nothing is added; for every other failure torchrun's table of failed ranks is shown.
"""

from __future__ import annotations

import logging
import signal
import sys

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

USER_ERROR = 2


def first_status(statuses: list[int]) -> int:
    """The failure that ended the others: torchrun stops these with SIGTERM and dates all of them alike."""
    return next((status for status in statuses if status != -signal.SIGTERM), statuses[0])


def main(arguments: list[str]) -> int:
    """Run the workers; the status to exit with (128 + N for a worker that signal N ended)."""
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    try:
        torchrun.run(torchrun.parse_args(arguments))
    except ChildFailedError as error:
        status = first_status([failure.exitcode for failure in error.failures.values()])
        if status != USER_ERROR:
            print(error, file=sys.stderr)
        return status if status > 0 else 128 - status
    except SignalException as stopped:
        return 128 + stopped.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
