"""Is a data set fit for training? Decode all of it once, and show what the model will see.

    python tools/check_data.py DATA --base configs/cogvideox_2b.yaml configs/sft.yaml [data.params.fps=16]

Writes into --out (default: DATA-check beside the data): `index.html`, a page to look through; `ledger.jsonl` and
`ledger.csv`, a line a clip; `quarantine.txt`, the clips that cannot be used, for training's `--quarantine`. Without
--base as configs/sft.yaml says. Exit status 0 where the share of bad clips is at most --max-bad, 1 above, 2 for a
mistake in what was given.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import cogvideox  # noqa: E402, F401  (ends here if packages are missing)  # isort: skip

from tqdm import tqdm  # noqa: E402

from cogvideox.config.command_line import OVERRIDE  # noqa: E402
from cogvideox.data.doctor import examine, files_of, unanswered  # noqa: E402
from cogvideox.data.judging import Wanted  # noqa: E402
from cogvideox.data.ledger import (  # noqa: E402
    REMARKS,
    Entry,
    is_quarantine_list,
    with_duplicates,
    with_remarks,
    write_ledger,
    write_quarantine,
)
from cogvideox.data.processes import Lost, in_processes  # noqa: E402
from cogvideox.data.quarantine import folder_of  # noqa: E402
from cogvideox.data.records import Record, find_records  # noqa: E402
from cogvideox.errors import UserError  # noqa: E402
from tools.check_data_page import write_page  # noqa: E402
from tools.check_data_settings import Checked, settings_of  # noqa: E402

OWN_FILES = {"index.html", "ledger.jsonl", "ledger.csv", "quarantine.txt", "pictures"}
OF_LOST = {"crashed": "crash the reader", "hung": "hang the reader", "failed": "not examined"}


def main(args_list: Sequence[str] | None = None) -> int:
    """Check, write, tell; the exit status."""
    words = sys.argv[1:] if args_list is None else list(args_list)
    args = _parser().parse_args([word for word in words if not OVERRIDE.match(word)])
    try:
        max_bad = share_of(args.max_bad)
        overrides = [word for word in words if OVERRIDE.match(word)]
        checked = settings_of(args.base, overrides, args.timeout, args.data)
        records = find_records(args.data, checked.format)
        out = args.out or default_out(args.data)
        quarantine = args.quarantine or out / "quarantine.txt"
        prepare(out, quarantine, args.data, is_asked=args.out is not None)
        shown = {} if args.no_pictures else pictures_of(len(records), args.pictures, out / "pictures")
        entries = examine_all(records, shown, checked.wanted, args.workers)
        entries = finished(entries, checked, args.also_bad)
        unlisted = write_quarantine(entries, quarantine, args.data)
        write_ledger(entries, out)
        page = write_page(out, args.data, entries, checked, not args.no_pictures)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename}: {error.strerror}: give a folder that can be written, with --out", file=sys.stderr)
        return 2
    for entry in unlisted:
        print(f"not in the quarantine list, its name is no plain line or a good clip's too: {entry.name!r}")
    bad, used = sum(entry.is_bad for entry in entries), sum(entry.is_used for entry in entries)
    share, limit = bad / max(1, bad + used), "" if max_bad >= 1 else f" of {max_bad:.3%} allowed"
    rest = len(entries) - bad - used
    by_choice = f", {rest} left out by choice" if rest else ""
    print(f"{len(entries)} clips, {bad} bad ({share:.3%}{limit}){by_choice}; quarantine list {quarantine}; page {page}")
    return int(share > max_bad)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DIR", help="the data, in any form that training takes")
    parser.add_argument("--base", nargs="*", default=[], metavar="YAML", help="the files that training is given")
    parser.add_argument("--out", type=Path, help="folder for page, ledger and list [DIR-check beside the data]")
    parser.add_argument("--max-bad", default="100%", help="share of bad clips to pass with, 2%% or 0.02 [%(default)s]")
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1), help="processes [%(default)s]")
    parser.add_argument("--quarantine", type=Path, metavar="FILE", help="the list to write [OUT/quarantine.txt]")
    parser.add_argument("--also-bad", nargs="+", default=[], choices=list(REMARKS), help="remarks that make a clip bad")
    parser.add_argument("--pictures", type=int, default=200, help="at most so many clips are shown [%(default)s]")
    parser.add_argument("--no-pictures", action="store_true", help="no contact sheet")
    parser.add_argument(
        "--timeout", type=float, default=120.0, help="seconds without progress that end a file [%(default)s]"
    )
    return parser


def share_of(text: str) -> float:
    """`2%` or `0.02` as a share. Raises UserError."""
    number = text.strip().removesuffix("%")
    try:
        share = float(number) / (100 if number != text.strip() else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UserError(f"--max-bad {text}: give a share of the clips, as 2% or 0.02")
    return share


def default_out(data: Path) -> Path:
    """`NAME-check` beside the data folder; beside the folder above where it is `videos`, whose sibling is `labels`."""
    folder = folder_of(data)
    folder = folder.parent if folder.name == "videos" else folder
    return folder.parent / f"{folder.name or 'data'}-check"


def prepare(out: Path, quarantine: Path, data: Path, is_asked: bool) -> None:
    """Make the folder, without the pictures of an earlier check. Raises UserError: it or the list would do harm."""
    if out.resolve().is_relative_to(folder_of(data)) and not is_asked:
        raise UserError(f"{out} lies inside the data: name another folder with --out")
    if quarantine.exists() and not (quarantine.is_file() and is_quarantine_list(quarantine)):
        raise UserError(f"--quarantine {quarantine} is there and no list of this tool: name another file to write")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is not a folder: name one")
    out.mkdir(parents=True, exist_ok=True)
    found = set(os.listdir(out))
    if not found <= OWN_FILES and "ledger.jsonl" not in found:
        raise UserError(f"--out {out} holds other things than an earlier check: name a new folder")
    (out / "pictures").mkdir(exist_ok=True)
    for name in os.listdir(out / "pictures"):
        if re.fullmatch(r"\d{6,}\.jpg", name):
            (out / "pictures" / name).unlink()


def pictures_of(clips: int, most: int, folder: Path) -> dict[int, Path]:
    """Which of the clips are shown, evenly spread over all: place → file."""
    count = min(clips, max(0, most))
    places = [number * clips // count for number in range(count)]
    return {place: folder / f"{place:06d}.jpg" for place in places}


def examine_all(records: Sequence[Record], pictures: dict[int, Path], wanted: Wanted, workers: int) -> list[Entry]:
    """The entries of all records, in order; every file is decoded once, with a progress bar."""
    if workers < 1:
        raise UserError(f"--workers {workers}: give 1 or more")
    files = files_of(records, pictures)
    entries: dict[int, Entry] = {}
    bad = 0
    # A read that takes too long says so itself; the process is only killed where it cannot.
    answers = in_processes(partial(examine, wanted=wanted), files, workers, wanted.timeout_s + 5)
    with tqdm(total=len(files), unit="file") as bar:
        for place, answer in answers:
            if isinstance(answer, Lost):
                answer = unanswered(files[place], OF_LOST[answer.kind], answer.reason, wanted)
            entries.update(answer)
            bad += sum(entry.is_bad for _, entry in answer)
            bar.set_postfix(bad=bad, refresh=False)
            bar.update()
    return [entries[place] for place in range(len(records))]


def finished(entries: Sequence[Entry], checked: Checked, also_bad: Sequence[str]) -> list[Entry]:
    """The entries with what only all of them, or the tokenizer, can tell."""
    if checked.token_counts is None:
        print(f"caption tokens are not counted: {checked.why_no_tokens}")
    else:
        counts = checked.token_counts([entry.caption or "" for entry in entries])
        entries = [
            entry if entry.caption is None else replace(
                entry, caption_tokens=count, caption_tokens_cut=max(0, count - checked.max_tokens)
            )
            for entry, count in zip(entries, counts, strict=True)
        ]  # fmt: skip
    return [with_remarks(entry, also_bad) for entry in with_duplicates(entries)]


if __name__ == "__main__":
    sys.exit(main())
