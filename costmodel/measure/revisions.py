"""What the gate asks of git: where a repository begins, a revision's files in a folder of their own, what changed."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from costmodel.records import UserError

_FOREIGN = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # a git hook sets them, and they would overrule the folder
_HUNK = re.compile(r"^@@ -\S+ \+(\d+)")


def _git(folder: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
    command = ["git", "-C", str(folder), "-c", "core.quotePath=false", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    except FileNotFoundError:
        raise UserError("git is not installed, and the gate compares two git revisions; install git") from None
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise UserError(f"`git {' '.join(arguments)}` failed in {folder}: {last}")
    return done.stdout


def toplevel(folder: Path) -> Path:
    """The root of the repository that a folder lies in."""
    try:
        return Path(_git(folder, "rev-parse", "--show-toplevel").strip()).resolve()
    except UserError as error:
        if "not a git repository" not in str(error):
            raise
        raise UserError(f"{folder} is not in a git repository; the gate compares two git revisions") from None


def head(root: Path) -> str:
    """The commit that is checked out."""
    return _git(root, "rev-parse", "HEAD").strip()


def fork_point(root: Path, revision: str) -> str:
    """The commit where HEAD left `revision`, their merge base: what `revision` gained since is not HEAD's doing."""
    try:
        _git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    except UserError:
        raise UserError(
            f"git knows no revision {revision!r} in {root}; fetch it (a CI checkout is often one commit deep)"
        ) from None
    try:
        return _git(root, "merge-base", revision, "HEAD").strip()
    except UserError:
        raise UserError(
            f"{revision!r} and HEAD have no common commit in {root}; fetch the whole history (fetch-depth: 0)"
        ) from None


@contextmanager
def checkout(root: Path, revision: str) -> Iterator[Path]:
    """A revision's files as a git worktree in a temporary folder, which ends with the block."""
    with tempfile.TemporaryDirectory(prefix="costmodel-base-") as folder:
        tree = Path(folder).resolve() / "base"
        _git(root, "worktree", "add", "--detach", "--force", str(tree), revision)
        try:
            yield tree
        finally:
            _git(root, "worktree", "remove", "--force", str(tree))


def changed_lines(root: Path, revision: str) -> dict[str, int]:
    """{file: its first changed line} of what differs between `revision` and the working tree, uncommitted changes
    included; files that are gone, and new ones that git does not track, are left out."""
    found: dict[str, int] = {}
    file = ""
    options = ("--unified=0", "--no-renames", "--no-color", "--no-ext-diff", "--src-prefix=a/", "--dst-prefix=b/")
    for line in _git(root, "diff", *options, revision, "--").splitlines():
        if line.startswith("+++ "):
            file = line[len("+++ b/") :].rstrip("\t") if line != "+++ /dev/null" else ""
        elif file and (hunk := _HUNK.match(line)):
            found.setdefault(file, max(1, int(hunk[1])))
    return found
