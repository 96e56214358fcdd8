"""The report: one HTML file that needs nothing else, readable on a phone, dark and light."""

import base64
import html
import io
import logging
import math
import re
from pathlib import Path

from PIL import Image

from rsc_seg.errors import UserError
from rsc_seg.files import atomic_write
from rsc_seg.viz.colors import ColorScale, css_gradient
from rsc_seg.viz.parts import Cell, Chart, Column, Figure, FigureGroup, Report, Row, Table
from rsc_seg.viz.style import SCRIPT, style_sheet

log = logging.getLogger(__name__)

LARGE = 8_000_000  # bytes; above, the log says so
PHOTO_SIDE = 560  # pixels of a photograph's longer side in the page
ARROWS = {"higher": "higher is better", "lower": "lower is better", "one": "1 is ideal", "": ""}

# Nothing may be fetched: the browser itself refuses what the page does not hold.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


def slug(text: str) -> str:
    """A file or anchor name: lower-case letters, digits and hyphens, never empty."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "part"


def data_uri(figure: Figure) -> str:
    """The picture as a data URI: maps as PNG (a palette where 256 colours suffice), photographs as bounded JPEG."""
    image, buffer = figure.image.convert("RGB"), io.BytesIO()
    if figure.tokens or figure.drawing is not None:
        colors = image.getcolors(256)
        if colors is not None:
            image = image.quantize(len(colors), method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.thumbnail((PHOTO_SIDE * figure.span, PHOTO_SIDE * figure.span), Image.Resampling.LANCZOS)
        image.save(buffer, "JPEG", quality=82, optimize=True)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _cell(row: Row, column: Column) -> Cell:
    value = row.cells.get(column.key)
    return value if isinstance(value, Cell) else Cell(value)


def _number(value: float, digits: int, sign: str = "") -> str:
    """A number with a real minus; what rounds to zero has none."""
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}".replace("-", "−")


def _difference(cell: Cell, base: Cell, digits: int) -> str:
    if cell.value is None or base.value is None or not math.isfinite(cell.value - base.value):
        return ""
    change = _number(cell.value - base.value, digits, "+")
    # Spreads that overlap: the difference is printed, but marked for what it is.
    if (cell.spread or base.spread) and abs(cell.value - base.value) <= (cell.spread or 0) + (base.spread or 0):
        return f'<span class="delta">≈ {change}</span>'
    return f'<span class="delta">{change}</span>'


def _table_cell(row: Row, column: Column, reference: Row | None) -> str:
    cell = _cell(row, column)
    if cell.value is None or not math.isfinite(cell.value):
        return f"<td>{_escape(cell.text) or '–'}</td>"
    body = _number(cell.value, column.digits)
    if cell.spread is not None:
        body += f' <span class="spread">± {cell.spread:.{column.digits}f}</span>'
    if cell.text:
        body += f' <span class="unit">{_escape(cell.text)}</span>'
    if reference is not None and row is not reference:
        body += _difference(cell, _cell(reference, column), column.digits)
    return f"<td>{body}</td>"


def _table(table: Table, key: str) -> str:
    reference = next((row for row in table.rows if row.reference), None)
    heads = [f'<th scope="col">{_escape(table.first)}</th>']
    for column in table.columns:
        extra = "".join(f'<span class="unit">{_escape(t)}</span>' for t in (column.unit, ARROWS[column.better]) if t)
        heads.append(f'<th scope="col">{_escape(column.title)}{extra}</th>')
    lines: list[str] = []
    notes: list[str] = []
    for row in table.rows:
        mark = ""
        if row.note:
            notes.append(f'<li id="{key}-n{len(notes) + 1}">{_escape(row.name)}: {_escape(row.note)}</li>')
            mark = f'<sup><a href="#{key}-n{len(notes)}" aria-label="note {len(notes)}">{len(notes)}</a></sup>'
        kind = ' class="reference"' if row is reference else ""
        cells = "".join(_table_cell(row, column, reference) for column in table.columns)
        lines.append(f'<tr{kind}><th scope="row">{_escape(row.name)}{mark}</th>{cells}</tr>')
    caption = table.caption
    if reference is not None:
        caption += f" Small numbers with a sign: difference to “{reference.name}” (shaded)."
        if "≈" in "".join(lines):
            caption += " ≈: no larger than the spreads of both rows together."
    title = f'<h3 id="{key}-t">{_escape(table.title)}</h3>'
    body = (
        f'<div class="scroll" tabindex="0" role="region" aria-labelledby="{key}-t"><table aria-labelledby="{key}-t">'
        f"<thead><tr>{''.join(heads)}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        f'<p class="fine">{_escape(caption.strip())}</p>' + (f'<ol class="fine">{"".join(notes)}</ol>' if notes else "")
    )
    if table.folded:
        return f'<details><summary id="{key}-t">{_escape(table.title)}</summary>{body}</details>'
    return title + body


def _charts(charts: list[Chart]) -> str:
    if not charts:
        return ""
    cells = []
    for chart in charts:
        remark = f'<span class="fine">{_escape(chart.caption)}</span>' if chart.caption else ""
        cells.append(f"<figure><figcaption>{_escape(chart.title)}{remark}</figcaption>{chart.svg}</figure>")
    return f'<div class="charts">{"".join(cells)}</div>'


def _figure(figure: Figure) -> str:
    if not figure.alt.strip():
        raise UserError(f"figure '{figure.label}': every picture of a report needs an alt text.")
    label = f"<figcaption>{_escape(figure.label)}</figcaption>" if figure.label else ""
    note = f'<span class="fine">{_escape(figure.note)}</span>' if figure.note else ""
    image = figure.image
    return (
        f"<figure{' class=span' if figure.span == 2 else ''}>{label}"
        f'<img{" class=tokens" if figure.tokens else ""} src="{data_uri(figure)}" alt="{_escape(figure.alt)}" '
        f'width="{image.width}" height="{image.height}" loading="lazy">{note}</figure>'
    )


def color_bar(scale: ColorScale) -> str:
    """The scale's colours with the numbers at both ends and what they mean, as HTML."""
    return (
        f'<div class="scale"><span>{scale.low + 0.0:.3g}</span>'
        f'<span class="ramp" style="background:{css_gradient(scale.colormap)}"></span>'
        f"<span>{scale.high + 0.0:.3g}</span><span>{_escape(scale.quantity)}</span></div>".replace("<span>-", "<span>−")
    )


