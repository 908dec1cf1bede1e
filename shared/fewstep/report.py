"""Report: one HTML file that shows a result (figures, tables, charts, pictures, sounds) and needs nothing else, neither files nor network.

    report = Report("Super-resolution in one step", "DIV2K x4")
    report.headline([("28.41 dB", "PSNR, 1 evaluation", "teacher, 15 evaluations: 28.57 dB")])
    report.compare("A test picture", ("bicubic", low), ("1 evaluation", high))
    report.write("report.html")

shapes: a picture is uint8 (H, W, 3), or the bytes of a PNG file, which are kept as they are
"""

import base64
import io
import math
import os
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from fewstep import __version__
from fewstep.whole_file import whole

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.ticker import Locator

    Picture: TypeAlias = bytes | np.ndarray

FEW = 20  # Up to here every point of a curve is marked, and its numbers are listed below the chart.
INK = "#010203"  # Stands for the text colour of the page, light or dark.
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
)  # Okabe and Ito: safe for colour-blind readers.
MARKERS = {  # matplotlib's name and the same shape in the legend
    "o": '<circle cx="16" cy="7" r="4"/>',
    "s": '<path d="M12.5 3.5h7v7h-7z"/>',
    "^": '<path d="M16 2l5 9h-10z"/>',
    "D": '<path d="M16 2l5 5-5 5-5-5z"/>',
}
DASHES = ("6 3", "2 2", "8 2 2 2")
SIZES = {"wide": (11, 4.8), "narrow": (4.4, 3.8)}  # inches; the page shows the one that fits the screen


