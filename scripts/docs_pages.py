"""Which files of the repository are pages of the documentation site, and where links between them lead there.

On the site the pages of `docs/` lie at the top, the README is the first page, and what pages link to outside of
`docs/` lies below `repository/`: other pages as they are, code as a page that shows it. Links to folders, which
a site does not have, become their texts.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HOME = "README.md"
DOCS = "docs/"
OTHERS = "repository/"

_LINK = re.compile(
    r"^ *```.*?^ *```"  # code, in which nothing is a link
    r"|`[^`\n]+`"
    r"|\[(?P<text>[^\]]*)\]\((?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)",
    re.DOTALL | re.MULTILINE,
)
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".ts": "ts"}


def documents() -> list[str]:
    """The pages of `docs/`, by their paths in the repository."""
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / DOCS).rglob("*.md"))


def site_path(path: str) -> str:
    """Where a file of the repository is on the site."""
    if path == HOME:
        return "index.md"
    if path.startswith(DOCS):
        return path.removeprefix(DOCS)
    return OTHERS + path + ("" if path.endswith(".md") else ".md")


def links(markdown: str, page: str) -> Iterator[str]:
    """What a page links to inside the repository, by its path there, whether it exists or not.

    page: its path in the repository.
    """
    for found in _LINK.finditer(markdown):
        if (target := _inside(found, page)) is not None:
            yield target


def for_site(markdown: str, page: str) -> str:
    """A page's text with the site's links in place of the repository's."""

    def replaced(found: re.Match[str]) -> str:
        target = _inside(found, page)
        if target is None or not (ROOT / target).exists():
            return found[0]
        if (ROOT / target).is_dir():
            return found["text"]
        here = posixpath.dirname(site_path(page))
        there = posixpath.relpath(site_path(target), here or ".")
        return f"[{found['text']}]({there}{found['anchor'] or ''})"

    return _LINK.sub(replaced, markdown)


def pages_from_elsewhere() -> dict[str, str]:
    """The site's pages that are no files of `docs/`, by their paths on the site: the README, and what any page
    of the site links to."""
    made: dict[str, str] = {}
    waiting = [HOME, *documents()]
    seen = set(waiting)
    while waiting:
        page = waiting.pop()
        text = (ROOT / page).read_text(encoding="utf-8")
        if not page.startswith(DOCS):
            made[site_path(page)] = _text(page, text)
        if page.endswith(".md"):
            new = {link for link in links(text, page) if _is_page(link)} - seen
            seen |= new
            waiting += sorted(new)
    return made


def expanded(nav: list[Any], pages: list[str]) -> list[Any]:
    """A navigation in which `FOLDER/*` stands for the pages of a folder but its first, in order of their names.

    pages: all of the site, by their paths there.
    """
    whole: list[Any] = []
    for entry in nav:
        if isinstance(entry, dict):
            whole += [
                {title: expanded(below, pages) if isinstance(below, list) else below}
                for title, below in entry.items()
            ]
        elif entry.endswith("/*"):
            whole += sorted(page for page in pages if _is_in(page, entry.removesuffix("*")))
        else:
            whole.append(entry)
    return whole


def listed(nav: list[Any]) -> Iterator[str]:
    """The pages of an expanded navigation."""
    for entry in nav:
        for below in entry.values() if isinstance(entry, dict) else [entry]:
            yield from listed(below) if isinstance(below, list) else [below]


def anchor(heading: str, separator: str = "-") -> str:
    """Where a heading is linked to, as GitHub has it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", separator)


def _inside(found: re.Match[str], page: str) -> str | None:
    target = found["target"]
    if target is None or "://" in target or target.startswith("mailto:"):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), target))


def _is_page(path: str) -> bool:
    """Whether what is linked becomes a page: pictures of `docs/` lie on the site as they are."""
    return (ROOT / path).is_file() and (path.endswith(".md") or not path.startswith(DOCS))


def _is_in(page: str, folder: str) -> bool:
    inside = page.startswith(folder) and "/" not in page.removeprefix(folder)
    return inside and posixpath.basename(page) not in ("README.md", "index.md")


def _text(page: str, text: str) -> str:
    if page.endswith(".md"):
        return for_site(text, page)
    return f"# {page}\n\n````{_LANGUAGES.get(Path(page).suffix, 'text')}\n{text}````\n"
