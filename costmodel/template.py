"""`costmodel new`: a kernel that already runs, to be filled in; the folder templates/ holds one a language."""

from __future__ import annotations

from pathlib import Path

from costmodel.records import UserError

_TEMPLATES = Path(__file__).with_name("templates")
_LANGUAGES = {".cpp": "cpp", ".cu": "cuda", ".py": "triton"}
_NAME = "axpy"


def write_template(file: Path) -> list[Path]:
    """Write NAME.cpp or NAME.cu and the NAME.py beside it, or for Triton NAME.py alone; overwrites neither."""
    if file.suffix not in _LANGUAGES or not file.stem.isidentifier() or "__" in file.stem:
        raise UserError(f"got {file}, expected NAME.cpp, NAME.cu or NAME.py with a plain name such as axpy.cpp")
    if not file.parent.is_dir():
        raise UserError(f"no folder {file.parent}; make it first")
    sources = sorted((_TEMPLATES / _LANGUAGES[file.suffix]).glob(f"{_NAME}.*"))
    written = [file.with_suffix(source.suffix) for source in sources]
    for path in written:
        if path.exists():
            raise UserError(f"{path} exists already; choose another name or move it away")
    for source, path in zip(sources, written, strict=True):
        path.write_text(source.read_text().replace(_NAME, file.stem))
    return written
