"""MkDocs hooks: pages of the repository outside docs/, links to its files, links between docstrings.

A page links to other files by relative paths, which work in a checkout and on a code host. For the
site, links to its pages are rewritten, and any other file that a page links to is copied into it.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "paper/README.md", "paper/results/*.md")
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]+)")
ROLE = re.compile(r":\w+:`~?([\w.]+)`")  # such as :func:`recblr.load`


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside docs/; README.md is the first page of the site."""
    for pattern in PAGES:
        for path in sorted(ROOT.glob(pattern)):
            files.append(_outside(path.relative_to(ROOT).as_posix(), config))
    executed = str(ROOT / "build" / "tutorial.md")  # by the Makefile
    files.append(File.generated(config, "examples/tutorial.md", abs_src_path=executed))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links from the repository's tree to the site's."""
    uri = page.file.src_uri
    folder = posixpath.dirname(uri if page.file.generated_by else f"docs/{uri}")

    def site_link(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[1]))
        if not (ROOT / target).is_file():
            return link[0]  # MkDocs reports it
        target_uri = target.removeprefix("docs/")
        if files.get_file_from_path(target_uri) is None:
            files.append(_outside(target, config))
        return posixpath.relpath(target_uri, posixpath.dirname(uri) or ".")

    return LINK.sub(site_link, markdown)


def _outside(path: str, config: MkDocsConfig) -> File:
    return File.generated(config, path, abs_src_path=str(ROOT / path))


class Roles(griffe.Extension):
    """Turn the roles of docstrings into links, where the API reference has the object."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is None:
            return

        def link(role: re.Match[str]) -> str:
            try:
                path = obj.resolve(role[1])
            except griffe.NameResolutionError:
                path = role[1]
            return f'<autoref optional identifier="{path}"><code>{role[1]}</code></autoref>'

        obj.docstring.value = ROLE.sub(link, obj.docstring.value)
