"""Write docs/errors.md from the source: every error's text, cause and remedy.

python tools/make_errors_page.py            (--check: fails where the page is not what the source gives)
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.error_texts import ErrorText, texts_of  # noqa: E402

PAGE = ROOT / "docs/errors.md"

# What somebody was doing → the sources whose errors belong to it (the first that matches), and what helps in general.
GROUPS: tuple[tuple[str, str, str], ...] = (
    ("Naming settings: sampling", r"cogvideox/config/sampling.*|cogvideox/data/(prompts|sample_files)|sample_video",
     "`python sample_video.py --help` lists the flags."),
    ("Naming settings: command line and YAML", r"cogvideox/config/.*|arguments|cogvideox/telemetry/.*",
     "`--explain KEY` says what a key is and which file or flag set it; docs/configuration.md."),
    ("Resuming, saving, checkpoints", r"cogvideox/checkpoint/(saving|resuming|manifest|recutting|retention|durable|"
     r"choosing|replay_bundle|fingerprint|live)|cogvideox/sat_bridge/(run|run_folder|checkpoints|verification|rolling_"
     r"back|bad_numbers)|tools/(verify.*|replay|torture)", "docs/run-folder.md."),
    ("Converting and fetching weights", r"tools/(convert.*|fetch_weights)|cogvideox/checkpoint/(converting|packages|"
     r"placing|streaming|diffusers_config|transformer_names|vae_names|lora_names|adapters|opening)",
     "docs/weights.md."),
    ("Reading weights", r"cogvideox/checkpoint/.*|cogvideox/conditioning/t5.*|cogvideox/sat_bridge/building",
     "docs/weights.md."),
    ("Reading data", r"cogvideox/data/.*|data_video|tools/check_data.*|tools/compare_samples", "docs/data.md; "
     "`python tools/check_data.py` names what is wrong with each clip."),
    ("Caching latents", r"latent_cache|tools/cache_latents", "docs/cache.md."),
    ("Building and running the model", r"cogvideox/(transformer|vae|diffusion|conditioning)/.*|diffusion_video",
     "The keys are those of the model's YAML file; docs/configuration.md."),
    ("Running: processes, devices, the training loop", r".*", "docs/launching.md."),
)  # fmt: skip
SKIPPED = re.compile(r"tools/(benchmark|quickstart|make_|error_texts).*")
WANTED = re.compile(r"\b(must|needs?|needed|expected|only|takes?|are supported|belongs|known are|square|layers are)\b")
HEAD = " ".join(
    """
Every message about something that can be mended, with its cause and remedy. Search this page for words of the message
that are not values of yours: `{path}` stands for a value, everything else is as it is printed, `⏎` ends a line. Where
no cause stands here, the message itself says it. A mistake in settings is printed as `FILE:LINE: KEY: what is wrong;
what to do`. Exit status 2 says that something given was wrong; a traceback is a fault of ours.
""".split()
)
AS_SAID = "the message says what is wanted; where that is described stands above"
OF_REASONS = (
    "They stand inside messages, after the name of a file, a row or a clip: replace or correct that, or leave it out."
)
SOURCE = "*Written by `python tools/make_errors_page.py` from the source, not by hand.*"


def sources() -> list[Path]:
    """The product's Python files, those for making its assets and benchmarks left out."""
    files = sorted([*ROOT.glob("*.py"), *ROOT.glob("cogvideox/**/*.py"), *ROOT.glob("tools/*.py")])
    return [path for path in files if not SKIPPED.match(name_of(path))]


def name_of(path: Path) -> str:
    """As the page calls a source."""
    return path.relative_to(ROOT).as_posix()


def page() -> str:
    """The whole page."""
    texts = [text for path in sources() for text in texts_of(path, name_of(path))]
    parts = [f"# Errors\n\n{HEAD}\n\n{SOURCE}"]
    for title, _, help_ in GROUPS:
        own = [text for text in texts if group_of(text) == title and not text.is_reason]
        parts += [f"\n## {title}\n\n{help_}\n", *_entries(own)] if own else []
    reasons = [text for text in texts if text.is_reason]
    parts += [
        "\n## Reasons\n\nThey stand inside messages, after the name of a file, a row or a clip.\n",
        *_entries(reasons),
    ]
    return "\n".join(parts) + "\n"


def group_of(text: ErrorText) -> str:
    """What somebody was doing who sees it."""
    name = text.file.removesuffix(".py")
    return next(title for title, pattern, _ in GROUPS if re.fullmatch(pattern, name))


def _entries(texts: Iterable[ErrorText]) -> list[str]:
    """A list, sorted by the first words that are the same every time."""
    found: dict[str, ErrorText] = {}
    for text in texts:
        found.setdefault(text.text, text)
    return [_entry(found[key]) for key in sorted(found, key=lambda each: (constant_start(each), each))]


def constant_start(text: str) -> str:
    """A text without its values, to sort by."""
    return " ".join(re.sub(r"\{[^}]*\}|[^\w\s]", " ", text).lower().split())


def _entry(text: ErrorText) -> str:
    lines = [f"- {_code(text.text)}"]
    if text.cause and text.cause not in text.text:
        lines.append(f"  - cause: {text.cause}")
    if remedy := text.remedy or ("" if text.is_reason else _as_said(text.text)):
        lines.append(f"  - remedy: {_plain(remedy)}")
    return "\n".join([*lines, f"  - {text.file}"])


def _as_said(text: str) -> str:
    """The remedy of a message that says what would be right rather than what to do."""
    last = text.replace("\n", " ").rpartition(": ")[2]
    return f"see to this: {last}" if last != text and WANTED.search(last) else AS_SAID


def _code(text: str) -> str:
    """As code on one line, whatever backticks are in it."""
    line = " ⏎ ".join(part.strip() for part in text.split("\n"))
    return f"`` {line} ``" if "`" in line else f"`{line}`"


def _plain(text: str) -> str:
    return " ".join(text.replace("<", "&lt;").split())


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or say whether it is up to date; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    wanted = page()
    if not options.check:
        PAGE.write_text(wanted, encoding="utf-8")
        return 0
    is_same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == wanted
    print("up to date" if is_same else f"{PAGE} is not what the source gives: run python tools/make_errors_page.py")
    return 0 if is_same else 1


if __name__ == "__main__":
    sys.exit(main())