def _group(group: FigureGroup) -> str:
    body = f"<h3>{_escape(group.title)}</h3>" if group.title != group.section else ""
    body += f"<p>{_escape(group.caption)}</p>" if group.caption else ""
    body += color_bar(group.scale) if group.scale else ""
    for row in group.rows:
        columns = sum(figure.span for figure in row)
        body += f'<div class="strip" style="--columns:{columns}">{"".join(map(_figure, row))}</div>'
    return body


def _sections(report: Report) -> list[tuple[str, str]]:
    """(heading, HTML) of every section that has content."""
    parts: list[tuple[str, str]] = []
    if report.summary or report.limits:
        body = (
            "<ul>" + "".join(f"<li>{_escape(line)}</li>" for line in report.summary) + "</ul>" if report.summary else ""
        )
        if report.limits:
            body += (
                "<h3>What this does not show</h3><ul>"
                + "".join(f"<li>{_escape(line)}</li>" for line in report.limits)
                + "</ul>"
            )
        parts.append(("Summary", body))
    named = (
        [t.section for t in report.tables] + [c.section for c in report.charts] + [g.section for g in report.figures]
    )
    for section in dict.fromkeys([s for s in report.sections if s in named] + named):
        intro = report.intros.get(section, "")
        body = f"<p>{_escape(intro)}</p>" if intro else ""
        body += "".join(_table(t, f"{slug(section)}-{k}") for k, t in enumerate(report.tables) if t.section == section)
        body += _charts([c for c in report.charts if c.section == section])
        groups = [g for g in report.figures if g.section == section]
        body += "".join(f"<p>{_escape(text)}</p>" for text in dict.fromkeys(g.about for g in groups if g.about))
        body += "".join(map(_group, groups))
        outro = report.outros.get(section, "")
        body += f'<p class="fine">{_escape(outro)}</p>' if outro else ""
        parts.append((section, body))
    body = ""
    if report.command:
        body += f'<h3>Command</h3><pre class="wrap"><code>{_escape(report.command)}</code></pre>'
    if report.environment:
        rows = "".join(f"<dt>{_escape(k)}</dt><dd>{_escape(str(v))}</dd>" for k, v in report.environment.items())
        body += f"<h3>Environment</h3><dl>{rows}</dl>"
    if report.config_yaml:
        config = f"<pre><code>{_escape(report.config_yaml)}</code></pre>"
        body += f"<details><summary>Resolved configuration</summary>{config}</details>"
    if body:
        parts.append(("How to repeat this", body))
    return parts


def render(report: Report) -> str:
    """The report as the text of one HTML page. UserError for a picture without alt text."""
    sections = _sections(report)
    anchors = [f"{k}-{slug(name)}" for k, (name, _) in enumerate(sections, start=1)]
    contents = "".join(
        f'<li><a href="#s{a}">{_escape(name)}</a></li>' for a, (name, _) in zip(anchors, sections, strict=True)
    )
    origin = ""
    if report.provenance:
        origin = f'<aside class="origin"><h2>About the weights</h2><p>{_escape(report.provenance)}</p></aside>'
    body = "".join(
        f'<section id="s{a}" aria-labelledby="h{a}"><h2 id="h{a}">{_escape(name)}</h2>{content}</section>'
        for a, (name, content) in zip(anchors, sections, strict=True)
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_escape(_POLICY)}">'
        f'<title>{_escape(report.title)}</title><link rel="icon" href="data:,">'
        f"<style>{style_sheet()}</style></head><body>"
        f'<header><div class="top"><h1>{_escape(report.title)}</h1>'
        '<button id="theme" type="button" hidden>Dark</button></div>'
        f'<p class="sub">{_escape(report.subtitle)}</p>{origin}'
        f'<nav aria-label="Contents"><ol>{contents}</ol></nav></header>'
        f'<main class="wide">{body}</main>'
        "<footer>Every picture and number of this page is inside this file; it loads nothing.</footer>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def write_report(path: Path, report: Report) -> Path:
    """Writes the page as a whole or not at all and returns its path; UserError when the system refuses."""
    text = render(report)
    size = len(text.encode())
    if size > LARGE:
        log.warning("%s: %.1f MB; show fewer pictures for a page that opens quickly on a phone.", path, size / 1e6)

    def fill(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    atomic_write(Path(path), fill)
    log.info("report: %s (%.1f MB)", path, size / 1e6)
    return Path(path)
