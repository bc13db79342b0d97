"""What a weight file really is, told from its first bytes: downloads often leave something else under its name."""

from __future__ import annotations

from pathlib import Path

HEADER_BYTES = 64
TORCH_STARTS = (b"PK\x03\x04", b"\x80")  # a zip archive; a pickle, which torch wrote before 1.6
TEXT = frozenset(range(0x20, 0x7F)) | frozenset(b"\t\n\r")


def fault_of_file(path: Path) -> str | None:
    """Why `path` cannot be the weight file that its name says, as "is …"; None where it may be one.

    Raises OSError where it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(HEADER_BYTES)
    if not start:
        return "is empty"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer: a note of what the file should be, not the weights"
    if start.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        return "is a web page, not weights: the download gave an answer in place of the file"
    is_safetensors = start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size
    if path.suffix == ".safetensors":
        if start.startswith(TORCH_STARTS[0]):
            return "is a torch file by its content: let its name end in .pt"
        return None if is_safetensors else "is no safetensors file, or its end is missing"
    if is_safetensors:
        return "is a safetensors file by its content: let its name end in .safetensors"
    if not start.startswith(TORCH_STARTS) and TEXT.issuperset(start):
        return "is text, not weights"
    return None
