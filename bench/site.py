"""The documents as a site that needs no network: build/site/index.html.

    make docs

The pages are those of the repository: README.md as the first one, CHANGELOG.md, docs/ and the cards in weights/. They
are copied to build/docs with links that fit there, and mkdocs.yml says what is above what. A link to nothing and a page
that the navigation leaves out are errors; links to code are for the repository, and only their text stays.
"""

from __future__ import annotations

from utils.command import run_command

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote

import yaml

from utils.cli import Parser
from utils.errors import UsageError
from utils.files import write_text

ROOT = Path(__file__).resolve().parents[1]
ROOTS = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "LICENSE": "LICENSE.txt"}
FOLDERS = {"docs": "", "weights": "weights"}
SUFFIXES = (".md", ".png", ".csv", ".js", ".css")
# Code first, so that what looks like a link in it stays as it is; a link, whose text may hold code.
PARTS = re.compile(r"^```.*?^```|(?<!`)`[^`\n]+`(?!`)|(?P<text>!?\[(?:`[^`\n]*`|[^\]\n`])*\])\((?P<target>[^)\s]+)\)",
                   re.MULTILINE | re.DOTALL)  # fmt: skip


def places(root: Path) -> dict[PurePosixPath, PurePosixPath]:
    """Where each file of the repository lies in the site, relative to either root; README.md is the index of its
    folder."""
    found = {PurePosixPath(name): PurePosixPath(place) for name, place in ROOTS.items()}
    for folder, place in FOLDERS.items():
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in SUFFIXES:
                inside = PurePosixPath(path.relative_to(root / folder).as_posix())
                inside = inside.with_name("index.md") if inside.name == "README.md" else inside
                found[PurePosixPath(folder, path.relative_to(root / folder).as_posix())] = place / inside
    return found


def relinked(text: str, page: PurePosixPath, site: dict[PurePosixPath, PurePosixPath], root: Path) -> str:
    """The text of a page, its links leading to where the files are in the site. Raises UsageError for links to
    nothing."""

    def link(match: re.Match[str]) -> str:
        target = match["target"]
        if target is None or re.match(r"[a-z]+:|#", target):
            return match[0]
        path, mark, anchor = target.partition("#")
        file = PurePosixPath(os.path.normpath(page.parent / unquote(path)))
        there = site.get(file) or site.get(file / "README.md")
        if there is None:
            if not (root / file).exists():
                raise UsageError(f"{page}: links to {target}, which is not there")
            return match["text"][1:-1]
        return f"{match['text']}({quote(os.path.relpath(there, site[page].parent))}{mark}{anchor})"

    return PARTS.sub(link, text)


def leaves(nav: Any) -> Iterator[str]:
    """The pages of a navigation."""
    if isinstance(nav, str):
        yield nav
        return
    for entry in nav.values() if isinstance(nav, dict) else nav:
        yield from leaves(entry)


def check_navigation(nav: Any, site: dict[PurePosixPath, PurePosixPath]) -> None:
    """Raises UsageError unless it has every page, once."""
    named, there = list(leaves(nav)), [str(place) for place in site.values() if place.suffix == ".md"]
    wrong = [f"{name}: no such page" for name in named if name not in there]
    wrong += [f"{name}: is named twice" for name in sorted({n for n in named if named.count(n) > 1})]
    wrong += [f"{name}: the navigation leaves it out" for name in there if name not in named]
    if wrong:
        raise UsageError(f"mkdocs.yml: {'; '.join(wrong)}")


def write_pages(root: Path, folder: Path) -> None:
    """All pages and their pictures, as the site has them, in a new folder. Raises UsageError for links to nothing and
    pages that the navigation does not have; nothing is written then."""
    site = places(root)
    check_navigation(yaml.safe_load((root / "mkdocs.yml").read_text("utf-8"))["nav"], site)
    texts = {f: relinked((root / f).read_text("utf-8"), f, site, root) for f in site if f.suffix == ".md"}
    shutil.rmtree(folder, ignore_errors=True)
    for file, place in site.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if file in texts:
            write_text(path, texts[file])
        else:
            shutil.copyfile(root / file, path)


def build(root: Path = ROOT) -> Path:
    """The first page of the site. Raises UsageError where it cannot be built."""
    if importlib.util.find_spec("zensical") is None:
        raise UsageError("bench.site: needs zensical (Python 3.11 or newer): pip install zensical")
    write_pages(root, root / "build" / "docs")
    shutil.rmtree(root / "build" / "site", ignore_errors=True)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "--config-file", "mkdocs.yml"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise UsageError(f"bench.site: zensical ended with {done.returncode}\n{done.stdout}{done.stderr}".rstrip())
    return root / "build" / "site" / "index.html"


def main(arguments: list[str] | None = None) -> None:
    Parser("The documents as a site that needs no network, in build/site.").parse_args(arguments)
    print(build())


if __name__ == "__main__":
    sys.exit(run_command(main))
