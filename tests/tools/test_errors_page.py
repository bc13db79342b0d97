"""docs/errors.md. Truths: it is what the source gives (identity); how texts are read from source (golden values)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.error_texts import ErrorText, cut_at_remedy, texts_of
from tools.make_errors_page import GROUPS, PAGE, group_of, main, page

SOURCE = '''
REMEDY = "see docs/x.md"

def read(path, names, form):
    """Read."""
    if not path.exists():
        raise UserError(f"there is no {path}{_from_here(path)}: correct the path")
    what = "is too long" if form else "is too short"
    yield Problem(where, key, f"{what}, {len(names)} words", f"give {min(names)}, {REMEDY}")
    try:
        return fault(path)
    except (OSError, UnicodeDecodeError) as error:
        raise Worse(f"{path}: no {names[0]!r} in {path.parent.name!r} ({error.strerror})") from error

def fault_of(path):
    return f"is a folder of {names['count']} files" if path.is_dir() else None

class Worse(UserError):
    """Worse."""
'''


def texts(tmp_path: Path) -> list[ErrorText]:
    (tmp_path / "a.py").write_text(SOURCE)
    return list(texts_of(tmp_path / "a.py", "cogvideox/data/a.py"))


def test_texts_are_read_with_causes_and_remedies(tmp_path: Path) -> None:
    found = {each.text: each for each in texts(tmp_path)}
    missing = found["there is no {path}{seen from}: correct the path"]
    assert (missing.cause, missing.remedy) == ("there is no {path}{seen from}", "correct the path")
    for what in ("is too long", "is too short"):
        assert found[f"{what}, {{number}} words; give {{names}}, see docs/x.md"].remedy == "give {names}, see docs/x.md"
    worse = found["{path}: no {names} in {name} ({reason})"]
    assert worse.cause.startswith("the operating system refused") and "not text in UTF-8" in worse.cause
    assert worse.remedy.startswith("see that it exists") and worse.remedy.endswith("save it as UTF-8")
    assert found["is a folder of {count} files"].is_reason
    assert len(found) == 5


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("a is b: use c", ("a is b", "use c")),
        ("a: b is bad; give c: one of d", ("a: b is bad", "give c: one of d")),
        ("a is b. Run this again", ("a is b", "Run this again")),
        ("`a: use b` is unknown", ("`a: use b` is unknown", "")),
        ("a is bad, or b", ("a is bad, or b", "")),
    ],
)
def test_a_text_is_cut_where_the_remedy_begins(text: str, cut: tuple[str, str]) -> None:
    assert cut_at_remedy(text) == cut


def test_the_page_is_what_the_source_gives(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().out
    text = page()
    assert PAGE.read_text(encoding="utf-8") == text
    assert all(f"\n## {title}\n" in text for title, _, _ in GROUPS)
    for known in (
        "refused, because reading it would run code from the file",
        "is a Git LFS pointer",
        "`--allow-target",
    ):
        assert known in text
    assert text.count("\n  - remedy: ") > 0.9 * text.count("\n- ", 0, text.index("\n## Reasons"))


def test_every_error_has_a_group(tmp_path: Path) -> None:
    assert {group_of(each) for each in texts(tmp_path)} == {"Reading data"}
