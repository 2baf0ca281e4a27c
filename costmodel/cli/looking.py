"""What there is: this machine, the device sheets, a kernel to fill in."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from costmodel import __version__
from costmodel.cli.shared import Json
from costmodel.present import print_devices, print_json
from costmodel.records import UserError


def doctor(as_json: Json = False) -> None:
    """Say what this machine offers: device, compiler, versions, and folders that shadow other packages.

    Example: costmodel doctor
    """
    from importlib.metadata import PackageNotFoundError, version

    from costmodel import devices
    from costmodel.measure.compiling import find_compiler

    facts: dict[str, Any] = {"costmodel": __version__, "python": sys.version.split()[0]}
    for package in ("torch", "triton", "transformers", "tree-sitter", "numpy", "pandas"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    device = devices.detect()
    facts |= {"device": device.name, "units": device.num_units, "peak_gb_per_s": device.peak_gb_per_s}
    try:
        facts["compiler"] = find_compiler().label
    except UserError as error:
        facts["compiler"] = str(error)
    facts |= {f"worker's {what}": told for what, told in _protections().items()}
    shadows = [name for name in ("kernels", "collectors", "datasets") if Path(name, "__init__.py").exists()]
    facts["shadowing"] = f"{', '.join(shadows)} hide packages of the same name" if shadows else "none"
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        print(f"{name:20} {value}")


def _protections() -> dict[str, str]:
    """What the isolated worker can be kept from on this machine; asked of a process, which cannot take it back."""
    import json
    import subprocess

    done = subprocess.run([sys.executable, "-P", "-m", "costmodel.measure.sealing"], capture_output=True, text=True)
    return dict(json.loads(done.stdout)) if done.returncode == 0 else {"protections": done.stderr.strip()[-200:]}


def list_devices(as_json: Json = False) -> None:
    """List the device sheets, and the device at hand.

    Example: costmodel devices
    """
    import dataclasses

    from costmodel import devices as sheets

    rows = [sheets.detect(), *sheets.load_sheets().values()]
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
        return
    print_devices(rows)


def new(file: Annotated[Path, typer.Argument(help="The kernel to write: NAME.cpp, NAME.cu or NAME.py.")]) -> None:
    """Write a small kernel that already runs, with its search space, to fill in: C++, CUDA, or Triton (NAME.py).

    Example: costmodel new axpy.cpp
    """
    from costmodel.template import write_template

    for path in write_template(file):
        print(f"wrote {path}")
    print(f"fill them in, then: costmodel tune {file}")
