"""A report with nothing but a viewer and curves."""

from __future__ import annotations

from collections.abc import Sequence

from sharding.io.page import Picture, _environment

PAGE = """\
{% extends "distsynth.reporting/report.html" %}
{% from "distsynth.reporting/sections.html" import pictures_section, slices_section %}
{% block sections %}
{{ slices_section(viewer, "Note") }}
{{ pictures_section("Training", curves) }}
{% endblock %}
"""


def report_page(title: str, viewer: str, curves: Sequence[Picture] = ()) -> str:
    """The page, with its script and its style."""
    return _environment().from_string(PAGE).render(title=title, viewer=viewer, curves=curves)
