"""The site of the documents: every page, links that lead somewhere, nothing from a network."""

from __future__ import annotations

from utils.command import run_command

import importlib.util
import re
import shutil
from pathlib import Path, PurePosixPath

import pytest
import yaml

from bench import site
from tests.commands import ROOT
from tests.report.test_browser import BROWSER, played
from utils.errors import UsageError

HERE = ["README.md", "CHANGELOG.md", "LICENSE", "mkdocs.yml", "docs", "weights", "bench"]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository with a few pages."""
    files = {
        "README.md": "[a](docs/a.md) [b](docs/b/) [code](bench/) `[no](link.md)` ![p](docs/p.png)\n",
        "CHANGELOG.md": "[`data.md`](docs/a.md)\n",
        "LICENSE": "free\n",
        "docs/a.md": "[home](../README.md#top) [page](b/README.md) [card](../weights/w.md) [l](../LICENSE)\n"
        "```\n[no](x)\n```\n",
        "docs/b/README.md": "[`code`](../../bench/x.py) [out](https://example.org) [here](#there)\n",
        "docs/p.png": "",
        "weights/w.md": "[`a`](../docs/a.md)\n",
        "bench/x.py": "",
        "mkdocs.yml": "nav: [index.md, changelog.md, a.md, {More: [b/index.md, {Card: weights/w.md}]}]\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_links_fit_where_the_pages_are(small: Path) -> None:
    site.write_pages(small, small / "out")
    texts = {p.relative_to(small / "out").as_posix(): p.read_text() for p in (small / "out").rglob("*.md")}
    assert texts == {
        "index.md": "[a](a.md) [b](b/index.md) code `[no](link.md)` ![p](p.png)\n",
        "a.md": "[home](index.md#top) [page](b/index.md) [card](weights/w.md) [l](LICENSE.txt)\n```\n[no](x)\n```\n",
        "changelog.md": "[`data.md`](a.md)\n",
        "b/index.md": "`code` [out](https://example.org) [here](#there)\n",
        "weights/w.md": "[`a`](../a.md)\n",
    }
    assert (small / "out" / "p.png").is_file()


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("docs/a.md", "[x](gone.md)\n", "docs/a.md: links to gone.md, which is not there"),
        ("docs/new.md", "\n", "mkdocs.yml: new.md: the navigation leaves it out"),
        (
            "mkdocs.yml",
            "nav: [index.md, changelog.md, a.md, a.md, b/index.md, weights/w.md]\n",
            "mkdocs.yml: a.md: is named twice",
        ),
        (
            "mkdocs.yml",
            "nav: [index.md, changelog.md, a.md, b/index.md, weights/w.md, x.md]\n",
            "mkdocs.yml: x.md: no such page",
        ),
    ],
)
def test_what_leads_nowhere_is_refused_before_anything_is_written(small: Path, file: str, text: str, said: str) -> None:
    (small / file).write_text(text)
    with pytest.raises(UsageError, match=re.escape(said)):
        site.write_pages(small, small / "out")
    assert not (small / "out").exists()


def test_the_pages_of_the_repository_are_whole(tmp_path: Path) -> None:
    site.write_pages(ROOT, tmp_path / "docs")
    for page in (tmp_path / "docs").rglob("*.md"):
        for target in [match["target"] for match in site.PARTS.finditer(page.read_text()) if match["target"]]:
            file = target.partition("#")[0]
            assert re.match("[a-z]+:", target) or not file or (page.parent / file).is_file(), f"{page.name}: {target}"
    nav = list(site.leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert nav[:2] == ["index.md", "walk.md"]


def test_without_the_builder_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run_command(lambda: site.main([])) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: bench.site: needs zensical (Python 3.11 or newer): pip install zensical"
    ]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("zensical") is None, reason="needs zensical, the extra docs")
def test_the_site_is_built_strictly_and_needs_no_network(tmp_path: Path) -> None:
    for name in HERE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    page = site.build(tmp_path)
    places = [place for place in site.places(tmp_path).values() if place.suffix == ".md"]
    assert all((page.parent / PurePosixPath(place).with_suffix(".html")).is_file() for place in places)
    for html in page.parent.rglob("*.html"):
        fetched = re.findall(r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="([^"]+)"', html.read_text())
        assert not [address for address in fetched if address.startswith(("http", "//"))], html
    with (tmp_path / "docs" / "export.md").open("a") as file:
        file.write("\n[nowhere](data.md#no-such-heading)\n")
    with pytest.raises(UsageError, match="anchor does not exist"):
        site.build(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the PATH")
def test_the_search_of_a_page_from_the_disk_answers_without_sharing_anything(tmp_path: Path) -> None:
    """What stands in for a Worker: messages go both ways, in order, as copies, also before its script is there."""
    script = """addEventListener("message", ({ data }) => { data.words.push("!"); postMessage(data); });"""
    (tmp_path / "worker.js").write_text(script)
    shutil.copy(ROOT / "docs" / "site" / "iframe-worker.js", tmp_path)
    reader = """const worker = new Worker("worker.js"), sent = { words: ["a"] }, got = [];
    worker.onmessage = ({ data }) => {
      got.push(data.words);
      if (got.length < 2) return;
      worker.terminate();
      const textContent = JSON.stringify({ got, sent, frames: frames.length, problems });
      document.body.append(Object.assign(document.createElement("pre"), { id: "seen", textContent }));
    };
    worker.postMessage(sent);
    worker.postMessage({ words: ["b"] });"""
    page = '<html><head></head><body><script src="iframe-worker.js"></script></body></html>'
    seen = played(page, tmp_path, reader)
    assert seen == {"got": [["a", "!"], ["b", "!"]], "sent": {"words": ["a"]}, "frames": 0, "problems": []}
