"""The command line: one command per verb. Heavy imports stand inside the commands, so that --help answers at once.

Exit codes: 0 done, 2 a mistake in what was given, 130 interrupted. With --json the last line of standard output is one
JSON document, and nothing else is written there.
"""

from __future__ import annotations

import os
import sys

import typer

from costmodel.cli import inspecting, looking, modelling, replaying, searching, storing
from costmodel.records import UserError

app = typer.Typer(
    help="Predict how long a kernel will run from its text, and benchmark ten candidates instead of a thousand.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
store_app = typer.Typer(help="List, join and export stores of measurements.", no_args_is_help=True)

# in the order in which --help lists them
app.command()(looking.doctor)
app.command("devices")(looking.list_devices)
app.command()(looking.new)
app.command()(inspecting.inspect)
app.command()(storing.collect)
app.command("import")(storing.import_records)
app.add_typer(store_app, name="store")
store_app.command("ls")(storing.store_ls)
store_app.command("merge")(storing.store_merge)
store_app.command("export")(storing.store_export)
app.command()(modelling.train)
app.command()(modelling.update)
app.command()(modelling.evaluate)
app.command()(modelling.predict)
app.command()(modelling.rank)
app.command()(searching.tune)
app.command()(replaying.replay)


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"costmodel: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except KeyboardInterrupt:
        print("costmodel: interrupted; what was measured is in the store", file=sys.stderr)
        raise SystemExit(130) from None
