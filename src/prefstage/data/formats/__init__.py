"""Every format that is recognised unaided, in the order in which they are tried."""

from prefstage.data.formats.base import Format, Row
from prefstage.data.formats.compared import COMPARED
from prefstage.data.formats.listed import LISTED
from prefstage.data.formats.paired import PAIRED

FORMATS: tuple[Format, ...] = (*PAIRED, *COMPARED, *LISTED)

__all__ = ["FORMATS", "Format", "Row"]
