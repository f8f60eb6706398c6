"""One self-contained HTML page: no script, no font, no request; it reads the same in ten years, and in print."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from poisonkit.errors import require
from poisonkit.report.markup import Html, escape
from poisonkit.report.pictures import SIGNATURE

# the browser itself refuses scripts and requests, whatever a caption says
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2026; --muted: #5d6673; --line: #e1e4e9; --paper: #fff; --card: #f6f7f9;
  --accent: #0072b2; }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --muted: #9aa4b2; --line: #2c323b;
  --paper: #15181d; --card: #1d2127; --accent: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.6 system-ui, sans-serif;
  -webkit-text-size-adjust: 100%; }
header, main { max-width: 1000px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 56px; padding-bottom: 8px; }
header::before { content: ""; display: block; width: 44px; height: 4px; border-radius: 2px; background: var(--accent);
  margin-bottom: 20px; }
h1 { font-size: clamp(26px, 4.5vw, 38px); line-height: 1.15; letter-spacing: -0.022em; font-weight: 680; margin: 0;
  text-wrap: balance; }
header p { font-size: 18px; line-height: 1.5; color: var(--muted); margin: 12px 0 0; max-width: 64ch; }
main { padding-bottom: 72px; }
section { display: flex; flex-wrap: wrap; gap: 20px 40px; margin-top: 48px; }
section > * { flex: 0 0 100%; min-width: 0; margin: 0; }
section > figure { flex: 1 1 400px; }
h2 { font-size: 21px; line-height: 1.3; letter-spacing: -0.012em; font-weight: 650; }
h2 + p { margin-top: -12px; }
section > p { max-width: 68ch; text-wrap: pretty; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 210px), 1fr)); gap: 16px; }
.card { background: var(--card); border-radius: 12px; padding: 17px 16px 15px; max-width: 468px; break-inside: avoid; }
.card strong { display: block; font-size: 26px; line-height: 1.2; letter-spacing: -0.02em; font-weight: 650;
  font-variant-numeric: tabular-nums; }
.card span { display: block; margin-top: 6px; font-weight: 550; line-height: 1.4; text-wrap: balance; }
.card small { display: block; margin-top: 2px; font-size: 14px; line-height: 1.45; color: var(--muted);
  text-wrap: pretty; }
figure svg, figure img { display: block; max-width: 100%; height: auto; }
figure svg { width: 100%; max-width: 560px; }
figure img { border-radius: 4px; }
figure { break-inside: avoid; }
figcaption, caption { font-size: 14px; line-height: 1.5; color: var(--muted); text-align: left; }
figcaption { margin-top: 10px; max-width: 64ch; text-wrap: pretty; }
.table { overflow-x: auto; container-type: inline-size; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: 15px; line-height: 1.4;
  font-variant-numeric: tabular-nums; }
caption { padding-bottom: 10px; }
caption span { display: block; position: sticky; left: 0; max-width: 100cqw; text-wrap: pretty; }
th, td { padding: 9px 0 9px 22px; text-align: left; vertical-align: bottom; border-bottom: 1px solid var(--line); }
td, tbody th { white-space: nowrap; }
th:first-child { position: sticky; left: 0; padding-left: 0; background: var(--paper); }
thead th { font-size: 13.5px; font-weight: 550; color: var(--muted); border-bottom-color: var(--muted);
  text-wrap: balance; }
tbody th { font-weight: 600; }
.number { text-align: right; }
tbody tr { break-inside: avoid; }
pre { overflow-x: auto; padding: 14px 18px; border-radius: 8px; background: var(--card);
  font: 13px/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
details pre { margin: 12px 0 0; }
summary { cursor: pointer; font-weight: 550; }
@media (max-width: 600px) { header, main { padding-left: 18px; padding-right: 18px; } header { padding-top: 36px; }
  section { margin-top: 40px; } }
@media print { body { font-size: 10.5pt; } header, main { padding: 0; } header p { font-size: 12pt; }
  section { margin-top: 28px; } section > figure { flex-basis: 280px; } h2 { break-after: avoid; }
  .cards { grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); } .card { border: 1px solid var(--line); }
  .card strong { font-size: 20px; } .table { overflow: visible; break-inside: avoid; }
  table { font-size: 8.5pt; } thead th { font-size: 8pt; } tbody th { white-space: normal; }
  th, td { padding-left: 8px; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; } }
"""


@dataclass(frozen=True)
class Headline:
    """A number to remember: "95 % → 3 %", "attack success, undefended → DPA", and a note on how it was measured."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a page. In ``body``, Html is a block and any other string a paragraph; title "" for none.

    Figures that follow each other stand side by side where the window is wide enough.
    """

    title: str
    body: Sequence[str]


def cards(headlines: Sequence[Headline]) -> Html:
    """The headline numbers of a page, one card each."""
    inner = "\n".join(
        f'<div class="card"><strong>{escape(each.value)}</strong><span>{escape(each.label)}</span>'
        + (f"<small>{escape(each.note)}</small>" if each.note else "")
        + "</div>"
        for each in headlines
    )
    return Html(f'<div class="cards">\n{inner}\n</div>')


def figure(content: bytes | Html, caption: str) -> Html:
    """A PNG (bytes) or a chart (Html) above its caption."""
    if isinstance(content, bytes):
        require(content.startswith(SIGNATURE), "content", "a PNG file or a chart", content[:8])
        width, height = struct.unpack(">II", content[16:24])
        data = base64.b64encode(content).decode()
        content = Html(
            f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{escape(caption)}">'
        )
    return Html(f"<figure>\n{escape(content)}\n<figcaption>{escape(caption)}</figcaption>\n</figure>")


def code(text: str) -> Html:
    """A command or a listing, as it is."""
    return Html(f"<pre>{escape(text)}</pre>")


def details(summary: str, text: str) -> Html:
    """A listing, such as a manifest, folded away until it is asked for."""
    return Html(f"<details><summary>{escape(summary)}</summary>{code(text)}</details>")


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole HTML file."""
    body = "\n".join(map(_section, sections))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p>{escape(subtitle)}</p>
</header>
<main>
{body}
</main>
</body>
</html>
"""


def _section(section: Section) -> str:
    heading = f"<h2>{escape(section.title)}</h2>\n" if section.title else ""
    blocks = (part if isinstance(part, Html) else f"<p>{escape(part)}</p>" for part in section.body)
    return f"<section>\n{heading}" + "\n".join(blocks) + "\n</section>"
