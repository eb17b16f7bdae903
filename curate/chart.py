"""The few kinds of chart that the card uses, each a panel with title and note, and how a chart becomes a file."""

from __future__ import annotations

import json
import math
import re
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from curate.distribution import percentile
from curate.units import short_number

if TYPE_CHECKING:
    import altair as alt

    type Panel = alt.Chart | alt.LayerChart | alt.FacetChart

INK = "#22303c"
MUTED = "#5d6b77"
GRID = "#e3e8ec"
BLUE = "#2f6fb2"
BAND = "#9cc3e6"
PALETTE = ("#2f6fb2", "#e07b39", "#3a9d6e", "#b0457b", "#8a6fc1", "#c9a227", "#5f7d8c", "#d1495b")
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
WIDTH = 860  # of a picture, in CSS pixels: the card's on the Hub
HEIGHT = 220  # of a panel's plot
BAR_HEIGHT = 32
MARGIN = 62  # left of a panel's plot, for its axis
GAP = 24
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
SCALE = 2  # for dense screens
TIME_TICKS_S = (1e-3, 1e-2, 0.1, 1, 10, 60, 600, 3600, 6 * 3600, 86400, 7 * 86400)
PLAIN_NUMBER = "datum.value === 0 ? '0' : format(datum.value, '~s')"
POINTS = 160  # of a distribution's line
TICK_WIDTH = 0.17  # of a panel: the text of a tick
_VEGA_IDS = re.compile(r"(id=\"|url\(#)(clip)(\d+)")
LABEL_WIDTH = 0.07  # of a panel: a label of two digits and the space around it


def side_by_side(panels: Sequence[Panel]) -> alt.HConcatChart:
    """One picture of some panels, each as wide as fits the card."""
    import altair as alt

    width = (WIDTH - GAP * (len(panels) - 1)) / len(panels) - MARGIN
    picture: alt.HConcatChart = (
        alt.hconcat(*(panel.properties(width=width) for panel in panels), spacing=GAP)
        .resolve_scale(color="independent", strokeDash="independent", x="independent", y="independent")
        .configure(background="white", font=FONT, padding=8)
        .configure_view(stroke=None)
        .configure_axis(
            domainColor=MUTED,
            gridColor=GRID,
            tickColor=MUTED,
            labelColor=INK,
            labelFontSize=12,
            titleColor=MUTED,
            titleFontSize=12,
            titleFontWeight="normal",
        )
        .configure_title(
            anchor="start", color=INK, fontSize=15, subtitleColor=MUTED, subtitleFontSize=12, offset=12, frame="bounds"
        )
        .configure_legend(
            labelColor=INK, labelFontSize=12, labelLimit=0, titleColor=MUTED, titleFontSize=12, titleFontWeight="normal"
        )
        .configure_axisY(domain=False, ticks=False)
    )
    return picture


def _data(rows: list[dict[str, Any]]) -> Any:
    """Rows as tab-separated text: altair checks each value of anything else against its schema, for seconds."""
    import altair as alt

    names = list(rows[0]) if rows else []
    lines = ["\t".join(names), *("\t".join(_field(row[name]) for name in names) for row in rows)]
    return alt.InlineData(values="\n".join(lines), format=alt.CsvDataFormat(type="tsv"))


def _field(value: Any) -> str:
    return re.sub(r'[\t\n\r"]', " ", str(value))


def _title(title: str, note: str) -> Any:
    import altair as alt

    return alt.TitleParams(text=title, subtitle=note)


def _labels(ticks: Mapping[float, str]) -> str:
    """A Vega expression that gives each tick its text."""
    expression = "''"
    for at, text in ticks.items():
        expression = f"abs(datum.value - ({at!r})) < 1e-6 ? {json.dumps(text, ensure_ascii=False)} : {expression}"
    return expression


def _axis(ticks: Mapping[float, str], title: str, **more: Any) -> Any:
    import altair as alt

    return alt.Axis(values=list(ticks), labelExpr=_labels(ticks), title=title or None, labelOverlap=True, **more)


