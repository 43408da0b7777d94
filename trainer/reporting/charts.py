"""Charts as inline SVG, without scripts and styles of their own.

Colours and line styles are classes of the page's style sheet. Sizes are in pixels of the view box; a chart is drawn
once for a wide page and once for a narrow one, so that its text has the same size on both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

Point = tuple[float, float]
LABEL_GAP = 15  # least pixels between the labels at the ends of lines
TICKS = 7


@dataclass(frozen=True)
class Series:
    """A line of a chart; `kind` is its class in the style sheet, `band` (x, low, high) an interval around it."""

    name: str
    points: Sequence[Point]
    kind: str
    markers: bool = True
    band: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True)
class Axes:
    """Labels, ticks and scales of the axes, and a vertical line (`mark`) with its label."""

    x_label: str
    y_label: str
    x_ticks: Sequence[tuple[float, str]]
    log_x: bool = False
    mark: tuple[float, str] | None = None
    from_zero: bool = False
    decimals: int = 2


@dataclass
class Frame:
    """The size of a chart, the functions that map values to pixels, and the elements drawn so far."""

    width: int
    height: int
    x: Callable[[float], float]
    y: Callable[[float], float]
    left: int
    right: int
    top: int
    bottom: int
    parts: list[Markup] = field(default_factory=list)


def element(tag: str, *content: str | Markup, **attributes: object) -> Markup:
    """Return an element with escaped text and values; in names `_` becomes `-`, and `kind` becomes `class`."""
    names = {"kind": "class"}
    written = Markup("").join(
        Markup(' {}="{}"').format(names.get(name, name.replace("_", "-")), _number(value))
        for name, value in attributes.items()
        if value is not None
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(tag), written, Markup("").join(content))


def _number(value: object) -> object:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value


def svg(width: int, height: float, title: str, parts: Sequence[Markup], kind: str) -> Markup:
    """Return a drawing with its title for screen readers."""
    head = element("title", title)
    return element("svg", head, *parts, viewBox=f"0 0 {width} {height:.0f}", role="img", kind=f"chart {kind}")


def both(draw: Callable[[int, str], Markup]) -> Markup:
    """Return a chart drawn twice, for a wide and a narrow page; the style sheet shows one of them."""
    return Markup("").join((draw(680, "wide"), draw(358, "narrow")))


def line_chart(series: Sequence[Series], axes: Axes, title: str, height: int = 280) -> Markup:
    """Return a chart of lines with markers, and labels at their ends."""
    return both(lambda width, kind: _line_chart(series, axes, title, width, height if width > 400 else 250, kind))


def _line_chart(series: Sequence[Series], axes: Axes, title: str, width: int, height: int, kind: str) -> Markup:
    frame = _frame(series, axes, width, height)
    _draw_axes(frame, series, axes)
    for one in series:
        if one.band:
            upper = [(frame.x(x), frame.y(high)) for x, _, high in one.band]
            lower = [(frame.x(x), frame.y(low)) for x, low, _ in reversed(one.band)]
            frame.parts.append(element("polygon", points=_joined([*upper, *lower]), kind=f"band {one.kind}"))
    for one in series:
        points = [(frame.x(x), frame.y(y)) for x, y in one.points]
        frame.parts.append(element("polyline", points=_joined(points), kind=f"line {one.kind}"))
        if one.markers:
            frame.parts += [element("circle", cx=x, cy=y, r=3.5, kind=f"dot {one.kind}") for x, y in points]
    _label_ends(frame, series)
    return svg(width, height, title, frame.parts, kind)


def _frame(series: Sequence[Series], axes: Axes, width: int, height: int) -> Frame:
    """Return the frame: x fits the points, y fits points and bands with a margin of 8 %."""
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points]
    ys += [value for one in series for _, low, high in one.band for value in (low, high)]
    low, high = (0.0 if axes.from_zero else min(ys)), max(ys)
    room = (high - low or abs(high) or 1.0) * 0.08
    low, high = (low if axes.from_zero else low - room), high + room
    scale = (lambda x: math.log2(max(x, 1e-9))) if axes.log_x else float
    first, last = scale(min(xs)), scale(max(xs))
    names = max((len(one.name) for one in series), default=0)
    left, right, top, bottom = 52, width - min(int(names * 6.8) + 16, width // 3), 26, height - 44

    def to_pixel(x: float) -> float:
        return left + (scale(x) - first) / ((last - first) or 1.0) * (right - left)

    return Frame(
        width, height, to_pixel, lambda y: bottom - (y - low) / (high - low) * (bottom - top), left, right, top, bottom
    )


def _draw_axes(frame: Frame, series: Sequence[Series], axes: Axes) -> None:
    ticks = nice_ticks(*_range(frame))
    steps = [next_one - one for one, next_one in zip(ticks, ticks[1:], strict=False)]
    decimals = max(axes.decimals, math.ceil(-math.log10(min(steps)) - 1e-9)) if steps else axes.decimals
    for value in ticks:
        y = frame.y(value)
        label = f"{value:.{decimals}f}"
        frame.parts.append(element("line", x1=frame.left, x2=frame.right, y1=y, y2=y, kind="grid"))
        frame.parts.append(element("text", label, x=frame.left - 8, y=y + 4, text_anchor="end", kind="tick"))
    last = -math.inf
    for value, label in axes.x_ticks:
        x = frame.x(value)
        if x - last >= 7 * len(label) + 10:  # labels that would touch are left out
            frame.parts.append(element("text", label, x=x, y=frame.bottom + 18, text_anchor="middle", kind="tick"))
            last = x
    frame.parts.append(element("text", axes.y_label, x=4.0, y=14.0, kind="axis"))
    middle = (frame.left + frame.right) / 2
    frame.parts.append(element("text", axes.x_label, x=middle, y=frame.height - 6.0, text_anchor="middle", kind="axis"))
    if axes.mark:
        x, anchor = frame.x(axes.mark[0]), "end" if frame.x(axes.mark[0]) > middle else "start"
        side = -6 if anchor == "end" else 6
        frame.parts.append(element("line", x1=x, x2=x, y1=frame.top, y2=frame.bottom, kind="mark"))
        text = element("text", axes.mark[1], x=x + side, y=frame.bottom - 6.0, text_anchor=anchor, kind="note")
        frame.parts.append(text)


def _range(frame: Frame) -> tuple[float, float]:
    """Return the values of y at the bottom and at the top, computed from two points of the linear scale."""
    at_0, at_1 = frame.y(0.0), frame.y(1.0)
    return ((frame.bottom - at_0) / (at_1 - at_0), (frame.top - at_0) / (at_1 - at_0))


def nice_ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """Return about `count` round values between two numbers."""
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _label_ends(frame: Frame, series: Sequence[Series]) -> None:
    """Write each name next to the end of its line, with at least LABEL_GAP between two names."""
    ends = sorted(((frame.y(one.points[-1][1]) + 4, one) for one in series), key=lambda end: end[0])
    lowest = -math.inf
    spread = []
    for y, one in ends:
        lowest = max(y, lowest + LABEL_GAP)
        spread.append((lowest, one))
    over = max(0.0, lowest - frame.bottom)
    for y, one in spread:
        x = frame.x(one.points[-1][0]) + 10
        frame.parts.append(element("text", one.name, x=x, y=y - over, kind=f"name {one.kind}"))


def _joined(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


@dataclass(frozen=True)
class Difference:
    """A difference with its 95 % interval."""

    name: str
    value: float
    low: float
    high: float


def forest(rows: Sequence[Difference], title: str) -> Markup:
    """Return a forest plot: a line and a dot for each difference with its interval, filled if 0 is outside of it."""
    return both(lambda width, kind: _forest(rows, title, width, kind))


def _forest(rows: Sequence[Difference], title: str, width: int, kind: str) -> Markup:
    wide = width > 400
    left, right, step = (170 if wide else 12), width - 14, (32 if wide else 52)
    low, high = min(0.0, *(row.low for row in rows)), max(0.0, *(row.high for row in rows))
    room = (high - low or 1.0) * 0.06
    low, high = low - room, high + room

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    bottom = step * len(rows) + 8
    parts = [element("line", x1=x(0), x2=x(0), y1=4, y2=bottom, kind="zero")]
    for number, row in enumerate(rows):
        y = step * number + (22 if wide else 36)
        direction = "gain" if row.low > 0 else "loss" if row.high < 0 else "same"
        label = f"{row.name} {sign(row.value)}"
        parts += [
            element("text", label, x=0, y=y + 4 if wide else y - 14, kind="tick"),
            element("line", x1=x(row.low), x2=x(row.high), y1=y, y2=y, kind=f"line {direction}"),
            *(
                element("line", x1=x(e), x2=x(e), y1=y - 4, y2=y + 4, kind=f"line {direction}")
                for e in (row.low, row.high)
            ),
            element(
                "circle", cx=x(row.value), cy=y, r=4.5, kind=f"{'dot' if direction != 'same' else 'ring'} {direction}"
            ),
        ]
    for value in nice_ticks(low, high, 4):
        parts.append(element("text", sign(value), x=x(value), y=bottom + 18, text_anchor="middle", kind="tick"))
    return svg(width, bottom + 26, title, parts, kind)


def sorted_bars(values: Sequence[float], title: str) -> Markup:
    """Return a bar chart of the values, the lowest first; of too many, an evenly spaced sample."""
    return both(lambda width, kind: _sorted_bars(values, title, width, kind))


def _sorted_bars(values: Sequence[float], title: str, width: int, kind: str, height: int = 120) -> Markup:
    ordered, count = sorted(values), min(len(values), width // 2)
    shown = [ordered[round(number * (len(ordered) - 1) / max(1, count - 1))] for number in range(count)]
    low, high = min(0.0, *shown), max(0.0, *shown)
    scale, step = (height - 8) / ((high - low) or 1.0), width / max(1, count)
    zero = 4 + high * scale
    parts = [
        element(
            "rect",
            x=number * step,
            width=max(0.5, step * 0.8),
            y=zero - max(0.0, value) * scale,
            height=max(0.5, abs(value) * scale),
            kind="bar gain" if value > 0 else "bar loss",
        )
        for number, value in enumerate(shown)
        if value
    ]
    parts.append(element("line", x1=0, x2=width, y1=zero, y2=zero, kind="zero"))
    return svg(width, height, title, parts, kind)


def sign(value: float, decimals: int = 3) -> str:
    """Return a difference with its sign, without one if it rounds to 0."""
    text = f"{abs(value):.{decimals}f}"
    if not float(text):
        return text
    return f"+{text}" if value > 0 else f"−{text}"
