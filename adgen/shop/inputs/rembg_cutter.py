"""The cutter `rembg`: the library of that name (extra `cutter`) with an ONNX network from a directory. Nothing is downloaded."""

import os
from pathlib import Path

from PIL import Image

from adgen.errors import SettingsError
from adgen.shop.inputs.cutters import Cutter

SESSIONS = {"u2net": "u2net_custom", "isnet": "dis_custom"}
"""How a network of a name that begins so is fed; others like U2-Net: 320 pixels, ImageNet's mean."""


def open_rembg(weights: Path | None) -> Cutter:
    """The one network `*.onnx` in the folder. SettingsError: none, or several."""
    found = sorted(weights.glob("*.onnx")) if weights else []
    if len(found) != 1:
        raise SettingsError(f"--cutter-weights {weights}: holds {len(found)} files *.onnx, expected one")
    os.environ["U2NET_HOME"] = str(found[0].parent.absolute())  # rembg reads no network from elsewhere
    from rembg import new_session, remove

    kind = next((session for start, session in SESSIONS.items() if found[0].name.startswith(start)), "u2net_custom")
    session = new_session(kind, model_path=str(found[0].absolute()))

    def cut(picture: Image.Image) -> Image.Image:
        return remove(picture.convert("RGB"), session=session)

    return cut
