"""Finish and commit: how much of pictures its threads hold."""

import io
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from PIL import Image
from support.threads import Counted

from adgen.config import PictureSettings
from adgen.errors import PairError
from adgen.images import read_picture, use_limits
from adgen.on_ray.refresh.commit import COPIED, FinishAndCommit


@pytest.fixture
def one_picture():
    """The limits: a picture of 32x32 pixels at once."""
    use_limits(PictureSettings(max_decoded_bytes=32 * 32 * 8))
    yield
    use_limits(PictureSettings())


def test_pictures_count_as_decoded_until_their_creative_is_finished(one_picture):
    """However many threads finish at once."""
    out, counter = io.BytesIO(), Counted()
    Image.new("RGB", (32, 32)).save(out, "PNG")

    class Finish(FinishAndCommit):
        def creative(self, pair, pictures):
            read_picture(pictures["p"])
            with counter:
                time.sleep(0.01)
            raise PairError("no_cutout")

    stage = Finish.__new__(Finish)
    stage.context = SimpleNamespace(model_digest="m", untrained=False)
    pair = dict.fromkeys((*COPIED, "reason", "seconds"))
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda _: stage.manifest_row(pair, {"p": out.getvalue()}), range(16)))
    assert {row["reason"] for row in rows} == {"no_cutout"}
    assert counter.most == 1
