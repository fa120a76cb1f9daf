"""Images of items: URLs, files beside the data, and files in an archive beside it."""

import base64
import mimetypes
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

_URLS = ("data:", "http://", "https://")


class ImageError(Exception):
    """An image that cannot be read."""


def question_about(image: str | None, question: str, folder: Path) -> dict[str, Any]:
    """A user's turn, with the image before the question where there is one.

    image: a URL, or a path below `folder`, also into a ZIP archive: `pictures.zip/17.png`.

    Raises:
        ImageError: the file cannot be read, or is no image by its name.
    """
    if image is None:
        return {"role": "user", "content": question}
    url = image if image.startswith(_URLS) else _data_uri(folder / image)
    return {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": question},
        ],
    }


def _data_uri(path: Path) -> str:
    kind = mimetypes.guess_type(path.name)[0] or ""
    if not kind.startswith("image/"):
        raise ImageError(f"{path.name!r} is no image by its name")
    try:
        data = _read(path)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ImageError(f"the image cannot be read: {error}") from error
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _read(path: Path) -> bytes:
    for folder in path.parents:
        if folder.suffix == ".zip" and folder.is_file():
            archive = _archive(folder, folder.stat().st_mtime_ns)
            return archive.read(path.relative_to(folder).as_posix())
    return path.read_bytes()


@lru_cache(maxsize=1)
def _archive(path: Path, written: int) -> zipfile.ZipFile:
    """Left open: every opening reads the list of all that is in it. written: when, so that what is read is
    never of an older file."""
    return zipfile.ZipFile(path)