@dataclass(frozen=True)
class Curve:
    """One series of a chart: a line through its points, or the points alone."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: Literal["line", "markers"] = "line"

    def __post_init__(self) -> None:
        if not 0 < len(self.x) == len(self.y):
            raise ValueError(
                f"curve {self.label!r} has {len(self.x)} x and {len(self.y)} y values; give as many of each, at least one"
            )


class Report:
    """Parts in the order of the calls; all text is escaped. An empty heading continues the part above."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title, self.subtitle = title, subtitle
        self._parts: list[str] = []

    def headline(self, items: Sequence[tuple[str, str, str]]) -> None:
        """A row of cards with big figures, each (value, label, note)."""
        cards = (
            f'<div><dt>{escape(label)}</dt><dd class="value">{escape(value)}</dd><dd class="note">{escape(note)}</dd></div>'
            for value, label, note in items
        )
        self._add("", f'<dl class="cards">{"".join(cards)}</dl>')

    def text(self, heading: str, paragraphs: str | Sequence[str]) -> None:
        paragraphs = [paragraphs] if isinstance(paragraphs, str) else paragraphs
        self._add(heading, "".join(f"<p>{escape(p)}</p>" for p in paragraphs))

    def table(
        self,
        heading: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        note: str = "",
        emphasise: int | None = None,
    ) -> None:
        """A table; `emphasise` is the index of the row to highlight."""
        if emphasise is not None and not 0 <= emphasise < len(rows):
            raise ValueError(f"row {emphasise} cannot be emphasised: the table has rows 0 to {len(rows) - 1}")
        self._add(heading, _table(columns, rows, emphasise) + _note(note))

    def curves(
        self,
        heading: str,
        curves: Sequence[Curve],
        x_label: str,
        y_label: str,
        log_x: bool = False,
        log_y: bool = False,
        note: str = "",
        levels: Mapping[str, float] | None = None,
    ) -> None:
        """A chart; `levels` are labelled horizontal lines, such as the score of the teacher."""
        levels = levels or {}
        if not curves:
            raise ValueError(f"chart {heading!r} has no curve; give at least one")
        if log_x and any(x <= 0 for c in curves for x in c.x):
            raise ValueError(f"chart {heading!r}: log_x needs every x above 0")
        if log_y and any(y <= 0 for ys in (levels.values(), *(c.y for c in curves)) for y in ys):
            raise ValueError(f"chart {heading!r}: log_y needs every y and every level above 0")
        names = ", ".join([*(c.label for c in curves), *levels])
        alt = escape(f"Chart of {y_label} against {x_label}: {names}.")
        charts = []
        for width, size in SIZES.items():
            # The salt keeps ids of different charts apart, and the same report the same file.
            svg = _svg(curves, x_label, y_label, log_x, log_y, levels, size, salt=f"{len(self._parts)} {width}")
            charts.append(f'<div class="chart {width}" role="img" aria-label="{alt}">{svg}</div>')
        few = [
            (c.label, _number(x), _number(y)) for c in curves if len(c.x) <= FEW for x, y in zip(c.x, c.y, strict=True)
        ]
        numbers = f"<details><summary>Numbers</summary>{_table(('', x_label, y_label), few)}</details>" if few else ""
        self._add(heading, "".join(charts) + _legend(curves, levels) + _note(note) + numbers)

    def compare(
        self, heading: str, before: "tuple[str, Picture]", after: "tuple[str, Picture]", note: str = ""
    ) -> None:
        """Two pictures of the same view under one slider (mouse, touch, keyboard); side by side where scripts are off."""
        pngs = [_png(before[1]), _png(after[1])]
        (w0, h0), (w, h) = map(_size, pngs)
        if abs(w0 * h / (w * h0) - 1) > 0.05:
            raise ValueError(f"a comparison needs pictures of one shape, got {w0}x{h0} and {w}x{h} (width x height)")
        width = w * max(1, 640 // w)
        sides = (
            f"<figure>{_img(png, label, width)}<figcaption>{escape(label)}</figcaption></figure>"
            for png, label in zip(pngs, (before[0], after[0]), strict=True)
        )
        name = escape(f"Share of the picture that shows {before[0]} instead of {after[0]}")
        slider = f'<input type="range" min="0" max="100" step="any" value="50" aria-label="{name}" hidden>'
        frame = f'<div class="view" style="--w:{width}px;--ratio:{w}/{h}">{"".join(sides)}</div>'
        self._add(heading, f'<div class="compare">{frame}{slider}</div>{_note(note)}')

    def gallery(self, heading: str, pictures: "Sequence[tuple[str, Picture]]", note: str = "", zoom: int = 1) -> None:
        """Labelled pictures in a row that wraps; `zoom` enlarges small crops by whole pixels."""
        figures = []
        for label, picture in pictures:
            png = _png(picture)
            width = _size(png)[0] * zoom
            figures.append(
                f'<figure style="--w:{width}px">{_img(png, label, width)}<figcaption>{escape(label)}</figcaption></figure>'
            )
        self._add(heading, f'<div class="gallery">{"".join(figures)}</div>{_note(note)}')

    def sounds(self, heading: str, sounds: Sequence[tuple[str, bytes]], note: str = "") -> None:
        """Labelled players in a row that wraps; each sound is the bytes of a wav file."""
        players = []
        for label, data in sounds:
            if not (data.startswith(b"RIFF") and data[8:12] == b"WAVE"):
                raise ValueError(f"sound {label!r} must be a wav file, got bytes that start with {data[:8]!r}")
            name, address = escape(label), f"data:audio/wav;base64,{base64.b64encode(data).decode()}"
            player = f'<audio controls preload="metadata" src="{address}" aria-label="{name}"></audio>'
            players.append(f'<figure style="--w:300px">{player}<figcaption>{name}</figcaption></figure>')
        self._add(heading, f'<div class="gallery">{"".join(players)}</div>{_note(note)}')

    def html(self) -> str:
        title, subtitle = (
            escape(self.title),
            f'<p class="subtitle">{escape(self.subtitle)}</p>' if self.subtitle else "",
        )
        return PAGE.format(
            title=title, subtitle=subtitle, css=CSS, js=JS, version=__version__, body="\n".join(self._parts)
        )

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the file, whole or not at all; a file already there is replaced."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as part:
            # A label may hold a file name that is not valid Unicode.
            part.write_text(self.html(), encoding="utf-8", errors="replace")
        return path

    def _add(self, heading: str, body: str) -> None:
        title = f"<h2>{escape(heading)}</h2>" if heading else ""
        self._parts.append(f"<section>{title}{body}</section>")


def _note(note: str) -> str:
    return f'<p class="note">{escape(note)}</p>' if note else ""


def _number(value: float) -> str:
    return f"{value:.5g}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], emphasise: int | None = None) -> str:
    lines = []
    for i, row in enumerate(rows):
        if len(row) != len(columns):
            raise ValueError(f"row {i} has {len(row)} cells, the table has {len(columns)} columns")
        first, *rest = map(escape, row)
        mark = ' class="emphasised"' if i == emphasise else ""
        lines.append(f'<tr{mark}><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>')
    head = "".join(f'<th scope="col">{escape(c)}</th>' for c in columns)
    # Focusable, so that a wide table scrolls by keyboard too.
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _png(picture: "Picture") -> bytes:
    if isinstance(picture, bytes):
        if not picture.startswith(b"\x89PNG\r\n\x1a\n"):
            raise ValueError(f"picture bytes must be a PNG file, got bytes that start with {picture[:8]!r}")
        return picture
    if picture.dtype != "uint8" or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"a picture is uint8 (H, W, 3) or PNG bytes, got {picture.dtype} {picture.shape}")
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="png")
    return file.getvalue()


