"""Hooks of mkdocs: the pages beside docs/ become pages of the site, and their links follow."""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT = Path(__file__).resolve().parents[2]
_DOCS = _ROOT / "docs"
_PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
# The path of a link that has no scheme, without its fragment.
_PATH = re.compile(r"(?<=\]\()(?!\w+:)[^)#\s]+")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages of the repository's root."""
    for name in _PAGES:
        files.append(File.generated(config, name, content=(_ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    uri = page.file.src_uri
    here = _ROOT if uri in _PAGES else (_DOCS / uri).parent

    def follow(link: re.Match[str]) -> str:
        path = Path(os.path.normpath(here / link[0]))
        target = path.relative_to(_DOCS if path.is_relative_to(_DOCS) else _ROOT)
        return os.path.relpath(target, Path(uri).parent)

    return _PATH.sub(follow, markdown)
