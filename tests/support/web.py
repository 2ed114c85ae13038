"""A web server with TLS on loopback, and a fetcher that takes it for shops on the internet. The certificate is made here."""

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from adgen.errors import FetchError
from adgen.shop.inputs.web.addresses import is_public
from adgen.shop.inputs.web.fetcher import Bounds, Fetcher

HOSTS = ("shop.example", "cdn.example")
QUICK = Bounds(max_bytes=100_000, connect_seconds=5, read_seconds=5, wait_seconds=0)


class Web:
    """What the server answers: `pages[path]` is (status, headers, bytes), or a function of how often it was asked."""

    def __init__(self, port: int, certificate: Path):
        self.port, self.certificate = port, certificate
        self.pages: dict[str, tuple | Callable[[int], tuple]] = {}
        self.asked: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.addresses = {host: ["127.0.0.1"] for host in HOSTS}

    def url(self, path: str, host: str = HOSTS[0]) -> str:
        return f"https://{host}:{self.port}{path}"

    def fetcher(self, bounds: Bounds = QUICK, **options) -> Fetcher:
        """One that is told where hosts are, and that loopback is the internet: what only code can say, and no setting."""
        tls = ssl.create_default_context(cafile=str(self.certificate))
        options = {"is_allowed": lambda address: address == "127.0.0.1" or is_public(address), "sleep": lambda _: None} | options
        return Fetcher(bounds, self._resolved, tls=tls, **options)

    def _resolved(self, host: str, _: int) -> list[str]:
        if host[0].isdigit():
            return [host]
        if host not in self.addresses:
            raise FetchError("unreachable", f"{host}: no such host")
        return self.addresses[host]


@contextmanager
def serving(folder: Path) -> Iterator[Web]:
    """A server for HOSTS."""
    certificate = _certificate(folder)
    web: Web

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            host = self.headers["Host"].partition(":")[0]
            web.asked.append((host, self.path))
            web.headers.append(dict(self.headers))
            page = web.pages.get(self.path, (404, {}, b""))
            status, headers, data = page(web.asked.count((host, self.path))) if callable(page) else page
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(data))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
            if headers.get("Connection") == "close":
                self.close_connection = True

        def log_message(self, *_) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # a client that hangs up is what some tests are about
    server.daemon_threads = True
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    web = Web(server.server_address[1], certificate)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()


def _certificate(folder: Path) -> Path:
    """A key and a certificate of HOSTS that it signed itself, in one PEM file."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOSTS[0])])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in HOSTS]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "server.pem"
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path