def _size(png: bytes) -> tuple[int, int]:
    """(width, height) from the header, which every PNG file has first."""
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def _img(png: bytes, label: str, shown: int) -> str:
    width, height = _size(png)
    pixels = (
        ' class="pixels"' if shown > width else ""
    )  # Enlarged pixels stay pixels: a browser's blur would flatter them.
    data = base64.b64encode(png).decode()
    return f'<img{pixels} src="data:image/png;base64,{data}" alt="{escape(label)}" width="{width}" height="{height}" draggable="false">'


def _key(shape: str) -> str:
    return f'<li><svg class="key" width="32" height="14" aria-hidden="true">{shape}</svg>'


def _legend(curves: Sequence[Curve], levels: Mapping[str, float]) -> str:
    """Below the chart, where it wraps and can cover no line."""
    items = []
    for i, curve in enumerate(curves):
        line = '<path d="M2 7h28" stroke-width="2"/>' if curve.style == "line" else ""
        mark = list(MARKERS.values())[i % len(MARKERS)] if _marked(curve) else ""
        colour = COLOURS[i % len(COLOURS)]
        items.append(_key(f'<g stroke="{colour}" fill="{colour}">{line}{mark}</g>') + f"{escape(curve.label)}</li>")
    for i, (label, value) in enumerate(levels.items()):
        line = (
            f'<path d="M2 7h28" stroke="currentColor" stroke-width="1.5" stroke-dasharray="{DASHES[i % len(DASHES)]}"/>'
        )
        items.append(_key(line) + f"{escape(label)}: {_number(value)}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def _marked(curve: Curve) -> bool:
    return curve.style == "markers" or len(curve.x) <= FEW


def _svg(
    curves: Sequence[Curve],
    x_label: str,
    y_label: str,
    log_x: bool,
    log_y: bool,
    levels: Mapping[str, float],
    size: tuple[float, float],
    salt: str,
) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    # Text stays text, in the font of the page.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 11}):
        figure = Figure(figsize=size, layout="constrained")
        ax = figure.add_subplot()
        if log_x:
            ax.set_xscale("log")
        if log_y:
            ax.set_yscale("log")
        for i, curve in enumerate(curves):
            marked = _marked(curve)
            ax.plot(
                curve.x,
                curve.y,
                color=COLOURS[i % len(COLOURS)],
                linestyle="-" if curve.style == "line" else "",
                linewidth=2 if marked else 1.4,
                marker=list(MARKERS)[i % len(MARKERS)] if marked else "",
                markersize=6,
            )
        for i, value in enumerate(levels.values()):
            dashes = [float(d) for d in DASHES[i % len(DASHES)].split()]
            ax.axhline(value, color=INK, linewidth=1.2, linestyle=(0, dashes), zorder=1.5)
        _axes(ax, sorted({x for c in curves for x in c.x}), log_x, log_y)
        ax.set_xlabel(x_label, parse_math=False, color=INK)
        ax.set_title(
            y_label, parse_math=False, color=INK, loc="left", fontsize="medium"
        )  # level, above its axis: read without turning
        file = io.StringIO()
        nothing = dict.fromkeys(
            ("Creator", "Date", "Format", "Type")
        )  # It would hold addresses of vocabularies and a date.
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return re.sub(
        r'<g id="[^"]*"', "<g", svg
    )  # "axes_1" and such repeat from chart to chart, and nothing refers to them.


def _axes(ax: "Axes", xs: Sequence[float], log_x: bool, log_y: bool) -> None:
    from matplotlib.ticker import MaxNLocator, NullLocator

    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set(color=INK, alpha=0.4)
    ax.tick_params(which="both", color=INK, labelcolor=INK, length=0, pad=6)
    ax.grid(color=INK, alpha=0.12, linewidth=0.8)
    ax.set_axisbelow(True)
    whole = all(float(x).is_integer() for x in xs)
    if whole and len(xs) <= 10:
        ax.set_xticks(_apart(xs, log_x))
    else:
        ax.xaxis.set_major_locator(_log_ticks(*ax.get_xlim()) if log_x else MaxNLocator(7, integer=whole))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    if log_y:
        ax.yaxis.set_major_locator(_log_ticks(*ax.get_ylim()))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    else:
        ax.ticklabel_format(axis="y", useOffset=False)


def _log_ticks(low: float, high: float) -> "Locator":
    """Plain steps within a decade, 1-2-5 over a few, powers of ten beyond."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    if high < 10 * low:
        return MaxNLocator(6, steps=(1, 2, 5, 10))
    return LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,))


def _apart(xs: Sequence[float], log: bool) -> list[float]:
    """The x values (ascending) that can all be labelled: each at least 7% of the axis after the one before."""
    at = [math.log(x) if log else x for x in xs]
    kept = [0]
    for i in range(1, len(xs)):
        if at[i] - at[kept[-1]] >= 0.07 * (at[-1] - at[0]):
            kept.append(i)
    return [xs[i] for i in kept]


# No address can be loaded from this page: the policy allows what stands in the file, and nothing else.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{css}</style>
</head>
<body>
<header><h1>{title}</h1>{subtitle}</header>
<main>
{body}
</main>
<footer>made by fewstep {version}</footer>
<script>{js}</script>
</body>
</html>
"""

CSS = """
:root { --page: #fff; --ink: #1c2024; --soft: #5f6871; --line: #dfe3e7; --card: #f5f7f9; --accent: #0072b2; --tint: #e8f2f9 }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171a; --ink: #e6e9ec; --soft: #9aa4ae; --line: #30363c; --card: #1d2226; --accent: #56b4e9; --tint: #17303f }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1148px; padding: 56px 24px 32px; background: var(--page); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; overflow-wrap: break-word }
h1 { font-size: clamp(1.75rem, 5vw, 2.5rem); line-height: 1.2; letter-spacing: -.02em; margin: 0 }
h2 { font-size: 1.35rem; line-height: 1.3; letter-spacing: -.01em; margin: 0 0 16px }
p { margin: 0 0 12px; max-width: 72ch }
.subtitle { color: var(--soft); font-size: 1.125rem; margin: 8px 0 0 }
.note { color: var(--soft); font-size: .9rem; margin: 12px 0 0 }
section { margin-top: 56px }
header + main > section:first-child { margin-top: 40px }
section:not(:has(h2)) { margin-top: 32px }
footer { margin-top: 72px; padding-top: 16px; border-top: 1px solid var(--line); color: var(--soft); font-size: .85rem }
figure { margin: 0 }
img { display: block; width: 100%; height: auto }
audio { display: block; width: 100% }
.pixels { image-rendering: pixelated }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 3px }

.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 16px; margin: 0 }
.cards > div { display: flex; flex-direction: column; padding: 20px; background: var(--card); border-radius: 12px }
.cards .value { order: -1; margin: 0; font-size: 2rem; line-height: 1.25; font-weight: 650; letter-spacing: -.02em; color: var(--accent) }
.cards dt { margin-top: 4px; font-weight: 600 }
.cards .note { margin: 2px 0 0 }

.scroll { overflow-x: auto }
table { border-collapse: collapse; min-width: min(100%, 480px); font-variant-numeric: tabular-nums }
th, td { padding: 9px 20px 9px 12px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); font-weight: 400 }
th:first-child { text-align: left }
thead th { white-space: normal; color: var(--soft); font-size: .875rem; font-weight: 600; vertical-align: bottom }
.emphasised > * { background: var(--tint); font-weight: 650 }
.emphasised > :first-child { box-shadow: inset 3px 0 var(--accent) }

.chart svg { display: block; width: 100%; height: auto }
.chart text { font-family: inherit !important }
.narrow { display: none }
.legend { display: flex; flex-wrap: wrap; gap: 4px 28px; list-style: none; margin: 8px 0 0; padding: 0; font-size: .925rem }
.legend li { display: flex; align-items: center; gap: 8px }
.key { flex: none }
details { margin-top: 12px; font-size: .9rem }
summary { color: var(--soft); cursor: pointer; width: fit-content }

.gallery { display: flex; flex-wrap: wrap; gap: 20px }
.gallery figure { width: var(--w); max-width: 100% }
figcaption { margin-top: 6px; font-size: .9rem; line-height: 1.4 }

.view { display: flex; flex-wrap: wrap; gap: 20px }
.view figure { flex: 1 1 280px; max-width: var(--w) }
.live { width: fit-content; max-width: 100% }
.live .view { --at: 50%; display: block; position: relative; width: var(--w); max-width: 100%; aspect-ratio: var(--ratio);
  border-radius: 8px; overflow: hidden; cursor: ew-resize; touch-action: pan-y; user-select: none; -webkit-user-select: none }
.live figure { position: absolute; inset: 0; max-width: none }
.live figure + figure { clip-path: inset(0 0 0 var(--at)) }
.live img { height: 100% }
.live figcaption { position: absolute; left: 10px; bottom: 10px; max-width: calc(50% - 20px); margin: 0; padding: 2px 10px;
  border-radius: 6px; background: rgb(0 0 0 / .62); color: #fff; font-size: .85rem }
.live figure + figure figcaption { left: auto; right: 10px }
.live .view::after { content: ""; position: absolute; inset: 0 auto 0 calc(var(--at) - 1px); width: 2px; background: #fff;
  box-shadow: 0 0 3px rgb(0 0 0 / .8); pointer-events: none }
input[type=range] { width: 100%; margin: 10px 0 0; accent-color: var(--accent) }

@media (max-width: 860px) {
  body { padding: 32px 16px 24px }
  section { margin-top: 44px }
  .wide { display: none }
  .narrow { display: block; max-width: 520px }
  .cards { grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 12px }
  .cards > div { padding: 16px }
  .cards .value { font-size: 1.75rem }
  th, td { padding: 8px 10px 8px 8px }
}
@media (max-width: 480px) {
  .gallery { gap: 12px }
  .gallery figure:has(.pixels) { max-width: calc(50% - 6px) }
}
"""

JS = """
for (const box of document.querySelectorAll('.compare')) {
  const view = box.querySelector('.view'), slider = box.querySelector('input');
  const show = () => view.style.setProperty('--at', slider.value + '%');
  const drag = e => {
    if (e.type === 'pointermove' && !e.buttons) return;
    const r = view.getBoundingClientRect();
    slider.value = 100 * (e.clientX - r.left) / r.width;
    show();
  };
  slider.hidden = false;
  slider.addEventListener('input', show);
  view.addEventListener('pointerdown', e => { view.setPointerCapture(e.pointerId); drag(e); });
  view.addEventListener('pointermove', drag);
  box.classList.add('live');
}
"""
