"""The parts of a report page: one self-contained HTML file that needs no network. Used by every report."""

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

STYLE = Path(__file__).with_name("report.css")


def document(title: str, parts: Iterable[str]) -> str:
    """The whole page; `parts` are HTML."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE.read_text()}</style></head>'
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def heading(name: str, run: Path, sentence: str) -> str:
    """What the page is about, and what came of it in one sentence."""
    return (
        f'<h1>{html.escape(name)}</h1><p class="run">{html.escape(run.parent.name)} / {html.escape(run.name)}</p>'
        f'<p class="outcome">{html.escape(sentence)}</p>'
    )


def tiles(figures: Iterable[tuple[str, str]]) -> str:
    """(label, value) of the numbers at the top of the page."""
    each = (f"<div><b>{html.escape(value)}</b><span>{html.escape(label)}</span></div>" for label, value in figures)
    return f'<section class="figures">{"".join(each)}</section>'


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Numbers on the right of a first column of names; "" where there are no rows."""
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(text(v))}</td>' for v in row)}</tr>" for row in rows)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in (title, *columns))
    return f'<table class="numbers"><tr>{head}</tr>{body}</table>' if body else ""


def details(title: str, values: dict[str, Any], is_open: bool = False) -> str:
    """A section to fold: a small two-column table for the plain values, and one for each nested dict."""
    plain = {key: value for key, value in values.items() if not (isinstance(value, dict) and value)}
    nested = {key: value for key, value in values.items() if key not in plain}
    tables = []
    for name, pairs in {"run": plain, **nested}.items():
        rows = (f"<tr><td>{html.escape(k)}</td><td>{html.escape(text(v))}</td></tr>" for k, v in pairs.items())
        tables.append(f'<table><tr><th colspan="2">{html.escape(name)}</th></tr>{"".join(rows)}</table>')
    opened = " open" if is_open else ""
    return (
        f'<details{opened}><summary>{html.escape(title)}</summary><div class="tables">{"".join(tables)}</div></details>'
    )


def text(value: Any) -> str:
    """A value as a person reads it."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) else str(value if value not in ([], {}) else "-")
