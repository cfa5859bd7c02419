"""Markdown text from the jinja2 templates of this package: Python computes numbers, templates hold sentences."""

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from analysis import tables


def render(template: str, **data: Any) -> str:
    """Return the text of a template of `analysis/templates`, with single blank lines between its parts."""
    text = _environment().get_template(template).render(data)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        autoescape=False,  # the text is Markdown, not HTML
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for function in (
        tables.percent, tables.points, tables.points_interval, tables.number, tables.count, tables.thousands,
        tables.duration, tables.described, tables.listed, tables.markdown,
        tables.estimate_percent,
    ):  # fmt: skip
        environment.filters[function.__name__] = function
    return environment
