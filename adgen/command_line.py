"""Arguments that several commands of `adgen` take."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

Dest = Annotated[Positional[Path], arg(metavar="DEST", help="folder to write to")]
Json = Annotated[bool, arg(name="json", help="print one JSON document instead of text")]
