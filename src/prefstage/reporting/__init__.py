"""What runs found, as one self-contained HTML page and as figures for papers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefstage.reporting.checkup import DoctorConfig, DoctorSettings, doctor
    from prefstage.reporting.report import Report, make_report, write_report

_MODULES = {
    "checkup": ("DoctorConfig", "DoctorSettings", "doctor"),
    "report": ("Report", "make_report", "write_report"),
}

__all__ = [
    "DoctorConfig",
    "DoctorSettings",
    "Report",
    "doctor",
    "make_report",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Import on first use: settings alone load neither templates nor tables."""
    module = next((module for module, names in _MODULES.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module 'prefstage.reporting' has no attribute {name!r}")
    return getattr(import_module(f"prefstage.reporting.{module}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return list(__all__)
