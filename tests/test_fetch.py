"""Pictures from the web: https from public addresses only, in bounds, each once; and what nobody may make us do."""

import io
import json
import socket
from pathlib import Path

import pytest
from PIL import Image
from support.feeds import read_table, table, write_pictures
from support.web import QUICK, Web, serving

from adgen.cli import main
from adgen.errors import FetchError, InputError
from adgen.images import read_picture
from adgen.shop.inputs.feeds.products import FeedOptions
from adgen.shop.inputs.feeds.with_pictures import PictureOptions, import_with_pictures
from adgen.shop.inputs.tables import open_inputs
from adgen.shop.inputs.web.addresses import is_public
from adgen.shop.inputs.web.fetcher import Bounds, Fetcher

INSIDE = (
    *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "240.0.0.1"),
    *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"),
    *("::127.0.0.1", "ff02::1", "fd00:ec2::254", "255.255.255.255", "no address"),
)


def png(side: int = 32) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    with serving(tmp_path_factory.mktemp("tls")) as web:
        yield web


@pytest.fixture
def web(server: Web) -> Web:
    server.pages = {"/a.png": (200, {"Content-Type": "image/png"}, png())}
    server.asked.clear()
    server.headers.clear()
    server.addresses = {"shop.example": ["127.0.0.1"], "cdn.example": ["127.0.0.1"]}
    return server


def refused(fetcher: Fetcher, url: str) -> str:
    with pytest.raises(FetchError) as raised:
        fetcher.picture(url)
    return raised.value.reason


# -- where a link may lead ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", INSIDE)
def test_an_inside_address_is_none_of_the_internets(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450:4001:81b::200e"])
def test_an_outside_address_is_public(address):
    assert is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "2130706433", "0x7f.1", "[::ffff:169.254.169.254]"])
def test_a_link_to_an_inside_host_is_not_followed(web, host):
    """With the resolver and the rule of production."""
    fetcher = Fetcher(QUICK, sleep=lambda _: None)
    assert refused(fetcher, f"https://{host}:{web.port}/a.png") in ("inside_address", "unreachable", "bad_link")
    assert web.asked == []


def test_a_host_that_is_inside_by_one_of_its_addresses_is_not_asked(web):
    web.addresses["shop.example"] = ["127.0.0.1", "10.0.0.1"]
    assert refused(web.fetcher(), web.url("/a.png")) == "inside_address"
    assert web.asked == []


def test_the_checked_address_is_the_one_that_is_connected_to(web, monkeypatch):
    """A name that answers otherwise the second time (rebinding) is asked once; SNI, certificate and Host have the name."""
    answers = iter([["127.0.0.1"], ["10.0.0.1"]])
    fetcher = web.fetcher()
    fetcher._resolver = lambda *_: next(answers)
    asked = []
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: asked.append(host) or real(host, *rest, **more))
    assert fetcher.picture(web.url("/a.png")) == png()
    assert fetcher.picture(web.url("/a.png")) == png()
    assert set(asked) <= {"127.0.0.1"}
    assert web.headers[0]["Host"] == f"shop.example:{web.port}"
    assert not {"Cookie", "Authorization", "Referer"} & set(web.headers[0])


@pytest.mark.parametrize(
    ("to", "reason"),
    [
        ("https://inside.example:{port}/a.png", "inside_address"),
        ("https://169.254.169.254/latest/meta-data", "inside_address"),
        ("http://shop.example/a.png", "scheme_not_allowed"),
        ("file:///etc/passwd", "scheme_not_allowed"),
        ("https://user:word@shop.example:{port}/a.png", "credentials_in_link"),
        ("/again", "too_many_redirects"),
        ("https://shop.example:99999/", "bad_link"),
    ],
)
def test_each_redirect_goes_through_the_same_door(web, to, reason):
    web.addresses["inside.example"] = ["10.0.0.1"]
    web.pages["/again"] = (302, {"Location": to.format(port=web.port)}, b"")
    assert refused(web.fetcher(), web.url("/again")) == reason


def test_a_redirect_to_another_public_host_is_followed(web):
    web.pages["/moved"] = (301, {"Location": web.url("/a.png", "cdn.example")}, b"")
    assert web.fetcher().picture(web.url("/moved")) == png()
    assert web.asked == [("shop.example", "/moved"), ("cdn.example", "/a.png")]


def test_a_certificate_of_another_host_is_refused(web):
    web.addresses["other.example"] = ["127.0.0.1"]
    assert refused(web.fetcher(), web.url("/a.png", "other.example")) == "tls_error"
    assert refused(Fetcher(QUICK, lambda *_: ["127.0.0.1"], lambda _: True, sleep=lambda _: None), web.url("/a.png")) == "tls_error"


