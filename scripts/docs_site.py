"""What MkDocs asks while it builds the site: pages that are made, links that lead out of `docs/`, the navigation.

`mkdocs.yml` names this file among its hooks.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from docs_pages import DOCS, anchor, documents, expanded, for_site, pages_from_elsewhere, site_path
from from_schemas import reference

from heed_interventions import METHODS, ModelView, catalogue

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ANY_MODEL = ModelView(32, 32, 8, 128, 32_768, vision=True)
"""What is told of a method for all models does not depend on this one."""


@cache
def made_pages() -> dict[str, str]:
    """The pages that are no files of `docs/`, by their paths on the site."""
    return pages_from_elsewhere() | reference.pages(catalogue(ANY_MODEL))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill in the folders of the navigation, and link headings as GitHub does."""
    config.nav = expanded(config.nav or [], [*map(site_path, documents()), *made_pages()])
    config.mdx_configs.setdefault("toc", {})["slugify"] = anchor
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    from mkdocs.structure.files import File

    for path, text in made_pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links into the site's; a method's page gets one to its parameters."""
    path = page.file.src_uri
    if path in made_pages():
        return markdown
    text = for_site(markdown, DOCS + path)
    folder, _, name = path.rpartition("/")
    if folder == "methods" and (method := name.removesuffix(".md")) in METHODS:
        text += f"\n[All parameters of `{method}`, as the server takes them](../{reference.FOLDER}/{name})\n"
    return text
