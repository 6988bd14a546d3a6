"""One self-contained HTML page: style, escaping, tables. Scripts and images are inside the file."""

from base64 import b64encode
from collections.abc import Sequence
from html import escape

from tokendial.report.palette import FONTS, GRID, INK, MUTED, RIGHT, WRONG

STYLE = f"""
body {{ font: 15px/1.5 {FONTS}; color: {INK}; max-width: 1180px; margin: 2rem auto; padding: 0 1.5rem; }}
h1 {{ font-size: 1.6rem; margin-bottom: .2rem; }} h2 {{ font-size: 1.15rem; margin-top: 2.2rem; }}
p.note {{ color: {MUTED}; margin-top: .2rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .32rem .7rem; border-bottom: 1px solid {GRID}; text-align: right; }}
th {{ font-weight: 600; white-space: nowrap; }}
th:first-child, td:first-child, td.text {{ text-align: left; }}
td.right {{ background: {RIGHT}; }} td.wrong {{ background: {WRONG}; }}
td.strong {{ font-weight: 600; }}
img.pixels {{ image-rendering: pixelated; width: 120px; height: auto; display: block; }}
.scroll {{ overflow-x: auto; }}
"""


def page(title: str, note: str, parts: Sequence[str], script: str = "") -> str:
    """A whole document; `parts` are HTML already, `script` runs before them."""
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    loaded = f"<script>{script}</script>" if script else ""
    body = f'<h1>{escape(title)}</h1><p class="note">{escape(note)}</p>{"".join(parts)}'
    return f'<!doctype html><html lang="en"><head>{head}{loaded}</head><body>{body}</body></html>\n'


def section(title: str, note: str, body: str) -> str:
    return f'<h2>{escape(title)}</h2><p class="note">{escape(note)}</p><div class="scroll">{body}</div>'


def cell(text: str, kind: str = "") -> str:
    """A table cell; kinds are text, strong, right, wrong."""
    return f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already, under plain-text column names."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def png_cell(data: bytes, alt: str) -> str:
    """A cell with the image inside the file."""
    return f'<td><img class="pixels" alt="{escape(alt)}" src="data:image/png;base64,{b64encode(data).decode()}"></td>'
