"""The one writer of pages: a page is one HTML file with its pictures inside, and opens without a network.

It has no script and asks for nothing from outside. It follows the reader's light or dark setting; on a narrow screen
figures are as wide as it and a table's rows become cards, so nothing has to be scrolled sideways. Whatever comes from
data (a kernel's name, an error) is escaped: only `Html` is taken as it is.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from costmodel.records import UserError
from costmodel.report.style import STYLE, Look

CSS = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #595959; --line: #d8d8d8; --band: #f6f6f6; --paper: #fff;
  --good: 0, 158, 115; --bad: 213, 94, 0; font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --soft: #a8a8a8; --line: #444; --band: #232323;
  --paper: #161616; } svg { filter: brightness(1.25); } }
body { max-width: 66rem; margin: 0 auto; padding: 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0.5rem 0; } h2 { font-size: 1.2rem; margin: 2.5rem 0 0.5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 0.25rem; } p, li { max-width: 44rem; } p { margin: 0.5rem 0; }
small { font-weight: 400; } small, figcaption, .facts dt, .key { color: var(--soft); } a { color: inherit; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 0.75rem; margin: 1rem 0; }
.facts div { background: var(--band); border-radius: 0.4rem; padding: 0.5rem 0.75rem; }
.facts dt { font-size: 0.85rem; } .facts dd { margin: 0; font-size: 1.25rem; font-weight: 600; line-height: 1.3; }
.figures > div { min-width: 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem 2rem; }
figure { margin: 0.5rem 0; max-width: 31rem; } figcaption { font-size: 0.9rem; }
figure > svg { width: 100%; height: auto; display: block; stroke-linejoin: round; }
figure text { fill: currentColor; }
.key { list-style: none; margin: 0 0 0.25rem; padding: 0; font-size: 0.85rem; display: flex; flex-wrap: wrap;
  gap: 0 1rem; }
.key svg { width: 1.6rem; height: 0.6rem; margin-right: 0.35rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; margin: 0.5rem 0; }
th, td { padding: 0.3rem 0.6rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
td { white-space: nowrap; } td:first-child, td.text { white-space: normal; }
th:first-child, td:first-child, .text { text-align: left; } td:first-child, td.text { overflow-wrap: anywhere; }
td:first-child { min-width: 7rem; } th { font-weight: 600; border-bottom-color: var(--soft); }
tbody tr:nth-child(even) { background: var(--band); }
details { border-top: 1px solid var(--line); } details > *:not(summary) { margin-left: 0.25rem; }
summary { cursor: pointer; padding: 0.5rem 0; font-weight: 600; }
.chips { display: flex; flex-wrap: wrap; gap: 0.25rem 0.4rem; margin: 0.2rem 0 0.7rem; }
.chips span { padding: 0.05rem 0.5rem; border-radius: 0.3rem; border: 1px solid var(--line); }
@media (max-width: 44rem) {
  thead { display: none; } table, tbody { display: block; }
  tr { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 8.5rem), 1fr)); gap: 0 1.25rem;
    padding: 0.4rem 0.5rem; border-bottom: 1px solid var(--line); }
  td { white-space: normal; border: 0; padding: 0; display: flex; justify-content: space-between; gap: 0.5rem; }
  td::before { content: attr(data-name); color: var(--soft); text-align: left; flex: none; }
  td:first-child, td.text { grid-column: 1 / -1; } td:first-child { display: block; font-weight: 600; }
  td.text { display: block; } td.text::before { content: attr(data-name) ": "; } td:first-child::before { content: ""; }
  td:empty { display: none; }
}
@media print { details > * { display: block; } }
"""


class Html(str):
    """Text that is HTML already; every other text is escaped."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading; `text` columns are aligned to the left."""

    name: str
    text: bool = False


def escaped(text: object) -> Html:
    """Text of data for a page: what is not printable becomes "?"."""
    if isinstance(text, Html):
        return text
    shown = "".join(c if c.isprintable() else "?" for c in " ".join(str(text).split("\n")))
    return Html(html.escape(shown).replace(" %", "\u00a0%"))


def flowing(text: object) -> Html:
    """As `escaped`; a long list without spaces, such as a config, breaks after a comma."""
    return text if isinstance(text, Html) else Html(re.sub(r",(?=\S)", ",<wbr>", escaped(text)))


def counted(count: int, what: str) -> str:
    """ "1 problem", "1,200 problems" """
    return f"{count:,} {what}{'s' * (count != 1)}"


def page(title: str, *parts: str) -> str:
    """The whole file; parts are HTML. The title is its heading too."""
    head = escaped(title)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{head}</title><style>{CSS}</style></head>\n<body>\n<h1>{flowing(title)}</h1>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


def write_html(text: str, path: Path) -> None:
    written(path, text.encode())