def _log_ticks(low: float, high: float, label: Callable[[float], str], ticks: Sequence[float]) -> dict[float, str]:
    """Positions and texts on a logarithmic axis: round numbers, few enough to be read."""
    inside = [tick for tick in ticks if low <= tick <= high]
    if not ticks:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        steps = (1,) if last - first > 3 else (1, 3) if last - first > 2 else (1, 2, 5)
        inside = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        inside = [tick for tick in inside if low <= tick <= high]
    chosen: list[float] = []
    for tick in inside:
        if not chosen or math.log10(tick / chosen[-1]) >= TICK_WIDTH * math.log10(high / low):
            chosen.append(tick)
    return {math.log10(tick): label(tick) for tick in chosen or [low]}


def distribution_lines(
    title: str,
    note: str,
    lines: Mapping[str, np.ndarray],
    *,
    of: str,
    axis: str,
    label: Callable[[float], str],
    ticks: Sequence[float] = (),
    shortest: float = 1.0,
    linear: bool = False,
    dashed: Sequence[str] = (),
) -> alt.Chart:
    """Distribution functions of sorted values: the share of rows up to each value. The legend tells medians.

    Lines that may lie on another are dashed.
    """
    import altair as alt

    low = min(float(values[0]) for values in lines.values())
    high = max(float(values[-1]) for values in lines.values())
    if not linear:
        low = max(shortest, low)
        high = max(high, 2 * low)
    rows = []
    names: list[str] = []
    strokes = [[6, 3] if name in dashed else [1, 0] for name in lines]
    for name, values in lines.items():
        names.append(_field(f"{name}: {label(percentile(values, 50))} ({len(values):,})"))
        shares = np.unique(np.concatenate([[0.0], np.linspace(0, 1, POINTS), [0.99, 0.995, 0.999, 1.0]]))
        for share in shares:
            value = values[min(len(values) - 1, max(0, math.ceil(share * len(values)) - 1))]
            # A logarithmic axis has no zero: what is smaller stands at its left end.
            at = float(value) if linear else math.log10(max(float(value), low))
            rows.append({"x": round(at, 4), "y": round(float(share), 4), "of": names[-1]})
    if linear:
        places = {tick: label(tick) for tick in ticks}
        domain = [0.0, 1.0]
    else:
        places = _log_ticks(low, high, label, ticks)
        domain = [math.log10(low), math.log10(high)]
    shown = {0.0: "0", 0.25: "25 %", 0.5: "50 %", 0.75: "75 %", 1.0: "100 %"}
    panel: alt.Chart = (
        alt.Chart(_data(rows), title=_title(title, note))
        .mark_line(interpolate="step-after", strokeWidth=2, clip=True)
        .encode(
            x=alt.X("x:Q", scale=alt.Scale(domain=domain, nice=False), axis=_axis(places, axis)),
            y=alt.Y("y:Q", scale=alt.Scale(domain=[0, 1.04], nice=False), axis=_axis(shown, f"share of {of}")),
            color=alt.Color(
                "of:N",
                sort=names,
                scale=alt.Scale(domain=names, range=list(PALETTE[: len(names)])),
                legend=alt.Legend(
                    title="median (number)",
                    orient="bottom",
                    direction="vertical",
                    columns=1,
                    symbolType="stroke",
                    symbolStrokeWidth=3,
                    offset=8,
                ),
            ),
            strokeDash=alt.StrokeDash("of:N", scale=alt.Scale(domain=names, range=strokes), legend=None),
            order="y:Q",
        )
        .properties(height=HEIGHT)
    )
    return panel


