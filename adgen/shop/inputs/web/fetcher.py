"""One file from the web: https only, from a public address that was checked and is the one connected to, in bounds.

The host's name is resolved here, its addresses are checked, and the connection goes to the checked address with the name in SNI, in
the certificate's check and in Host: nobody can answer otherwise the second time. Each redirect goes through the same door. No proxy
is used, since it would resolve the name again, and no cookie, password or referrer is sent.
"""

import ssl
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from urllib.parse import urljoin

import urllib3
from urllib3.exceptions import HTTPError, LocationParseError, SSLError
from urllib3.util import Timeout, Url, parse_url

from adgen.errors import FetchError
from adgen.images import FORMATS, format_of
from adgen.shop.inputs.locations import MAX_PICTURE_BYTES
from adgen.shop.inputs.web.addresses import Resolve, checked_address, is_public, resolve

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_POOLS = 64
_HOST_IS_DOWN = 10
_CHUNK = 2**16
FEED_BYTES = 64 * 2**30
FEED_SECONDS = 6 * 3600
_NO_PICTURE = "text/", "application/json", "application/xml", "application/pdf", "application/xhtml", "video/", "audio/"
HEADERS = {"User-Agent": "adgen", "Accept": "image/*, */*;q=0.5", "Accept-Encoding": "identity"}


@dataclass(frozen=True)
class Bounds:
    """Of one picture."""

    max_bytes: int = MAX_PICTURE_BYTES
    connect_seconds: float = 10
    read_seconds: float = 30
    total_seconds: float = 120
    redirects: int = 5
    attempts: int = 3
    wait_seconds: float = 1
    """Before the second attempt; twice that before the third."""
    longest_wait_seconds: float = 60
    """Whatever a server asks for in Retry-After."""


class _Again(Exception):
    """Another attempt may do better."""

    def __init__(self, reason: str, detail: str, wait: float = 0):
        super().__init__(detail)
        self.reason, self.wait = reason, wait


