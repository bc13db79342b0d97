"""The page of a data check: counts, what is bad and why, and a contact sheet of what the model will see.

Nothing in it runs and nothing is fetched; pictures are relative links. Names, captions and reasons are escaped.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from cogvideox.data.ledger import REMARKS, Entry, write_whole
from cogvideox.telemetry.report import CONTENT_POLICY
from cogvideox.telemetry.report_style import STYLE
from tools.check_data_settings import Checked

LISTED = 1000
CAPTION_SHOWN = 2000
OWN_STYLE = "img { max-width: 100%; height: auto; } .bad { color: var(--val); font-weight: 600; }"


def write_page(out: Path, data: Path, entries: Sequence[Entry], checked: Checked, has_sheet: bool) -> Path:
    """Write `index.html` into `out`, whole or not at all. Returns its path."""
    title = escape(f"{data.resolve().name}: what the model will see")
    sections = [_asked(data, checked), _summary(entries), _bad(entries), _remarks(entries)]
    if has_sheet:
        sections.append(_sheet(entries, checked))
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}{OWN_STYLE}</style></head>\n<body><h1>{title}</h1>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body></html>\n"
    )
    write_whole(out / "index.html", page)
    return out / "index.html"


def _asked(data: Path, checked: Checked) -> str:
    wanted = checked.wanted
    sizes = ", ".join(f"{size.frames} × {size.height} × {size.width}" for size in wanted.sizes)
    tokens = str(checked.max_tokens) if checked.token_counts else f"not counted: {checked.why_no_tokens}"
    rows = [
        ("data", str(data.resolve())),
        ("samples (frames × height × width)", sizes),
        ("frames per second", f"{wanted.fps:g}"),
        ("source frames skipped at both ends", str(wanted.skip_frames)),
        ("caption tokens that the model reads", tokens),
    ]
    return _table(rows)


def _summary(entries: Sequence[Entry]) -> str:
    good = [entry for entry in entries if entry.is_used]
    kinds = Counter(entry.kind for entry in entries if entry.is_bad)
    left_out = Counter(entry.kind for entry in entries if not entry.is_bad and not entry.is_used)
    remarks = Counter(remark for entry in entries for remark in entry.remarks)
    rows = [("clips", str(len(entries))), ("usable", f"{len(good)} ({len(good) / len(entries):.1%})")]
    rows += [(f"bad: {kind}", str(count)) for kind, count in kinds.most_common()]
    rows += [(f"left out by choice: {kind}", str(count)) for kind, count in left_out.most_common()]
    rows += [(f"{remark}: {REMARKS[remark]}", str(count)) for remark, count in remarks.most_common()]
    rows += _spread("seconds", [entry.duration_s for entry in good])
    rows += _spread("frames per second", [entry.fps for entry in good])
    rows += _spread("effective frames per second of samples", [entry.effective_fps for entry in good])
    rows += _spread("share of a sample that is padded", [entry.padded_share for entry in good])
    rows += _spread("caption tokens", [entry.caption_tokens for entry in good])
    rows += _spread("caption tokens cut", [entry.caption_tokens_cut for entry in good if entry.caption_tokens_cut])
    rows += _counts("size", (f"{entry.height} × {entry.width}" for entry in good))
    rows += _counts("bucket", (entry.bucket or "" for entry in good))
    rows += _counts("codec", (entry.codec or "" for entry in good))
    return f"<h2>Summary</h2>\n{_table(rows)}"


def _spread(name: str, values: Iterable[float | None]) -> list[tuple[str, str]]:
    """Least, median and most."""
    known = [value for value in values if value is not None]
    if not known:
        return []
    text = f"{min(known):.4g} … {statistics.median(known):.4g} … {max(known):.4g}"
    return [(f"{name}: least, median, most", text)]


def _counts(name: str, values: Iterable[str], most: int = 12) -> list[tuple[str, str]]:
    counts = Counter(values)
    rows = [(f"{name} {value}", str(count)) for value, count in counts.most_common(most)]
    rest = sum(counts.values()) - sum(count for _, count in counts.most_common(most))
    return rows + ([(f"{name}: {len(counts) - most} others", str(rest))] if rest else [])


def _bad(entries: Sequence[Entry]) -> str:
    bad = [entry for entry in entries if entry.is_bad]
    if not bad:
        return ""
    rows = [(entry.name, f"{entry.kind}: {entry.reason}") for entry in bad[:LISTED]]
    return f"<h2>Bad</h2>\n{_table(rows)}\n{_more(len(bad) - LISTED)}"


def _remarks(entries: Sequence[Entry]) -> str:
    """Good clips that somebody should look at. Of variable frame rates the summary's count is enough."""
    odd = [(entry, [each for each in entry.remarks if each != "variable"]) for entry in entries if entry.is_used]
    rows = []
    for entry, remarks in odd:
        if remarks:
            which = f" ({entry.duplicate_of})" if entry.duplicate_of else ""
            rows.append((entry.name, "; ".join(REMARKS[each] for each in remarks) + which))
    if not rows:
        return ""
    return f"<h2>Worth a look</h2>\n{_table(rows[:LISTED])}\n{_more(len(rows) - LISTED)}"


def _sheet(entries: Sequence[Entry], checked: Checked) -> str:
    shown = [entry for entry in entries if entry.picture]
    left_out = sum(entry.is_used for entry in entries) - sum(entry.is_used for entry in shown)
    parts = ["<h2>Contact sheet</h2>", '<p class="note">From the first to the last frame of each sample.</p>']
    parts += [_figure(entry, checked) for entry in shown]
    if left_out:
        parts.append(f'<p class="note">{left_out} more usable clips are not shown (--pictures).</p>')
    return "\n".join(parts)


def _figure(entry: Entry, checked: Checked) -> str:
    caption = entry.caption or ""
    cut = caption[CAPTION_SHOWN:] and " …"
    facts = [
        f"{entry.bucket} at {checked.wanted.fps:g} fps",
        f"{entry.sample_frames} real frames" if entry.padded_share else "",
        f"{entry.caption_tokens} tokens" if entry.caption_tokens is not None else "",
        f"{entry.caption_tokens_cut} cut" if entry.caption_tokens_cut else "",
    ]
    text = escape(caption[:CAPTION_SHOWN] + cut) or '<span class="note">no caption</span>'
    bad = f'<span class="bad">{escape(entry.kind)}</span> ' if entry.kind else ""
    return (
        f'<figure><img loading="lazy" alt="" src="pictures/{escape(quote(entry.picture or ""))}">'
        f'<figcaption>{bad}{text}<br><span class="note">{escape(entry.name)}: '
        f"{escape(', '.join(filter(None, facts)))}</span></figcaption></figure>"
    )


def _more(count: int) -> str:
    return f'<p class="note">… and {count} more, in ledger.csv</p>' if count > 0 else ""


def _table(rows: Iterable[tuple[str, str]]) -> str:
    body = "\n".join(f"<tr><th>{escape(key)}</th><td>{escape(text)}</td></tr>" for key, text in rows)
    return f"<table>\n{body}\n</table>"
