"""What runs found, as one self-contained HTML page and as figures for papers."""

from typing import TYPE_CHECKING

from prefstage.core.exports import on_first_use

if TYPE_CHECKING:
    from prefstage.reporting.checkup import DoctorConfig, DoctorSettings, doctor
    from prefstage.reporting.report import Report, make_report, write_report

__all__ = [
    "DoctorConfig",
    "DoctorSettings",
    "Report",
    "doctor",
    "make_report",
    "write_report",
]

# Import on first use: settings alone load neither templates nor tables.
__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "checkup": "DoctorConfig DoctorSettings doctor",
        "report": "Report make_report write_report",
    },
)