def written(path: Path, content: bytes) -> None:
    """UserError where the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; give a file that can be written") from error


def paragraph(text: object) -> Html:
    return Html(f"<p>{flowing(text)}</p>")


def heading(text: object, *, note: object = "") -> Html:
    return Html(f"<h2>{flowing(text)}{_small(note)}</h2>")


def bullets(lines: Iterable[object]) -> Html:
    items = "".join(f"<li>{flowing(line)}</li>" for line in lines)
    return Html(f"<ul>{items}</ul>" if items else "")


def facts(pairs: Mapping[str, object]) -> Html:
    """The figures that are read first: name -> value."""
    tiles = "".join(f"<div><dt>{escaped(k)}</dt><dd>{escaped(v)}</dd></div>" for k, v in pairs.items())
    return Html(f'<dl class="facts">{tiles}</dl>')


def table(headings: Sequence[str | Column], rows: Iterable[Sequence[object]]) -> Html:
    """The first column names the row; a column in which nothing stands is left out."""
    cells = [list(row) for row in rows]
    columns = [
        (place, one if isinstance(one, Column) else Column(one), f' data-name="{escaped(_name(one))}"' * (place > 0))
        for place, one in enumerate(headings)
        if not cells or any(row[place] != "" for row in cells)
    ]
    kinds = {place: ' class="text"' * column.text for place, column, _ in columns}
    head = "".join(f"<th{kinds[place]}>{escaped(column.name)}</th>" for place, column, _ in columns)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{kinds[place]}{name}>{flowing(row[place]) if column.text or not place else escaped(row[place])}</td>"
            for place, column, name in columns
        )
        + "</tr>\n"
        for row in cells
    )
    return Html(f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>")


def _name(heading: str | Column) -> str:
    return heading.name if isinstance(heading, Column) else heading


def details(title: object, *parts: str, note: object = "", anchor: str = "", opened: bool = False) -> Html:
    """A part that opens where it is clicked, or where a link to `anchor` is followed."""
    name = f' id="{escaped(anchor)}"' if anchor else ""
    inside = "\n".join(part for part in parts if part)
    summary = f"<summary>{escaped(title)}{_small(note)}</summary>"
    return Html(f"<details{' open' * opened}>{summary}\n<div{name}>{inside}</div></details>")


def _small(note: object) -> str:
    return f" <small>{escaped(note)}</small>" if note else ""


def side_by_side(*parts: str) -> Html:
    """On a narrow screen below one another."""
    return Html(f'<div class="figures">{"".join(f"<div>{part}</div>" for part in parts)}</div>')


def picture(figure: Figure, told: str, *, caption: object = "", key: Mapping[str, Look] | None = None) -> Html:
    """A figure as inline SVG. `told` says what it shows to those who do not see it; `key` is its legend."""
    items = "".join(f"<li>{_swatch(look)}{escaped(name)}</li>" for name, look in (key or {}).items())
    return Html(
        f"<figure>{inline_svg(figure, told)}"
        + (f'<ul class="key">{items}</ul>' if items else "")
        + (f"<figcaption>{flowing(caption)}</figcaption>" if caption else "")
        + "</figure>"
    )


def _swatch(look: Look) -> str:
    if look.dot:
        shape = f'<circle cx="16" cy="6" r="{5 if look.dot == "full" else 4}" {look.attributes}/>'
    else:
        dashes = f' stroke-dasharray="{look.dashes}"' if look.dashes else ""
        shape = f'<path d="M1 6H31" stroke-width="3"{dashes} {look.attributes}/>'
    return f'<svg viewBox="0 0 32 12" aria-hidden="true">{shape}</svg>'


# What matplotlib writes and a page need not hold: more digits than can be seen, spaces between steps, paths that draw
# nothing, groups with nothing in them. Lines of no length with round ends are how `figures` draws dots.
_SHORTER = (
    (re.compile(r" font-family: [^;\"]+;?|; stroke-linecap: square|; stroke-linejoin: miter"), ""),
    (re.compile(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", re.DOTALL), ""),
    (re.compile(r"(-?\d+\.\d)\d+"), r"\1"),
    (re.compile(r"M (-?[\d.]+) (-?[\d.]+) \nL \1 \2 \n"), r"M\1 \2h0"),
    (re.compile(r'<path d="[^"]*" style="fill: none"/>'), ""),
    (re.compile(r"(?<=[\d\"]) ?\n?([MLCzQ])[ \n]+(?=[-\d\"])"), r"\1"),
    (re.compile(r' transform="rotate\(-0 [^"]*"'), ""),
    (re.compile(r"\n\s*"), "\n"),
    (re.compile(r"(<defs>\s*</defs>\s*)+|(<g>\s*</g>\s*)+"), ""),
)
_WORDS = re.compile(r"(?<=>)[^<>]*(?=</text>)")  # what a figure says is left as it is
_USED = re.compile(r'(?:xlink:href="|url\()#([\w-]+)')
_INK = {"#000000": "currentColor", "#ffffff": "var(--paper)"}


def inline_svg(figure: Figure, told: str) -> str:
    """SVG as it may stand inside a page: black in the colour of its text, white in that of its paper, and small."""
    buffer = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    svg = buffer.getvalue().decode()
    svg = svg[svg.index("<svg") :]  # the XML head has no place inside a page
    words = _WORDS.findall(svg)
    used = set(_USED.findall(svg))
    svg = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", svg)
    for pattern, shorter in _SHORTER:
        svg = pattern.sub(shorter, svg)
    for old, new in _INK.items():
        svg = svg.replace(old, new)
    left = iter(words)
    svg = _WORDS.sub(lambda _: next(left), svg)
    box = re.search(r'viewBox="[^"]+"', svg)
    return f'<svg {box[0] if box else ""} role="img" aria-label="{escaped(told)}">{svg[svg.index(">") + 1 :]}'
