"""What is asked of an S3 server, counted."""

from collections.abc import Iterator
from contextlib import contextmanager

from adgen.creatives.s3 import s3_client
from adgen.creatives.storage import S3Access


class Requests(list):
    """(operation, key below the store) of each request, and the bytes of the bodies that came."""

    def __init__(self):
        super().__init__()
        self.bytes: list[int] = []


@contextmanager
def counted(access: S3Access) -> Iterator[Requests]:
    """While the block runs; stores are at some/store of their bucket."""
    events, seen = s3_client(access).meta.events, Requests()

    def before(params, model, **_):
        seen.append((model.name, params["url_path"].partition("some/store/")[2]))

    def after(parsed, **_):
        seen.bytes.append(parsed.get("ContentLength", 0))

    events.register("before-call.s3", before)
    events.register("after-call.s3", after)
    yield seen
    events.unregister("before-call.s3", before)
    events.unregister("after-call.s3", after)
