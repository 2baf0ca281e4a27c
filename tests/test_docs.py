"""The README tells the truth: its commands exist, its file tree is the repository's, its examples run."""

import re
import subprocess
from pathlib import Path

import pytest
from test_cli import COMMANDS, ROOT, costmodel

README = (ROOT / "README.md").read_text()


def tracked(*patterns: str) -> set[str]:
    done = subprocess.run(["git", "ls-files", "--", *patterns], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return set(done.stdout.split())


@pytest.mark.parametrize("command", [*COMMANDS, "store ls", "store merge", "store export"])
def test_every_command_is_in_the_readme(command):
    assert f"costmodel {command}" in README or f"`{command}`" in README


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