class Fetcher:
    """Fetches files, from many threads. `resolver`, `is_allowed` and `tls` are for tests: no setting reaches them."""

    def __init__(
        self,
        bounds: Bounds = Bounds(),
        resolver: Resolve = resolve,
        is_allowed: Callable[[str], bool] = is_public,
        tls: ssl.SSLContext | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.bounds = bounds
        self._resolver, self._is_allowed, self._sleep = resolver, is_allowed, sleep
        self._tls = tls or ssl.create_default_context()
        self._pools: OrderedDict[tuple[str, int], urllib3.HTTPSConnectionPool] = OrderedDict()
        self._lock = threading.Lock()
        self._failed_in_a_row: Counter[str] = Counter()

    def picture(self, url: str) -> bytes:
        """A picture's bytes. FetchError as `fetch`, and not_a_picture."""
        parts: list[bytes] = []
        self.fetch(url, parts.append, parts.clear, is_picture=True)
        data = b"".join(parts)
        if (found := format_of(data)) not in FORMATS:
            raise FetchError("not_a_picture", f"{url}: is {found}; pictures are {', '.join(FORMATS)}")
        return data

    def fetch(self, url: str, take: Callable[[bytes], object], begin_again: Callable[[], object], is_picture: bool = False) -> None:
        """Give the file's bytes to `take`, `begin_again` before a further attempt. What is no picture is a feed and may be
        larger.

        FetchError: scheme_not_allowed, credentials_in_link, bad_link, inside_address, unreachable, tls_error, too_many_redirects,
        too_large_file, too_slow, not_a_picture, http_404 and its like.
        """
        bounds = self.bounds if is_picture else replace(self.bounds, max_bytes=FEED_BYTES, total_seconds=FEED_SECONDS)
        deadline = time.monotonic() + bounds.total_seconds
        for attempt in range(1, self.bounds.attempts + 1):
            try:
                return self._attempt(url, take, deadline, bounds, is_picture)
            except _Again as error:
                if attempt == self.bounds.attempts or time.monotonic() > deadline:
                    raise FetchError(error.reason, f"{url}: {error}") from None
                begin_again()
                self._sleep(min(max(error.wait, self.bounds.wait_seconds * 2 ** (attempt - 1)), self.bounds.longest_wait_seconds))
        raise AssertionError("attempts are 1 or more")

    def _attempt(self, url: str, take: Callable[[bytes], object], deadline: float, bounds: Bounds, is_picture: bool) -> None:
        for _ in range(self.bounds.redirects + 1):
            with closing(self._ask(checked_url(url))) as answer:
                if answer.status in _REDIRECTS and (to := answer.headers.get("Location")):
                    url = urljoin(url, to)
                    continue
                _check_status(url, answer)
                if is_picture:
                    _check_type(url, answer.headers.get("Content-Type", ""))
                return _read(url, answer, take, deadline, bounds)
        raise FetchError("too_many_redirects", f"{url}: more than {self.bounds.redirects}")

    def _ask(self, url: Url) -> urllib3.BaseHTTPResponse:
        host, port = str(url.host), url.port or 443
        if self._failed_in_a_row[host] >= _HOST_IS_DOWN:
            raise FetchError("unreachable", f"{host} did not answer {_HOST_IS_DOWN} times in a row")
        headers = HEADERS | {"Host": host if port == 443 else f"{host}:{port}"}
        try:
            answer = self._pool(host, port).urlopen(
                "GET",
                url.request_uri,
                headers=headers,
                redirect=False,
                retries=False,
                preload_content=False,
                assert_same_host=False,
            )
        except SSLError as error:
            self._drop(host, port)
            raise FetchError("tls_error", f"{host}: {error}") from None
        except HTTPError as error:
            self._drop(host, port)
            raise _Again("unreachable", f"{host}: {error}") from None
        self._failed_in_a_row[host] = 0
        return answer

    def _pool(self, host: str, port: int) -> urllib3.HTTPSConnectionPool:
        """Connections to the host's checked address."""
        with self._lock:
            if pool := self._pools.get((host, port)):
                self._pools.move_to_end((host, port))
                return pool
        address = checked_address(host.strip("[]"), port, self._resolver, self._is_allowed)
        name = host.strip("[]")
        timeout = Timeout(connect=self.bounds.connect_seconds, read=self.bounds.read_seconds)
        pool = urllib3.HTTPSConnectionPool(
            address, port, timeout=timeout, maxsize=16, ssl_context=self._tls, server_hostname=name, assert_hostname=name
        )
        with self._lock:
            self._pools[host, port] = pool
            while len(self._pools) > _POOLS:
                self._pools.popitem(last=False)
        return pool

    def _drop(self, host: str, port: int) -> None:
        """The host may answer at another address the next time."""
        with self._lock:
            self._failed_in_a_row[host] += 1
            self._pools.pop((host, port), None)


def checked_url(url: str) -> Url:
    """The parts of an https link. FetchError: scheme_not_allowed, credentials_in_link, bad_link."""
    try:
        parts = parse_url(url)
    except LocationParseError as error:
        raise FetchError("bad_link", f"{url}: {error}") from None
    if parts.scheme != "https":
        raise FetchError("scheme_not_allowed", f"{url}: only https")
    if parts.auth is not None:
        raise FetchError("credentials_in_link", f"a link to {parts.host} holds a password or a name")
    if not parts.host:
        raise FetchError("bad_link", f"{url}: no host")
    return parts


def _read(url: str, answer: urllib3.BaseHTTPResponse, take: Callable[[bytes], object], deadline: float, bounds: Bounds) -> None:
    limit, size = bounds.max_bytes, 0
    if (length := answer.headers.get("Content-Length", "")).isdecimal() and int(length) > limit:
        raise FetchError("too_large_file", f"{url}: has {length} bytes, limit {limit}")
    if answer.headers.get("Content-Encoding", "identity").lower() not in ("identity", ""):
        raise FetchError("unreadable", f"{url}: is compressed, which was not asked for")
    try:
        while chunk := answer.read1(_CHUNK, decode_content=False):
            size += len(chunk)
            if size > limit:
                raise FetchError("too_large_file", f"{url}: has more than {limit} bytes")
            if time.monotonic() > deadline:
                raise FetchError("too_slow", f"{url}: {size} bytes in {bounds.total_seconds:g} seconds")
            take(chunk)
    except HTTPError as error:  # also an answer that ends before its length
        raise _Again("unreachable", str(error)) from None


def _check_status(url: str, answer: urllib3.BaseHTTPResponse) -> None:
    if answer.status in _TRY_AGAIN:
        asked = answer.headers.get("Retry-After", "")
        raise _Again(f"http_{answer.status}", f"answered {answer.status}", float(asked) if asked.isdecimal() else 0)
    if answer.status != 200:
        raise FetchError(f"http_{answer.status}", f"{url}: answered {answer.status}")


def _check_type(url: str, content_type: str) -> None:
    if content_type.lower().startswith(_NO_PICTURE):
        raise FetchError("not_a_picture", f"{url}: is {content_type}")
