"""What was found, as pictures and as single HTML files that open without a network."""

from costmodel.report.curves import curves_figure, reliability_figure, risk_coverage_figure, write_png
from costmodel.report.gated import gate_html
from costmodel.report.measured import measured_html
from costmodel.report.page import write_html
from costmodel.report.replayed import (
    CLAIM_HEADINGS,
    claim_cells,
    replay_html,
    space_note,
    summary_cells,
    summary_headings,
)
from costmodel.report.tuned import tuned_html

__all__ = [
    "CLAIM_HEADINGS",
    "claim_cells",
    "curves_figure",
    "gate_html",
    "measured_html",
    "reliability_figure",
    "replay_html",
    "risk_coverage_figure",
    "space_note",
    "summary_cells",
    "summary_headings",
    "tuned_html",
    "write_html",
    "write_png",
]
