"""What the documents say can be typed: commands parse; keys, files and links exist; Python imports what it names."""

from __future__ import annotations

import argparse
import ast
import builtins
import importlib
import importlib.util
import itertools
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from bench.protocol import read_protocol
from tests.commands import ROOT
from utils.config import load_config
from utils.schema import Config
from utils.shipped import weights_file

PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "weights").glob("*.md")),
]
CONFIGS = sorted((ROOT / "cfg").glob("*.yaml"))
SCRIPTS = [*sorted((ROOT / "bench").glob("*.py")), ROOT / "bench" / "gpu.sh"]
INSTALLED = dict(
    re.findall(r'^([\w-]+) = "segsdf\.([\w.]+):run"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
)
COMMAND = re.compile(r"(?:^|`)((?:python |make |bench/gpu\.sh)[^`\n]*)")
KEY = re.compile(r"`((?:data|model|sde|training|sampling|evaluation)\.[a-z_.]+)")
# Entries of pages that say what was, not what is.
PAST = {ROOT / "CHANGELOG.md", ROOT / "docs" / "log.md"}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def fences(path: Path, language: str) -> Iterator[str]:
    yield from re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def commands(path: Path) -> set[str]:
    """Lines of bash blocks, and commands between backticks or, in configs and scripts, in comments."""
    text = re.sub(r"\\+\n", " ", path.read_text())
    if path.suffix == ".md":
        lines = [line for block in fences(path, "bash") for line in block.replace("\\\n", " ").splitlines()]
        inline = COMMAND.findall(re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
        return {line.strip() for line in [*lines, *inline] if line.strip()}
    comments = re.findall(r"^[ #]*(python .*|bench/gpu\.sh .*)$", text, re.MULTILINE)
    return {*comments, *COMMAND.findall(text)}


class Parsed(Exception):
    """Raised in place of what a command would do after its arguments are parsed."""

    def __init__(self, parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
        self.parser, self.arguments = parser, arguments


def parsed(module: ModuleType, words: list[str], monkeypatch: pytest.MonkeyPatch) -> Parsed:
    """What the parser of a command makes of the words; the command itself does not run."""
    parse = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *given: Any) -> None:
        raise Parsed(self, parse(self, *given))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(Parsed) as caught:
        module.main(words)
    return caught.value


def has_key(parts: list[str]) -> bool:
    """Whether the config has a key `a.b.c`, or a section of that name."""
    model: Any = Config
    for part in parts:
        if not (isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields):
            return False
        model = model.model_fields[part].annotation
    return True


def module_of(words: list[str]) -> tuple[ModuleType, list[str]]:
    """The module that `python ...` or an installed command runs, and the words that are its arguments."""
    if words[0] in INSTALLED:
        return importlib.import_module(INSTALLED[words[0]]), words[1:]
    target, rest = (words[2], words[3:]) if words[1] == "-m" else (words[1].removesuffix(".py"), words[2:])
    return importlib.import_module(target), rest


def words_of(line: str) -> list[str]:
    """Of a line of a bash block, without its comment."""
    return shlex.split(re.sub(r"(?<= )\.\.\.", "", line), comments=True)


def check(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = words_of(line)
    if not words or words[0] in ("pip", "conda", "napari", "bioimageio"):
        return
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in words[1:] if re.fullmatch("[a-z-]+", word)} <= set(targets)
        return
    if words[0] == "bench/gpu.sh":
        return
    if words[0] == "torchrun":
        words = ["python", *words[next(i for i, word in enumerate(words) if word.endswith(".py")) :]]
    if words[0] != "python" and words[0] not in INSTALLED:
        assert words[0].startswith("--"), f"unknown command: {line}"
        overrides = [value for word, value in pairwise(words) if word == "--set"]
        assert all(has_key(override.partition("=")[0].split(".")) for override in overrides)
        return
    if words[1:3] in (["-m", "venv"], ["-m", "pytest"]):
        return
    module, rest = module_of(words)
    if not hasattr(module, "main"):
        assert rest[:1] in ([], [">"])  # utils.config_docs has no options
        return
    if not rest:  # only named
        return
    check_arguments(parsed(module, rest, monkeypatch).arguments)


def check_arguments(arguments: argparse.Namespace) -> None:
    """Files of the repository that the arguments name exist, and so do the keys of --set."""
    config, overrides = getattr(arguments, "config", None), getattr(arguments, "overrides", [])
    protocol = getattr(arguments, "protocol", None)
    if config is not None and config.startswith("cfg/"):
        load_config(ROOT / config, overrides)
    for override in overrides:
        assert has_key(override.partition("=")[0].split(".")), override
    weights = getattr(arguments, "weights", None)
    assert weights is None or weights_file(weights).is_file() or "/" in weights.removeprefix("weights/"), weights
    if protocol is not None:
        read_protocol(protocol)


PAIRS = sorted((name(path), line) for path in (*PAGES, *CONFIGS, *SCRIPTS) for line in commands(path))


def test_there_is_much_to_check() -> None:
    assert len(PAIRS) > 80
    assert {"README.md", "docs/questions/pictures.md", "docs/data.md", "weights/README.md"} <= {
        page for page, _ in PAIRS
    }


@pytest.mark.parametrize("page", sorted({page for page, _ in PAIRS}))
def test_commands_parse(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for line in [line for where, line in PAIRS if where == page]:
        try:
            with monkeypatch.context() as patch:
                check(line, patch)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{page}: {line}: {error}") from error


@pytest.mark.parametrize("path", [page for page in PAGES if page not in PAST], ids=name)
def test_keys_files_and_modules_exist(path: Path) -> None:
    text = re.sub(r"^\| [\w-]+/[\w.-]+ \(.*", "", path.read_text(), flags=re.MULTILINE)  # files of other codebases
    for key in {key.rstrip(".") for key in KEY.findall(text) if not key.endswith(".py")}:
        module = ROOT.joinpath(*key.split(".")).with_suffix(".py")
        assert has_key(key.split(".")) or module.is_file(), key
    for file in re.findall(r"[(`]((?:[a-z_0-9]+/)+[a-z_0-9]+\.(?:py|yaml|sh|md|safetensors))[)`]", text):
        assert any((base / file).is_file() for base in (ROOT, path.parent, ROOT / "docs")), file


def slug(title: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_resolve(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        page = path.parent / file if file else path
        assert page.exists(), target
        if anchor:
            assert anchor in {slug(title) for title in re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)}, target


def with_blocks(language: str) -> list[Path]:
    return [page for page in PAGES if f"```{language}" in page.read_text()]


def imported(node: ast.AST) -> dict[str, Any]:
    """What an import statement brings, by its name in the block; what needs another package is left out."""
    if isinstance(node, ast.ImportFrom):
        module = importlib.import_module(str(node.module))
        return {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
    names = (
        [alias for alias in node.names if importlib.util.find_spec(alias.name)] if isinstance(node, ast.Import) else []
    )
    return {alias.asname or alias.name: importlib.import_module(alias.name) for alias in names}


@pytest.mark.parametrize("path", with_blocks("python"), ids=name)
def test_python_has_what_it_names(path: Path) -> None:
    """Blocks compile, imports and attributes of what they import exist, and every other name was made before, by the
    page's blocks; `image` is the reader's."""
    made = {*dir(builtins), "image"}
    for block in fences(path, "python"):
        tree = ast.parse(block)
        names: dict[str, Any] = {}
        for node in ast.walk(tree):
            names |= imported(node)
            if isinstance(node, ast.Import | ast.ImportFrom):
                made |= {alias.asname or alias.name for alias in node.names}
            elif isinstance(node, ast.FunctionDef):
                made |= {node.name, *(argument.arg for argument in node.args.args)}
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                made.add(node.id)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names:
                assert hasattr(names[node.value.id], node.attr), node.attr
            if isinstance(node, ast.Name):
                assert node.id in made, node.id


@pytest.mark.parametrize("path", with_blocks("yaml"), ids=name)
def test_yaml_is_a_config_or_changes_one(path: Path, tmp_path: Path) -> None:
    for block in fences(path, "yaml"):
        own = tmp_path / "own.yaml"
        own.write_text(block if "base" in yaml.safe_load(block) else f"base: folder.yaml\n{block}")
        load_config(own)


def test_the_licences_name_every_dependency() -> None:
    named = set(re.findall(r"[\w-]+", (ROOT / "docs" / "licences.md").read_text()))
    assert set(re.findall(r"^[\w-]+", (ROOT / "requirements.txt").read_text(), re.MULTILINE)) <= named


def test_the_design_names_the_files_of_every_room() -> None:
    text = (ROOT / "docs" / "design.md").read_text()
    rooms = dict(re.findall(r"^\| [1-5] \| `(\w+)/` \|[^|]*\| ([^|]*) \|$", text, re.MULTILINE))
    assert len(rooms) == 10
    for room, files in rooms.items():
        there = {path.stem for path in (ROOT / room).iterdir() if not path.name.startswith("__")}
        assert set(re.findall(r"\w+", files)) == there, room


NEEDED = {
    "bench.page_load": ["x"],
    "bench.site": [],
    "bench.stain": [],
    "bench.table": ["--protocol", "x"],
    "utils.export": ["--run", "x", "--output", "x", "--licence", "x"],
    "napari_plugin.correct": ["x"],
}
MODULES = ["main", "sample", "data.prepare", "data.inspect", "utils.export", "napari_plugin.correct",
           *(f"bench.{path.stem}" for path in SCRIPTS if "def main(" in path.read_text())]  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_every_option_is_explained(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = parsed(importlib.import_module(module), NEEDED.get(module, ["--config", "x"]), monkeypatch).parser
    assert parser.description
    assert not [action.dest for action in parser._actions if not action.help]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_begins_with_what_it_reached(path: Path) -> None:
    """A score, or that there is none; and the page or the weights that a score is from exist."""
    head = "\n".join(itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines()))
    assert re.search(r"[Nn]ot trained|Test\b.*: (F1|fair GED) \.\d{3}", head.replace("\n# ", " ")), head
    for name in re.findall(r"(?:docs|weights)/[\w./]+\w", head):
        assert (ROOT / name).is_file(), name


QUESTIONS = sorted((ROOT / "docs" / "questions").glob("*.md"))


@pytest.mark.parametrize("path", QUESTIONS, ids=name)
def test_a_question_has_answer_commands_report_and_limits(path: Path) -> None:
    text = path.read_text()
    answer, *rest = re.split(r"^## (.*)$", text.partition("\n")[2], flags=re.MULTILINE)
    parts = dict(zip(rest[::2], rest[1::2], strict=True))
    assert 0 < len(answer.split()) <= 60
    assert next(iter(parts)) == "What to do"
    assert {"What to look at", "Limits"} <= set(parts)
    assert all(part.strip() for part in parts.values())
    assert "```" in parts["What to do"]
    assert f"(questions/{path.name})" in (ROOT / "docs" / "answers.md").read_text()
