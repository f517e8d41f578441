# Public names, each imported on first use (read by lazy_loader in __init__.py).
from .checkup import (
    DoctorConfig as DoctorConfig,
    DoctorSettings as DoctorSettings,
    doctor as doctor,
)
from .report import Report as Report, make_report as make_report, write_report as write_report