def test_no_proxy_of_the_environment_is_used(web, monkeypatch):
    for name in ("https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert web.fetcher().picture(web.url("/a.png")) == png()


# -- bounds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ((200, {"Content-Type": "image/png", "Content-Length": "100001"}, b""), "too_large_file"),
        ((200, {"Content-Type": "image/png", "Transfer-Encoding": "chunked"}, b"30D40\r\n" + b"x" * 200_000), "too_large_file"),
        ((200, {"Content-Type": "text/html"}, b"<html>"), "not_a_picture"),
        ((200, {"Content-Type": "image/png"}, b"<html>"), "not_a_picture"),
        ((200, {"Content-Type": "image/svg+xml"}, b"<svg/>"), "not_a_picture"),
        ((200, {"Content-Type": "image/png", "Content-Encoding": "gzip"}, b"\x1f\x8b"), "unreadable"),
        ((404, {}, b""), "http_404"),
        ((403, {}, b""), "http_403"),
        ((503, {}, b""), "http_503"),
        ((200, {"Content-Type": "image/png", "Content-Length": "999", "Connection": "close"}, png()), "unreachable"),
    ],
)
def test_what_is_no_picture_or_out_of_bounds_has_its_reason(web, page, reason):
    if page[1].get("Transfer-Encoding"):
        page = (page[0], page[1] | {"Content-Length": "0"}, page[2])
    web.pages["/bad"] = page
    assert refused(web.fetcher(), web.url("/bad")) == reason


def test_what_fails_once_is_tried_again_and_what_is_gone_is_not(web):
    web.pages["/busy"] = lambda asked: (503, {"Retry-After": "7"}, b"") if asked < 3 else web.pages["/a.png"]
    waits: list[float] = []
    fetcher = web.fetcher(sleep=waits.append)
    assert fetcher.picture(web.url("/busy")) == png()
    assert waits == [7, 7]
    assert refused(fetcher, web.url("/gone")) == "http_404"
    assert web.asked.count(("shop.example", "/gone")) == 1


def test_a_server_that_trickles_is_left(web):
    fetcher = web.fetcher(Bounds(max_bytes=100_000, total_seconds=0, attempts=1))
    assert refused(fetcher, web.url("/a.png")) == "too_slow"


def test_a_host_that_never_answers_is_given_up(web):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    fetcher = web.fetcher()
    for _ in range(4):
        assert refused(fetcher, f"https://shop.example:{port}/a.png") == "unreachable"
    with pytest.raises(FetchError, match="did not answer 10 times in a row"):
        fetcher.picture(f"https://shop.example:{port}/a.png")


# -- a feed's pictures -------------------------------------------------------------------------------------------------


def feed_of(folder: Path, *links: str) -> str:
    folder.mkdir(exist_ok=True)
    rows = [{"id": f"p{number}", "title": f"Mug {number}", "image_link": link} for number, link in enumerate(links)]
    (folder / "feed.csv").write_text(table(rows))
    return str(folder / "feed.csv")


def test_pictures_are_fetched_once_into_the_folder_of_the_tables(web, tmp_path):
    feed = feed_of(tmp_path / "feed", web.url("/a.png?x=1"), web.url("/a.png?x=2"), web.url("/a.png?x=1"))
    for query in ("x=1", "x=2"):
        web.pages[f"/a.png?{query}"] = web.pages["/a.png"]
    first = import_with_pictures(feed, tmp_path / "shop", FeedOptions(), PictureOptions(fetch=True), web.fetcher())
    assert (first.products, first.fetched, first.fetched_before, first.on_the_web) == (3, 2, 0, 0)
    inputs = open_inputs(str(tmp_path / "shop"), ("products",))
    images = [row["image"] for row in read_table(tmp_path / "shop", "products")]
    assert images[0] == images[2] != images[1]
    assert all(image.startswith("images/web/") and image.endswith(".png") for image in images)
    assert read_picture(inputs.resolve(images[0])).size == (32, 32)
    again = import_with_pictures(feed, tmp_path / "shop", FeedOptions(), PictureOptions(), web.fetcher())
    assert (again.fetched, again.fetched_before, again.on_the_web) == (0, 2, 0)
    assert len(web.asked) == 2