def growth_lines(
    title: str,
    note: str,
    *,
    lines: Sequence[tuple[Sequence[float], Sequence[float]]],
    turns: Sequence[float],
    band: tuple[Sequence[float], Sequence[float]] | None,
    median: Sequence[float],
) -> Panel:
    """Thin lines of single sessions, and over them the median with its band."""
    import altair as alt

    single = [
        {"turn": turn, "tokens": tokens, "line": number}
        for number, (places, values) in enumerate(lines)
        for turn, tokens in zip(places, values, strict=True)
    ]
    x = alt.X(
        "turn:Q",
        axis=alt.Axis(title="turn of the main chain", labelExpr=PLAIN_NUMBER, grid=False, tickCount=6, tickMinStep=1),
    )
    most = max((row["tokens"] for row in single), default=1)
    # As much room above as the other panels have, so that the titles stand in one line.
    scale = alt.Scale(domain=[0, most * 1.05], nice=False)
    y = alt.Y("tokens:Q", scale=scale, axis=alt.Axis(title="prompt tokens", labelExpr=PLAIN_NUMBER, tickCount=5))
    key = alt.Color(
        "what:N",
        scale=alt.Scale(domain=["median", "middle 80 %", "single sessions"], range=[BLUE, "#c3dcf1", BAND]),
        legend=alt.Legend(
            orient="bottom", direction="horizontal", symbolType="stroke", symbolStrokeWidth=3, offset=8, title=None
        ),
    )
    layers = [
        alt.Chart(_data([{**row, "what": "single sessions"} for row in single]))
        .mark_line(strokeWidth=0.7, opacity=0.75)
        .encode(x=x, y=y, detail="line:N", color=key)
    ]
    if band is not None:
        layers.append(
            alt.Chart(
                _data(
                    [
                        {"turn": turn, "tokens": low, "high": high, "what": "middle 80 %"}
                        for turn, low, high in zip(turns, *band, strict=True)
                    ]
                )
            )
            .mark_area(opacity=0.5)
            .encode(x="turn:Q", y="tokens:Q", y2="high:Q", color=key)
        )
    layers.append(
        alt.Chart(
            _data([{"turn": turn, "tokens": at, "what": "median"} for turn, at in zip(turns, median, strict=True)])
        )
        .mark_line(strokeWidth=2.5, point=len(turns) == 1)
        .encode(x="turn:Q", y="tokens:Q", color=key)
    )
    return alt.layer(*layers, title=_title(title, note), height=HEIGHT)


def log_histogram(
    title: str, note: str, values: np.ndarray, *, color: str, marks: Sequence[tuple[float, int]]
) -> Panel:
    """A histogram of sorted values on a logarithmic axis, eight bins per decade, with some percentiles marked."""
    import altair as alt

    positive = values[values > 0]
    zeros = len(values) - len(positive)
    # Eight bins per decade; fewer would hide modes, more would show whole numbers at the low end.
    first = math.floor(math.log10(positive[0]) * 8)
    last = math.floor(math.log10(positive[-1]) * 8) + 1
    counts, _ = np.histogram(positive, bins=[10 ** (step / 8) for step in range(first, last + 1)])
    rows = [
        {"x": (first + at) / 8, "x2": (first + at + 1) / 8, "foot": 0, "n": int(n)}
        for at, n in enumerate(counts.tolist())
        if n
    ]
    low, high = first / 8, last / 8
    places = _log_ticks(10**low, 10**high, short_number, ())
    top = max(int(counts.max()), 1) * 1.16
    found = [(at, p) for at, p in marks if at > 0]
    rules = [{"at": round(math.log10(at), 4), "foot": 0, "top": top * 0.93} for at, _ in found]
    texts = [
        {"at": round(math.log10(at), 4), "top": top * 0.94, "text": text}
        for at, text in mark_labels(found, LABEL_WIDTH * (high - low))
    ]
    said = " · ".join(f"p{p} {short_number(at)}" for at, p in marks)
    x = alt.X(
        "x:Q",
        scale=alt.Scale(domain=[low, high], nice=False),
        axis=_axis(places, "tokens" + (f" ({zeros:,} of {len(values):,} are 0 or less)" if zeros else "")),
    )
    y = alt.Y(
        "n:Q",
        scale=alt.Scale(domain=[0, top], nice=False),
        axis=alt.Axis(title="requests", labelExpr=PLAIN_NUMBER, tickCount=5, tickMinStep=1),
    )
    return alt.layer(
        alt.Chart(_data(rows))
        .mark_rect(color=color, opacity=0.8, stroke="white", strokeWidth=0.6)
        .encode(x=x, x2="x2:Q", y=y, y2="foot:Q"),
        alt.Chart(_data(rules)).mark_rule(color=INK, strokeDash=[4, 2]).encode(x="at:Q", y="foot:Q", y2="top:Q"),
        alt.Chart(_data(texts))
        .mark_text(baseline="bottom", fontSize=11, color=INK)
        .encode(x="at:Q", y="top:Q", text="text:N"),
        title=alt.TitleParams(text=title, subtitle=[said, note]),
        height=HEIGHT,
    )


