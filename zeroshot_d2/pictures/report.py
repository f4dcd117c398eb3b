"""The report of a demo: one HTML file with its pictures inside, which needs no network and prints well."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

_STYLE = """
:root { --ink: #22262b; --muted: #5f6873; --line: #dde1e6; --unseen: #b3122b; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem 1rem 3rem; max-width: 62rem; color: var(--ink); background: #fff;
       font: 1rem/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .4rem 0 .6rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .5rem; padding-top: .7rem; border-top: 1px solid var(--line); }
p { max-width: 46rem; margin: .5rem 0; }
.muted, figcaption, dd { color: var(--muted); }
.unseen { color: var(--unseen); font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
th { border-bottom: 2px solid var(--ink); }
figure { margin: 1rem 0; }
figure img { display: block; width: 100%; height: auto; }
figcaption { font-size: .9rem; max-width: 46rem; margin-top: .4rem; }
dl { max-width: 46rem; margin: .5rem 0; font-size: .9rem; }
dt { font-weight: 600; margin-top: .4rem; }
dd { margin: 0; }
pre { background: #f5f6f8; padding: .7rem .9rem; overflow-x: auto; font-size: .85rem; border-radius: .3rem; }
figure.wide img { min-width: 40rem; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  figure, table, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
  .scroll { overflow: visible; }
  figure img, figure.wide img { width: auto; min-width: 0; max-width: 100%; max-height: 20cm; }
  table { font-size: 8pt; }
  th, td { padding: .2rem .45rem; }
  pre { white-space: pre-wrap; }
}
"""

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


@dataclass(frozen=True)
class Picture:
    """A PNG file with its caption; ``width`` is the most that it takes on the page, in rem."""

    path: Path
    caption: str
    alternative: str
    width: float = 62


@dataclass(frozen=True)
class Table:
    """Headings and rows; the first two columns are words, the others numbers, in percent unless they are counts."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str | int | float | None]]


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs of plain text, pictures, and lines of a shell."""

    title: str
    paragraphs: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    commands: Sequence[str] = ()


def render_report(
    title: str,
    lead: Sequence[str],
    results: Table,
    explanations: Mapping[str, str],
    sections: Sequence[Section],
    details: Mapping[str, str],
) -> str:
    """The whole page.

    Args:
        title: heading.
        lead: paragraphs of plain text below it.
        results: the table of the numbers.
        explanations: {term: what it means}, below the table.
        sections: what follows.
        details: {summary: preformatted text}, folded, at the end.

    Returns:
        HTML that refers to no other file.
    """
    body = [f"<h1>{escape(title)}</h1>", *(f"<p>{escape(text)}</p>" for text in lead)]
    body += ["<h2>Results</h2>", _table(results), "<dl>"]
    body += [f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in explanations.items()]
    body.append("</dl>")
    for section in sections:
        body.append(f"<h2>{escape(section.title)}</h2>")
        body += [f"<p>{escape(text)}</p>" for text in section.paragraphs]
        body += [_figure(picture) for picture in section.pictures]
        if section.commands:
            body.append(f"<pre>{escape(chr(10).join(section.commands))}</pre>")
    for summary, text in details.items():
        body.append(f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>")
    return _PAGE.format(title=escape(title), style=_STYLE, body="\n".join(body))


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in table.headings)
    lines = ["<tr>" + "".join(f"<td>{escape(_cell(cell))}</td>" for cell in row) + "</tr>" for row in table.rows]
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _cell(value: str | int | float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode("ascii")
    wide = ' class="wide"' if picture.width > 45 else ""
    return (
        f'<figure{wide} style="max-width: {picture.width:g}rem"><div class="scroll">'
        f'<img src="data:image/png;base64,{data}" alt="{escape(picture.alternative)}"></div>'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )
