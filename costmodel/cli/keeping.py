"""Keeping stores in order: is one sound, what can be saved of one that is not, and a copy for that day."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from costmodel.cli.shared import Json
from costmodel.present import print_json
from costmodel.records import UserError


def store_check(
    address: Annotated[
        str, typer.Argument(metavar="FILE", help="A store: a file, or postgresql://USER@HOST/DATABASE.")
    ],
    as_json: Json = False,
) -> None:
    """Check a whole store: its pages, that every row is what its hashes say, and that nothing is there twice.

    Ends with exit code 1 where something is wrong.

    Example: costmodel store check runs/cpu.sqlite
    """
    from costmodel.store.checking import check
    from costmodel.store.database import shown

    found = check(address)
    sound = not found.faults
    if as_json:
        print_json({"store": shown(address), "sound": sound, "rows": found.rows, "unsound": found.unsound,
                    "faults": found.faults})  # fmt: skip
    else:
        for line in found.faults:
            print(line)
        print(f"{shown(address)}: {found.rows} rows are sound" + ("" if sound else f", and {_what_now(address)}"))
    if not sound:
        raise typer.Exit(1)


def _what_now(address: str) -> str:
    from costmodel.store.database import is_url

    if is_url(address):
        return "others are not; restore them from a backup"
    return f"more is not; `costmodel store repair {address} --out NEW` saves what is"


def store_repair(
    file: Annotated[Path, typer.Argument(help="A damaged store; it is only read.")],
    out: Annotated[Path, typer.Option(help="The new store, for the rows that are whole.")],
    as_json: Json = False,
) -> None:
    """Save every row that can be read of a damaged store: cut off, with flipped bits or without its first page.

    Example: costmodel store repair runs/cpu.sqlite --out runs/saved.sqlite
    """
    from costmodel.store.repair import repair

    done = repair(file, out)
    if as_json:
        print_json({"store": str(out), "saved": done.saved, "lost": done.lost, "unsound": done.unsound,
                    "pages": done.pages, "pages_claimed": done.claimed})  # fmt: skip
        return
    print(f"saved {done.saved} rows to {out}; {done.lost} of those before the last one saved are lost")
    if done.unsound:
        print(f"{done.unsound} rows were found that are not what their hashes say, or lack their kernel or device")
    if done.claimed > done.pages:
        print(f"the file is cut off: {done.pages} of {done.claimed} pages are there, and rows beyond are not counted")


def store_backup(
    file: Annotated[str, typer.Argument(help="A store.")],
    out: Annotated[Path, typer.Argument(help="The copy; it appears once it is whole.")],
    as_json: Json = False,
) -> None:
    """Copy a store as it is at one moment; others may write to it meanwhile.

    Example: costmodel store backup runs/cpu.sqlite backups/cpu.sqlite
    """
    from costmodel.store.database import is_url
    from costmodel.store.sqlite import backup

    if is_url(file):
        raise UserError(
            "got a database to back up, expected a file; use pg_dump, or `costmodel store merge` into a file"
        )
    size = backup(Path(file), out)
    if as_json:
        print_json({"store": file, "backup": str(out), "bytes": size})
    else:
        print(f"copied {file} to {out}, {size / 1e6:.1f} MB")