def mark_labels(marks: Sequence[tuple[float, int]], width: float) -> list[tuple[float, str]]:
    """Where to write which percentiles: those closer than `width` decades share a label, between them."""
    groups: list[list[tuple[float, int]]] = []
    for mark in marks:
        if groups and math.log10(mark[0] / groups[-1][-1][0]) < width:
            groups[-1].append(mark)
        else:
            groups.append([mark])
    return [(math.sqrt(group[0][0] * group[-1][0]), ", ".join(str(p) for _, p in group)) for group in groups]


def bars(
    title: str,
    note: str,
    values: Mapping[str, float],
    *,
    label: Callable[[float], str],
    color: str = BLUE,
    longest: float | None = None,
) -> Panel:
    """Horizontal bars in the order given, each with its value."""
    import altair as alt

    names = [_field(name) for name in values]
    rows = [{"name": name, "value": value, "text": label(value)} for name, value in values.items()]
    most = longest or max(values.values()) or 1
    y = alt.Y(
        "name:N",
        sort=names,
        axis=alt.Axis(title=None, labelLimit=160, labelPadding=6),
        scale=alt.Scale(paddingInner=0.3, paddingOuter=0.2),
    )
    base = alt.Chart(_data(rows), title=_title(title, note))
    return alt.layer(
        base.mark_bar(color=color, opacity=0.85).encode(
            y=y, x=alt.X("value:Q", axis=None, scale=alt.Scale(domain=[0, most * 1.25], nice=False))
        ),
        base.mark_text(align="left", dx=5, fontSize=12, color=INK).encode(y=y, x="value:Q", text="text:N"),
        height=min(HEIGHT, BAR_HEIGHT * len(names)),
    )


def to_svg(chart: alt.HConcatChart) -> str:
    """The chart as SVG, text as text."""
    import vl_convert

    svg: str = vl_convert.vegalite_to_svg(chart.to_json(indent=None))
    # Vega numbers them over the life of the process: numbered by the picture, the same picture is the same bytes.
    numbers: dict[str, int] = {}
    return _VEGA_IDS.sub(lambda found: f"{found[1]}{found[2]}{numbers.setdefault(found[3], len(numbers))}", svg)


def to_png(svg: str) -> bytes:
    """An SVG of `to_svg` as PNG, twice as many pixels as CSS ones; nothing inside but the picture."""
    import vl_convert

    return repacked(vl_convert.svg_to_png(svg, scale=SCALE))


def repacked(png: bytes) -> bytes:
    """The same pixels in a third of the bytes: vl-convert compresses for speed.

    Format: W3C PNG, third edition. Only the image data are packed again; the chunk of the resolution is left out.
    """
    head, data, at = b"", b"", len(PNG_MAGIC)
    while at < len(png):
        length = int.from_bytes(png[at : at + 4])
        kind, body = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            head = body
        elif kind == b"IDAT":
            data += body
        at += 12 + length
    packed = zlib.compress(zlib.decompress(data), 9)
    return PNG_MAGIC + b"".join(
        _chunk(kind, body) for kind, body in ((b"IHDR", head), (b"IDAT", packed), (b"IEND", b""))
    )


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
