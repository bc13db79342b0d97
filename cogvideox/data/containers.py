"""What is wrong with a file that FFmpeg does not open, and which kinds of files it may open at all."""

from __future__ import annotations

import io
from pathlib import Path

# Files that hold their pictures themselves. FFmpeg also knows lists of other files and addresses (concat, hls, dash),
# and goes by content, not by name: a text named .mp4 could have it read whatever the text names.
OPEN_OPTIONS = {
    "format_whitelist": "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,ivf,h264,hevc,m4v,gif",
    "protocol_whitelist": "file",
}

HEADER_BYTES, WIDE_HEADER_BYTES = 8, 16
INDEX = b"moov"
BOXES = frozenset({b"ftyp", INDEX, b"mdat", b"free", b"skip", b"wide", b"uuid", b"moof", b"styp", b"sidx"})


def fault_of_boxes(video: Path | bytes) -> str | None:
    """Of an mp4 or mov file without an index: that, in words, cut off or not. None: it has one, or is another kind.

    Reads the headers of its top-level boxes only (ISO/IEC 14496-12, 4.2). OSError: the file cannot be read.
    """
    size = len(video) if isinstance(video, bytes) else video.stat().st_size
    with io.BytesIO(video) if isinstance(video, bytes) else video.open("rb") as file:
        place, kinds = 0, set[bytes]()
        while place + HEADER_BYTES <= size:
            file.seek(place)
            header = file.read(WIDE_HEADER_BYTES)
            length, kind = int.from_bytes(header[:4], "big"), header[4:8]
            if length == 1:  # the length is in the 8 bytes after the kind
                length = int.from_bytes(header[8:16], "big")
            elif length == 0:  # to the end of the file
                length = size - place
            if kind not in BOXES or length < HEADER_BYTES:
                break
            kinds.add(kind)
            place += length
    if not kinds or INDEX in kinds and place <= size:
        return None
    if place > size:
        return f"is truncated ({size:,} bytes; the box {kind.decode()} ends at {place:,})"
    return "has no index (no moov box): it was cut off, or never finished"
