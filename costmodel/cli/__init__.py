"""The command line: one command per verb. Heavy imports stand inside the commands, so that --help answers at once.

Exit codes: 0 done, 1 what was checked is not sound, 2 a mistake in what was given, 130 interrupted. With --json the
last line of standard output is one JSON document, and nothing else is written there.
"""

from __future__ import annotations

import os
import sys

import typer

from costmodel import workloads
from costmodel.cli import (
    ablating,
    explaining,
    graphing,
    inspecting,
    keeping,
    looking,
    modelling,
    replaying,
    reporting,
    searching,
    storing,
    tabling,
)
from costmodel.records import UserError

app = typer.Typer(
    help="Predict how long a kernel will run from its text, and benchmark ten candidates instead of a thousand.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
store_app = typer.Typer(help="List, join, export, check, mend and back up stores.", no_args_is_help=True)
graph_app = typer.Typer(help="Look at whole programs.", no_args_is_help=True)
table_app = typer.Typer(help="Pre-tuned tables: build, ask, hand to other tuners.", no_args_is_help=True)

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
store_app.command("check")(keeping.store_check)
store_app.command("repair")(keeping.store_repair)
store_app.command("backup")(keeping.store_backup)
app.command()(modelling.train)
app.command()(ablating.ablate)
app.command()(modelling.update)
app.command()(modelling.calibrate)
app.command()(modelling.evaluate)
app.command()(modelling.predict)
app.command()(modelling.rank)
app.command()(explaining.explain)
app.command()(searching.tune)
app.command()(replaying.replay)
app.command()(reporting.report)
app.add_typer(graph_app, name="graph")
graph_app.command("show")(graphing.graph_show)
app.add_typer(table_app, name="table")
table_app.command("build")(tabling.table_build)
table_app.command("show")(tabling.table_show)
table_app.command("apply")(tabling.table_apply)


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 2."""
    try:
        try:
            app()
        except workloads.Untrusted as error:
            if not _allowed(error):
                raise
            os.environ[workloads.TRUST] = "1"
            app()
    except UserError as error:
        print(f"costmodel: {_shown(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except KeyboardInterrupt:
        print("costmodel: interrupted; what was measured is in the store", file=sys.stderr)
        raise SystemExit(130) from None


def _shown(error: UserError) -> str:
    """One line without what would steer a terminal: it may quote a file that a stranger wrote."""
    return "".join(c if c.isprintable() else "?" for c in str(error).replace("\n", " "))


def _allowed(error: UserError) -> bool:
    """Asks, where somebody sits there to answer."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(f"costmodel: {_shown(error)}\nExecute it now? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