def test_what_cannot_be_fetched_stays_a_link_and_is_named_and_the_next_import_goes_on(web, tmp_path):
    links = [web.url(f"/{number}.png") for number in range(4)]
    feed = feed_of(tmp_path / "feed", *links)
    web.pages |= {f"/{number}.png": web.pages["/a.png"] for number in range(3)}
    options, pictures = FeedOptions(max_bad_share=0.3), PictureOptions(fetch=True, workers=2)
    first = import_with_pictures(feed, tmp_path / "shop", options, pictures, web.fetcher())
    assert (first.products, first.fetched, first.on_the_web, first.repaired) == (4, 3, 1, {"http_404": 1})
    [problem] = read_table(tmp_path / "shop", "feed_problems")
    assert (problem["line"], problem["column"], problem["value"], problem["skipped"]) == (5, "image", links[3], False)
    assert read_table(tmp_path / "shop", "products")[3]["image"] == links[3]
    web.pages["/3.png"] = web.pages["/a.png"]
    second = import_with_pictures(feed, tmp_path / "shop", options, pictures, web.fetcher())
    assert (second.fetched, second.fetched_before, second.on_the_web) == (1, 3, 0)


def test_too_many_failures_leave_the_tables_and_keep_what_was_fetched(web, tmp_path):
    feed = feed_of(tmp_path / "feed", web.url("/a.png"), web.url("/gone"), web.url("/gone2"))
    with pytest.raises(InputError, match=r"2 of 3 pictures could not be fetched, more than --max-bad-share 0\.1: .*http_404"):
        import_with_pictures(feed, tmp_path / "shop", FeedOptions(), PictureOptions(fetch=True), web.fetcher())
    assert not (tmp_path / "shop" / "products.parquet").exists()
    assert len([path for path in (tmp_path / "shop" / "images").rglob("*") if path.is_file()]) == 1


def test_a_feed_itself_may_lie_on_the_web_but_names_no_files_here(web, tmp_path):
    rows = [{"id": "a", "title": "Mug", "image_link": web.url("/a.png")}, {"id": "b", "title": "Mug", "image_link": "/etc/passwd"}]
    web.pages["/feed.csv?token=secret"] = (200, {"Content-Type": "text/csv"}, table(rows).encode())
    options = FeedOptions(max_bad_share=0.5)
    link = web.url("/feed.csv?token=secret")
    summary = import_with_pictures(link, tmp_path / "shop", options, PictureOptions(fetch=True), web.fetcher())
    assert (summary.products, summary.fetched, summary.skipped) == (1, 1, {"scheme_not_allowed": 1})
    assert "secret" not in json.dumps([summary.examples, read_table(tmp_path / "shop", "feed_problems")])
    with pytest.raises(InputError, match="http_404") as raised:
        import_with_pictures(web.url("/none?token=secret"), tmp_path / "shop", options, PictureOptions(), web.fetcher())
    assert "secret" not in str(raised.value)


def test_a_feed_may_be_larger_than_a_picture_and_has_a_limit_too(web, tmp_path, monkeypatch):
    rows = [{"id": f"p{number}", "title": "Mug " * 20, "image_link": web.url("/a.png")} for number in range(1_500)]
    web.pages["/feed.csv"] = (200, {"Content-Type": "text/csv"}, table(rows).encode())
    assert len(web.pages["/feed.csv"][2]) > QUICK.max_bytes
    summary = import_with_pictures(web.url("/feed.csv"), tmp_path / "shop", FeedOptions(), PictureOptions(), web.fetcher())
    assert (summary.products, summary.on_the_web) == (1_500, 1_500)
    monkeypatch.setattr("adgen.shop.inputs.web.fetcher.FEED_BYTES", 100_000)
    with pytest.raises(InputError, match="too_large_file"):
        import_with_pictures(web.url("/feed.csv"), tmp_path / "shop", FeedOptions(), PictureOptions(), web.fetcher())


def test_the_command_asks_no_inside_address(web, tmp_path, capsys):
    """What an operator can say opens no inside address."""
    feed = feed_of(tmp_path / "feed", f"https://localhost:{web.port}/a.png", "images/0.png")
    write_pictures(tmp_path / "feed", 1)
    assert main(["import-feed", feed, str(tmp_path / "shop"), "--fetch", "--max-bad-share", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["repaired"] == {"inside_address": 1}
    assert main(["import-feed", f"https://localhost:{web.port}/feed", str(tmp_path / "shop")]) == 1
    assert "inside_address: localhost is 127.0.0.1" in capsys.readouterr().err
    assert web.asked == []


def test_a_password_in_a_feeds_own_link_is_refused_and_not_repeated(tmp_path, capsys):
    for link in ("https://user:s3cret@shop.example/feed.xml?token=t0ken", "HTTPS://s3cret@shop.example"):
        assert main(["import-feed", link, str(tmp_path / "shop")]) == 1
        said = capsys.readouterr().err
        assert "credentials_in_link" in said
        assert "s3cret" not in said
        assert "t0ken" not in said
