"""README and docs tell the truth: their commands exist and run, the file tree is the repository's, examples run.

What a page shows runs in one folder, from top to bottom: lines after "$ " in ```console blocks, and ```python blocks in
one namespace. Of a command's output each line's first word must be there. A comment before a block says otherwise:

    <!-- file: NAME -->         the block is a file that the page's other blocks use
    <!-- from PATH -->          the block stands in that module's docstring, whose own test runs it
    <!-- needs: PACKAGE -->     it runs where that is installed
    <!-- not run: REASON -->    its costmodel commands must parse, its Python must compile
"""

import ast
import contextlib
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import click
import pytest
import typer.main
from test_cli import ROOT, costmodel
from test_replaying import cache

from costmodel import cli
from costmodel.workloads import load_module

README = (ROOT / "README.md").read_text()
PAGES = ("kernel-author", "tuner-owner", "ci-owner", "researcher", "graphs")
FENCE = re.compile(r"^(?:<!-- (?P<note>.+?) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
MOST_NOT_RUN = 12  # blocks of all pages


def commands(group: click.Group, name: str = "") -> dict[str, click.Command]:
    """Every command by what is typed after `costmodel`, those of sub-apps too."""
    found = {}
    for word, command in group.commands.items():
        typed = f"{name} {word}".strip()
        found |= commands(command, typed) if isinstance(command, click.Group) else {typed: command}
    return found


APP = typer.main.get_command(cli.app)
COMMANDS = commands(APP)


def blocks(page: str) -> list[tuple[str, str, str]]:
    """(note, kind, text) of every fenced block of a page."""
    text = (ROOT / f"docs/{page}.md").read_text()
    return [(match["note"] or "", match["kind"], match["text"]) for match in FENCE.finditer(text)]


def tracked(*patterns: str) -> set[str]:
    done = subprocess.run(["git", "ls-files", "--", *patterns], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return set(done.stdout.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_readme_or_a_page(command):
    told = [README, *((ROOT / f"docs/{page}.md").read_text() for page in PAGES)]
    assert any(f"costmodel {command}" in text or f"`{command}`" in text for text in told)


def tree_entries() -> set[str]:
    """The paths of the README's file tree: two columns, a name and what it is; names are indented by their folder."""
    block = re.search(r"## What is where\n+```\n(.*?)```", README, re.DOTALL)
    assert block, "the README has no file tree"
    folder, entries = "", set()
    for line in block[1].splitlines():
        name = line.split("  ")[0] if not line.startswith(" ") else line.strip().split("  ")[0]
        for part in name.split():
            path = part if not line.startswith(" ") else folder + part
            entries.add(path.rstrip("/"))
        if not line.startswith(" "):
            folder = name.split()[0] if name.endswith("/") else ""
    return entries


def test_the_file_tree_is_the_repository():
    files = tracked()
    listed = tree_entries()
    known = {str(parent) for file in files for parent in Path(file).parents} | files
    assert not listed - known, "listed, but not there"
    needed = {f for f in files if "/" not in f} | {f for f in files if re.fullmatch(r"costmodel/\w+\.py", f)}
    needed |= {f for f in files if re.fullmatch(r"(collectors|benchmarks|docs)/[\w-]+\.\w+", f)}
    needed -= {".gitignore", "costmodel/__init__.py"}
    assert not needed - listed, "there, but not listed"


def test_the_python_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_the_read_only_commands_of_the_readme_run():
    lines = [
        line.split("#")[0].strip()
        for line in README.splitlines()
        if line.startswith(("costmodel predict", "costmodel rank"))
    ]
    assert len(lines) >= 2
    for line in lines:
        done = costmodel(*line.split()[1:])
        assert done.returncode == 0, f"{line}: {done.stderr}"


def test_no_machine_paths_in_public_text():
    for file in sorted(tracked("*.md", "*.py", "*.toml", "*.sh", "*.txt")):
        text = (ROOT / file).read_text()
        assert not re.search(r"/(home|root|work|tmp)/\w+/", text), file


# ---- the pages ----


class Reader:
    """Does what a page says, as somebody who pastes it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.names = folder, {"__name__": "page"}

    def console(self, text: str) -> None:
        for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            line, *expected = part.rstrip("\n").split("\n")
            said = self.command(line)
            starts = {words[0] for words in map(str.split, said.splitlines()) if words}
            for shown in filter(str.strip, expected):
                exact = shown.startswith("exit code") and shown not in said.splitlines()
                # what is indented lists what this machine measured, in an order of its own
                word = "" if shown.startswith("  ") else shown.split()[0]
                assert not exact, f"{line}\nsaid {said!r}, not {shown!r}"
                assert not word.isalpha() or word in starts, f"{line}\nsaid {said!r}, nothing that begins with {word!r}"

    def command(self, line: str) -> str:
        words = shlex.split(line, comments=True)
        if words[0] != "costmodel" or {"|", ";", "&&", ">"} & set(words):
            environment = dict(os.environ, PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
            done = subprocess.run(
                ["bash", "-c", line], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
            return done.stdout
        with contextlib.redirect_stdout(io.StringIO()) as out:  # in this process: importing torch takes seconds
            code = APP.main(words[1:], prog_name="costmodel", standalone_mode=False)
        assert not code, f"{line}\n{out.getvalue()}"
        return out.getvalue()

    def python(self, text: str) -> None:
        file = self.folder / "example.py"
        file.write_text(text)
        exec(compile(text, str(file), "exec"), self.names)


def parses(line: str) -> None:
    """Whether the options of a costmodel command exist and have values that they take; nothing is done."""
    words = shlex.split(line.removeprefix("$ "), comments=True)
    if words[:1] != ["costmodel"]:
        return
    command, rest, name = APP, words[1:], "costmodel"
    while isinstance(command, click.Group):
        name, *rest = rest
        command = command.commands[name]
    command.make_context(name, rest)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_runs(page, tmp_path, monkeypatch):
    for name in ("GITHUB_ACTIONS", "GITHUB_BASE_REF", "GITHUB_STEP_SUMMARY", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COSTMODEL_STORE", str(tmp_path / "store.sqlite"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets").symlink_to(ROOT / "datasets")
    cache(tmp_path / "cache.json", "NVIDIA GeForce RTX 3090", 1.0)  # stands for the user's own
    reader = Reader(tmp_path)
    for note, kind, text in blocks(page):
        word, _, about = note.partition(": ")
        if word == "not run" or kind in ("ini", "yaml", "text"):
            continue
        if word == "file":
            (tmp_path / about).write_text(text)
        elif word == "needs" and importlib.util.find_spec(about) is None:
            compile(text, page, "exec")
        elif not note.startswith("from "):
            {"console": reader.console, "python": reader.python}[kind](text)


def test_what_is_not_run_is_few_has_a_reason_and_parses():
    kinds, left_out = {"console", "python", "ini", "yaml", "text"}, 0
    for page in PAGES:
        for note, kind, text in blocks(page):
            assert kind in kinds, f"{page}: a block of kind {kind!r}"
            assert not note or re.match(r"(file|needs|not run): \S|from \S", note), f"{page}: {note}"
            if not note.startswith("not run: "):
                continue
            left_out += 1
            if kind == "python":
                compile(text, page, "exec")
            for line in text.splitlines() if kind == "console" else ():
                if line.startswith("$ "):
                    parses(line)
    assert left_out <= MOST_NOT_RUN


def statements(code: str) -> list[str]:
    return [ast.dump(node) for node in ast.parse(code).body]


def test_examples_from_docstrings_are_those_of_the_docstrings():
    found = [(note[5:], text) for page in PAGES for note, _, text in blocks(page) if note.startswith("from ")]
    assert found
    for path, text in found:
        lines = (ast.get_docstring(ast.parse((ROOT / path).read_text())) or "").splitlines()
        theirs = statements(textwrap.dedent("\n".join(line for line in lines if line.startswith("    ") or not line)))
        ours = statements(text)
        assert any(theirs[i : i + len(ours)] == ours for i in range(len(theirs))), f"{path} has another example"


def test_the_api_reference_is_current():
    made = load_module(ROOT / "docs/make_api.py").reference(ROOT)
    assert (ROOT / "docs/api.md").read_text() == made, "run `python docs/make_api.py`"
    assert len(made.splitlines()) < 400
