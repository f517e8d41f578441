"""What runs found, as one self-contained HTML page and as figures for papers."""

from prefstage.reporting.report import write_report

__all__ = ["write_report"]
