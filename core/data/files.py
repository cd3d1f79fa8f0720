"""What a file is, told by its bytes and never by its name: its kind, its encoding, its hash."""

from __future__ import annotations

import codecs
import hashlib
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core.errors import StudioError
from core.words import Text

Kind = Literal["text", "parquet"]

_CHUNK = 1 << 20
_SAMPLE = 1 << 18
_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe\x00\x00", "utf-32"), (b"\x00\x00\xfe\xff", "utf-32"),
          (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
# First bytes of files that hold no rows as they are, and what to do about each.
_FOREIGN = (
    (b"PK\x03\x04", Text("a zip archive or an Excel workbook"), Text("unpack it, or save the sheet as CSV")),
    (b"PK\x05\x06", Text("an empty zip archive"), Text("unpack it, or save the sheet as CSV")),
    (b"\x1f\x8b", Text("compressed with gzip"), Text("unpack it with `gunzip`")),
    (b"BZh", Text("compressed with bzip2"), Text("unpack it with `bunzip2`")),
    (b"\xfd7zXZ\x00", Text("compressed with xz"), Text("unpack it with `unxz`")),
    (b"\x28\xb5\x2f\xfd", Text("compressed with zstd"), Text("unpack it with `unzstd`")),
    (b"7z\xbc\xaf\x27\x1c", Text("a 7z archive"), Text("unpack it")),
    (b"Rar!", Text("a rar archive"), Text("unpack it")),
    (b"%PDF", Text("a PDF document"), Text("save its text as .txt")),
    (b"\xd0\xcf\x11\xe0", Text("an old Office document"), Text("save it as CSV")),
    (b"ARROW1", Text("an Arrow file"), Text("save it as Parquet")),
    (b"SQLite format 3", Text("a database"), Text("export the table as CSV")),
    (b"\x89PNG", Text("a picture"), Text("choose a file of text")),
    (b"\xff\xd8\xff", Text("a picture"), Text("choose a file of text")),
    (b"\x7fELF", Text("a program"), Text("choose a file of text")),
)
_WEB_PAGE = re.compile(rb"\s*(?:<!--(?:(?!-->).)*-->\s*)*<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL)
_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class FileFacts:
    """What is known of a file before its first record is read.

    Attributes:
        path: where it is.
        name: what it is called, for messages and the card.
        size: bytes.
        kind: text in some form, or Parquet.
        encoding: how its bytes become text.
        is_damaged: some bytes of it are not of that encoding; the records that hold them are refused.
        sha256: of its bytes; empty when only its beginning was looked at.
    """

    path: Path
    name: str
    size: int
    kind: Kind
    encoding: str = "utf-8"
    is_damaged: bool = False
    sha256: str = ""


def look_at(path: str | Path, name: str | None = None, *, whole: bool = True) -> FileFacts:
    """Tell what a file is.

    Args:
        path: of the file.
        name: what it is called where it came from; a file that was uploaded lies under another name.
        whole: read all of it, for its hash and to be sure of its encoding; else judge by its first 256 KB.

    Raises:
        StudioError: it is not there, cannot be read, is empty, or is no file of rows.
    """
    try:
        place = Path(path).expanduser()
        name = name or place.name
        if place.is_dir():
            raise StudioError("{path} is a folder.", "Name one file: JSON, JSON Lines, CSV, Parquet or plain text.", path=place)
        facts = place.stat()
        if not stat.S_ISREG(facts.st_mode):  # reading a pipe or a device may never end
            raise StudioError("The file {path} cannot be read: {reason}.", "Check its name, and that you may read it.", path=path,
                              reason=Text("it is no ordinary file"))
        size = facts.st_size
        with place.open("rb") as stream:
            start = stream.read(_SAMPLE)
        _refuse_foreign(start, name)
        if start.startswith(b"PAR1"):
            return FileFacts(place, name, size, "parquet", sha256=_hash(place) if whole else "")
        encoding, is_damaged = _encoding(start if not whole else None, place, start, name)
        return FileFacts(place, name, size, "text", encoding, is_damaged, _hash(place) if whole else "")
    except (OSError, ValueError, RuntimeError) as error:  # also a zero byte, or the home of a user who does not exist
        raise StudioError("The file {path} cannot be read: {reason}.", "Check its name, and that you may read it.",
                          path=path, reason=getattr(error, "strerror", None) or error) from error


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _refuse_foreign(start: bytes, name: str) -> None:
    if not start.strip(b" \t\r\n\x00\xef\xbb\xbf"):
        raise StudioError("The file {name} is empty.", "Choose a file with rows: JSON, JSON Lines, CSV, Parquet or plain text.", name=name)
    for mark, what, remedy in _FOREIGN:
        if start.startswith(mark):
            raise StudioError("The file {name} is {what}.", "First {remedy}, then import what is inside.", name=name, what=what,
                              remedy=remedy)
    if _WEB_PAGE.match(start.removeprefix(b"\xef\xbb\xbf")):
        title = re.search(rb"<title[^<>]{0,200}>(.{0,200}?)</title>", start, re.IGNORECASE | re.DOTALL)
        shown = " ".join(title[1].decode("utf-8", "replace").split()) if title else "-"
        raise StudioError("The file {name} is a web page, not data; its title is: {title}.",
                          "Download the file itself; a page came in its place, often an error or a login.", name=name, title=shown)
    if start.startswith(_POINTER):
        raise StudioError("The file {name} only points to the real one, which git-lfs keeps elsewhere.",
                          "Fetch it with `git lfs pull`, or download it from its page.", name=name)


def _encoding(sample: bytes | None, path: Path, start: bytes, name: str) -> tuple[str, bool]:
    """The encoding, and whether some bytes are not of it."""
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            return encoding, False
    if (wide := _without_mark(start)) is not None:
        return wide, False

    def chunks() -> Iterator[bytes]:
        if sample is not None:
            yield sample
            return
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk

    is_whole = sample is None or len(sample) < _SAMPLE
    if _decodes(chunks(), "utf-8", is_whole):
        if start.rstrip(b"\x00").count(0) > len(start) // 4:
            raise _not_text(name)
        return "utf-8", False
    valid, broken = _utf8_share(chunks())
    if valid > 4 * broken:
        return "utf-8", True
    if _looks_chinese(chunks()) and _decodes(chunks(), "gb18030", is_whole):  # Chinese Excel saves CSV so
        return "gb18030", False
    controls = sum(byte < 9 or 13 < byte < 32 for byte in start)
    if controls > len(start) // 50 or not _decodes(chunks(), "cp1252", is_whole):
        raise _not_text(name)
    return "cp1252", False


def _not_text(name: str) -> StudioError:
    return StudioError("The file {name} is not text.", "Save it as JSON, JSON Lines or CSV in UTF-8.", name=name)


def _without_mark(start: bytes) -> str | None:
    """UTF-16 without a mark at its beginning: every other byte of Latin text is zero."""
    even, odd = start[0:4000:2].count(0), start[1:4000:2].count(0)
    half = len(start[:4000]) // 2
    if half >= 8 and max(even, odd) > 0.6 * half and min(even, odd) < 0.05 * half:
        return "utf-16-le" if odd > even else "utf-16-be"
    return None


def _decodes(chunks: Iterator[bytes], encoding: str, is_whole: bool) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for chunk in chunks:
            decoder.decode(chunk)
        decoder.decode(b"", final=is_whole)
    except UnicodeDecodeError:
        return False
    return True


def _utf8_share(chunks: Iterator[bytes]) -> tuple[int, int]:
    """How many characters beyond ASCII are sound UTF-8, and how many bytes are not."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    valid = broken = 0
    for chunk in chunks:
        text = decoder.decode(chunk)
        if not text.isascii():
            bad = sum("\udc80" <= char <= "\udcff" for char in text)
            broken += bad
            valid += sum(char > "\x7f" for char in text) - bad
    return valid, broken


def _looks_chinese(chunks: Iterator[bytes]) -> bool:
    """Whether bytes beyond ASCII come in the pairs of common Chinese characters; letters with accents stand alone."""
    pairs = others = 0
    for chunk in chunks:
        pairs += len(re.findall(rb"[\xb0-\xf7][\xa1-\xfe]", chunk))
        others += len(re.findall(rb"[\x80-\xff][\x00-\x7f]", chunk))
        if pairs + others > 5000:
            break
    return pairs > others


def stray_bytes(text: str) -> bool:
    """Whether a line holds bytes that were not of the file's encoding."""
    return not text.isascii() and any("\udc80" <= char <= "\udcff" for char in text)
