"""Files that are whole or as they were: what a crash or a full disk breaks off is never read."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, in the place of what was there, in one step; to a device or a pipe as it is.

    Raises:
        OSError: it cannot be written; `path` is then as it was.
    """
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    # Of a link, what it leads to is replaced, and not the link.
    target = path.resolve()
    made = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        made.write_text(text, encoding="utf-8")
        sync(made)
        made.replace(target)
    finally:
        made.unlink(missing_ok=True)
    sync(target.parent)


def sync(path: Path) -> None:
    """Return when a file's content, or a directory's names, would outlast the machine's going down."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
