"""Every format that is recognised unaided, in the order in which they are tried.

`FORMATS` hold preferences. Labelled responses (`UNPAIRED`) and `CONVERSATIONS` are read by
loaders of their own, which try their formats first and then those of pairs.
"""

from prefstage.data.formats.base import Format, Row
from prefstage.data.formats.compared import COMPARED
from prefstage.data.formats.demonstrated import CONVERSATIONS
from prefstage.data.formats.listed import LISTED
from prefstage.data.formats.paired import PAIRED
from prefstage.data.formats.trees import TREES
from prefstage.data.formats.unpaired import UNPAIRED

FORMATS: tuple[Format, ...] = (*PAIRED, *COMPARED, *TREES, *LISTED)

__all__ = ["CONVERSATIONS", "FORMATS", "UNPAIRED", "Format", "Row"]
