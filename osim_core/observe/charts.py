"""Small SVG charts for the reports: drawn by matplotlib without a display, coloured by the page's style sheet.

Colours are written as placeholders and replaced by CSS variables, so one drawing serves a light and a dark page.
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

MAX_POINTS = 1500  # of a drawn line: more only makes the file larger
PALETTE_SIZE = 8
INK, MUTED = "#0f0f01", "#0f0f02"
SERIES = tuple(f"#0f0f1{index}" for index in range(PALETTE_SIZE))
STYLE = {
    "svg.fonttype": "none",  # text stays text, in the page's own font
    "svg.hashsalt": "osim",  # the same run gives the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": MUTED,
    "grid.alpha": 0.25,
}


@dataclass(frozen=True)
class Line:
    """One series. Non-finite points leave a gap. A noisy line is drawn faintly under its running mean."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]
    markers: bool = False
    noisy: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines over training steps; `references` are horizontal lines with a name (baselines)."""

    title: str
    unit: str
    lines: Sequence[Line]
    references: dict[str, float] = field(default_factory=dict)
    logarithmic: bool = False
    percent: bool = False


@dataclass(frozen=True)
class Bars:
    """Counts by category, stacked by series: {series: {category: value}}; categories in the order given."""

    title: str
    unit: str
    axis: str
    series: dict[str, dict[str, float]]
    categories: Sequence[str]


def bars_svg(bars: Bars) -> str:
    """The stacked bars as an `<svg>` element that fills the width of its container."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.2, 3.1), layout="constrained")
        axes = figure.subplots()
        below = [0.0] * len(bars.categories)
        for index, (name, values) in enumerate(bars.series.items()):
            heights = [values.get(category, 0.0) for category in bars.categories]
            color = SERIES[index] if index < PALETTE_SIZE else MUTED
            axes.bar(bars.categories, heights, bottom=below, color=color, label=name, width=0.8)
            below = [low + height for low, height in zip(below, heights, strict=True)]
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, "plain")))
        axes.set_xlabel(bars.axis)
        axes.set_ylabel(bars.unit)
        axes.grid(True, axis="y", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        if len(bars.series) > 1:
            axes.margins(y=0.2)  # room for the legend
            axes.legend(frameon=False, fontsize=8, ncols=min(3, len(bars.series)))
        return _rendered(figure)


def svg(chart: Chart) -> str:
    """The chart as an `<svg>` element that fills the width of its container."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.2, 3.1), layout="constrained")
        axes = figure.subplots()
        for index, line in enumerate(chart.lines):
            _draw(axes, line, SERIES[index] if index < PALETTE_SIZE else MUTED)
        for name, level in chart.references.items():
            axes.axhline(level, color=INK, linewidth=1, linestyle=(0, (4, 3)), alpha=0.7)
            axes.annotate(
                f"{name} {level:.3g}",
                (0.01, level),
                (0, 2),
                ("axes fraction", "data"),
                "offset points",
            )
        form = "percent" if chart.percent else "tiny" if axes.get_ylim()[1] < 0.01 else "plain"
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, form)))
        if chart.logarithmic and _decades(chart.lines) > 1:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        if chart.percent:
            axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel("step")
        axes.set_ylabel(chart.unit)
        axes.grid(True, axis="y", linewidth=0.6)
        axes.tick_params(length=0)
        if len(chart.lines) > 1:
            axes.legend(frameon=False, fontsize=8, ncols=min(3, len(chart.lines)))
        return _rendered(figure)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Exponential mean with a horizon of `window` points, corrected for its start; passes over non-finite points."""
    mean, weight, out = 0.0, 0.0, []
    decay = 1 - 1 / window
    for value in values:
        if math.isfinite(value):
            mean = decay * mean + (1 - decay) * value
            weight = decay * weight + (1 - decay)
        out.append(mean / weight if weight else math.nan)
    return out


def _draw(axes, line: Line, color: str) -> None:
    steps, values = list(line.steps), [v if math.isfinite(v) else math.nan for v in line.values]
    stride = math.ceil(len(steps) / MAX_POINTS) or 1
    marker = "o" if line.markers or len(steps) == 1 else None
    if line.noisy and len(steps) > 20:
        axes.plot(steps[::stride], values[::stride], color=color, linewidth=0.8, alpha=0.3)
        values = running_mean(values, window=max(5, len(values) // 40))
    axes.plot(
        steps[::stride],
        values[::stride],
        color=color,
        linewidth=1.6,
        marker=marker,
        markersize=3.5,
        label=line.name,
    )


def _decades(lines: Sequence[Line]) -> float:
    """Powers of ten between the smallest and the largest finite value; 0 where some value is not positive."""
    values = [value for line in lines for value in line.values if math.isfinite(value)]
    return math.log10(max(values) / min(values)) if values and min(values) > 0 else 0.0


def _tick(value: float, form: str) -> str:
    if form == "percent":
        return f"{value * 100:.3g} %"
    if form == "tiny" and value:
        digits, exponent = f"{value:.2e}".split("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _rendered(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for placeholder, variable in (
        (INK, "ink"),
        (MUTED, "muted"),
        *((c, f"series-{i}") for i, c in enumerate(SERIES)),
    ):
        text = text.replace(placeholder, f"var(--{variable})")
    return text
