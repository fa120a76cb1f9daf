"""The training text: public-domain books out of Debian packages.

| package             | text                                            | state of the text |
| ------------------- | ----------------------------------------------- | ----------------- |
| r-cran-janeaustenr  | Jane Austen, six novels, 1811-1817               | public domain (package: MIT) |
| sword-text-web      | World English Bible                              | public domain |
| sword-comm-mhcc     | Matthew Henry's Concise Commentary, 1706         | public domain |
| jargon-text         | The Jargon File 4.4.7                            | public domain |
| dict-devil          | Ambrose Bierce, The Devil's Dictionary, 1911     | public domain |

Only text is taken; no file of a package goes into the repository. The last four hundredths of
every book (`HELD_OUT`) are never trained on: `evaluation/long_text.jsonl` comes from there.

    python -m heed_tiny.text CACHE        # writes CACHE/train.txt and CACHE/held_out.txt
"""

import argparse
import gzip
import re
import struct
import subprocess
import zlib
from collections.abc import Iterator
from html import unescape
from pathlib import Path

PACKAGES = (
    "r-cran-janeaustenr",
    "sword-text-web",
    "sword-comm-mhcc",
    "jargon-text",
    "dict-devil",
)
HELD_OUT = 0.04
BOOK_BREAK = "\n\x1e\n"  # between books in the two files; no book contains it

PLAIN = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "—": "--", "–": "-", "\r": None})


def fetch(cache: Path) -> None:
    """Download the packages with apt and unpack them under `cache/<package>`; done once."""
    cache.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        if (cache / package).is_dir():
            continue
        subprocess.run(["apt-get", "download", "-qq", package], cwd=cache, check=True)
        archive = next(cache.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", archive, cache / package], check=True)


def reflow(text: str) -> str:
    """Join the lines of a paragraph, one blank line between paragraphs, ASCII quotes."""
    paragraphs = re.split(r"\n\s*\n", text.translate(PLAIN))
    joined = (" ".join(paragraph.split()) for paragraph in paragraphs)
    return "\n\n".join(paragraph for paragraph in joined if paragraph)


def austen(root: Path) -> Iterator[str]:
    """One novel per object of an R lazy-load file: a length, then a zlib stream of XDR strings."""
    data = next(root.rglob("Rdata.rdb")).read_bytes()
    while data:
        stream = zlib.decompressobj()
        novel = stream.decompress(data[4:])
        data = stream.unused_data
        yield reflow("\n".join(_r_strings(novel)))


def _r_strings(serialized: bytes) -> Iterator[str]:
    """The character elements of one serialized R vector (CHARSXP: flags, length, bytes)."""
    start = serialized.index(b"\x00\x04\x00\x09")
    while serialized[start + 1 : start + 4] in (b"\x04\x00\x09", b"\x00\x80\x09", b"\x00\x00\x09"):
        (length,) = struct.unpack(">i", serialized[start + 4 : start + 8])
        length = max(length, 0)  # NA has length -1
        yield serialized[start + 8 : start + 8 + length].decode("utf-8", "replace")
        start += 8 + length


def sword(root: Path) -> Iterator[str]:
    """One text per zlib block (a book of the Bible) of a SWORD module; OSIS markup removed."""
    for index in sorted(root.rglob("*.bzs"), reverse=True):
        blocks = index.with_suffix(".bzz").read_bytes()
        for offset, size, _ in struct.iter_unpack("<III", index.read_bytes()):
            if not size:
                continue
            markup = zlib.decompress(blocks[offset : offset + size]).decode("utf-8", "replace")
            markup = re.sub(r"<note\b.*?</note>", " ", markup, flags=re.S)
            markup = re.sub(r"<(chapter|/title|/table|div[^>]*x-p)[^>]*>", "\n\n", markup)
            markup = re.sub(r"</row>", "; ", markup)
            plain = unescape(re.sub(r"<(verse|milestone|div|l|lg|lb)\b[^>]*>", " ", markup))
            yield reflow(re.sub(r"<[^>]*>|[\x00-\x08\x0b-\x1f]", "", plain))


def gzipped(root: Path) -> Iterator[str]:
    """The one large gzip file of a package."""
    file = max(root.rglob("*z"), key=lambda path: path.stat().st_size)
    yield reflow(gzip.decompress(file.read_bytes()).decode("utf-8", "replace"))


def books(cache: Path) -> list[str]:
    """All books, each one string, in a fixed order."""
    texts = [*austen(cache / PACKAGES[0])]
    for package in PACKAGES[1:3]:
        texts += sword(cache / package)
    for package in PACKAGES[3:]:
        texts += gzipped(cache / package)
    return [text for text in texts if len(text) > 2000]


def split(texts: list[str]) -> tuple[list[str], list[str]]:
    """Cut every book in two at a paragraph: training part, held-out part."""
    train, held_out = [], []
    for text in texts:
        cut = text.find("\n\n", int(len(text) * (1 - HELD_OUT)))
        if cut < 0:
            train.append(text)
            continue
        train.append(text[:cut])
        held_out.append(text[cut + 2 :])
    return train, held_out


def read(file: Path) -> list[str]:
    """The books of `train.txt` or `held_out.txt`."""
    return file.read_text(encoding="utf-8").split(BOOK_BREAK)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("cache", type=Path)
    cache = parser.parse_args().cache
    fetch(cache)
    for name, texts in zip(("train", "held_out"), split(books(cache)), strict=True):
        (cache / f"{name}.txt").write_text(BOOK_BREAK.join(texts), encoding="utf-8")
        print(f"{name}: {len(texts)} books, {sum(map(len, texts)) / 1e6:.2f} M characters")


if __name__ == "__main__":
    main()
