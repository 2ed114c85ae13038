"""Commands that make input tables: imports of feeds, click logs and PAd1M, pairs, the synthetic shop.

What a command needs is imported inside it: `adgen --help` loads neither DuckDB nor Pillow.
"""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from adgen.command_line import Dest, Json
from adgen.terminal import print_summary

File = Annotated[Positional[str], arg(metavar="FILE", help="a file, a folder of files, s3:// or file://; .gz is read, too")]
_CUTTER = "cut out products of pictures without a near-uniform border: `border` (only say which), an entry point, or a command"
Map = UseAppendAction[Annotated[tuple[str, ...], arg(metavar="OURS=THEIRS", help="which of its columns is which of ours")]]
Encoding = Annotated[str | None, arg(metavar="NAME", help="of its text; default: found out")]
BadShare = Annotated[float, arg(metavar="SHARE", help="of rows that cannot be used; above it nothing is written, exit 1")]


def import_feed(
    file: Annotated[Positional[str], arg(metavar="FILE", help="a file, a folder of files, s3:// or https://; .gz is read, too")],
    dest: Dest,
    map: Map = (),
    locale: Annotated[str | None, arg(metavar="LOCALE", help="of its texts where it does not say")] = None,
    currency: Annotated[str | None, arg(metavar="CODE", help="of its prices where it does not say")] = None,
    scale: Annotated[float, arg(help="largest share of the frame that a product may take, where it does not say")] = 0.6,
    encoding: Encoding = None,
    max_bad_share: BadShare = 0.1,
    fetch: Annotated[bool, arg(help="fetch pictures that are https links, once, into DEST/images/web")] = False,
    fetch_workers: Annotated[int, arg(metavar="N", help="pictures fetched at once")] = 16,
    cutter: Annotated[str | None, arg(metavar="NAME|COMMAND", help=_CUTTER)] = None,
    cutter_weights: Annotated[
        Path | None, arg(metavar="DIR", help="weights of a cutter that has some; none are downloaded")
    ] = None,
    as_json: Json = False,
) -> int:
    """Turn a product feed into the tables products and offers: Google Merchant (TSV, RSS, Atom), Meta (CSV, XML), Shopify's CSV,
    or plain CSV, JSON Lines and Parquet.

    Rows that cannot be used are left out, counted by reason, and named in feed_problems.parquet. The same command goes on where
    fetching stopped."""
    from adgen.shop.inputs.feeds.products import FeedOptions
    from adgen.shop.inputs.feeds.with_pictures import PictureOptions, import_with_pictures

    options = FeedOptions(map, encoding, locale, currency, scale, max_bad_share)
    return print_summary(
        import_with_pictures(file, dest, options, PictureOptions(fetch, fetch_workers, cutter, cutter_weights)), as_json
    )


def import_clicks(
    file: File,
    dest: Dest,
    map: Map = (),
    events: Annotated[tuple[str, ...], arg(metavar="NAME", help="events that count as clicks; default: all")] = (),
    max_clicks: Annotated[int, arg(metavar="N", help="of a user, the newest")] = 1000,
    encoding: Encoding = None,
    max_bad_share: BadShare = 0.1,
    as_json: Json = False,
) -> int:
    """Turn a click log (CSV, JSON Lines, Parquet; user, product and time a row) into the table histories.

    Rows that cannot be used are left out, counted by reason, and named in click_problems.parquet."""
    from adgen.shop.inputs.feeds.clicks import ClickOptions, import_clicks

    options = ClickOptions(map, events, max_clicks, encoding, max_bad_share)
    return print_summary(import_clicks(file, dest, options), as_json)


def make_pairs(
    inputs: Annotated[Positional[Path], arg(metavar="INPUTS", help="folder with the tables products and histories")],
    top: Annotated[
        int | None, arg(metavar="N", help="each user's N products most similar to the clicked ones; default: all")
    ] = None,
    products: Annotated[str | None, arg(metavar="FILE", help="the campaign's products, one id a line; default: all")] = None,
    given: Annotated[str | None, arg(name="list", metavar="FILE", help="the pairs themselves: columns user_id, product_id")] = None,
    map: Map = (),
    locale: Annotated[str | None, arg(metavar="LOCALE", help="of the pairs; default: the product's")] = None,
    channel: Annotated[str | None, arg(metavar="NAME", help="where the creatives will be shown")] = None,
    max_pairs: Annotated[int, arg(metavar="N", help="more are refused: every pair is a creative")] = 100_000_000,
    max_bad_share: BadShare = 0.1,
    as_json: Json = False,
) -> int:
    """Write the table pairs: all users x the campaign's products, each user's most similar ones, or a list that you have."""
    from adgen.shop.inputs.feeds.pairs import PairOptions, make_pairs

    options = PairOptions(top, products, given, map, locale, channel, max_pairs, max_bad_share)
    return print_summary(make_pairs(inputs, options), as_json)


def import_pad1m(
    file: Annotated[Positional[Path], arg(metavar="FILE", help="the JSON file")],
    dest: Dest,
    as_json: Json = False,
) -> int:
    """Turn the public PAd1M JSON into input tables."""
    from adgen.shop.inputs.pad1m import import_pad1m

    return print_summary(import_pad1m(file, dest), as_json)


def synth(
    dest: Dest,
    users: Annotated[int, arg(metavar="N", help="number of users")] = 100,
    products: Annotated[int, arg(metavar="N", help="number of products")] = 48,
    pairs: Annotated[int | None, arg(metavar="N", help="number of pairs; default four a user")] = None,
    seed: Annotated[int, arg(metavar="N", help="same seed, same bytes")] = 0,
    styles: Annotated[tuple[Literal["ten", "many"], ...], arg(help="of backgrounds: ten named ones, continuous families")] = (
        "ten",
    ),
    many: Annotated[int, arg(metavar="N", help="how many of the continuous families")] = 200,
    photographs: Annotated[
        Path | None,
        arg(metavar="DIR", help="photographs beside the drawings: backgrounds/CLASS/*.jpg, cutouts/*.png, products.json"),
    ] = None,
    words: Annotated[Literal["shop", "mixed", "open"], arg(help="of titles: a grammar's few hundred, both, any")] = "shop",
    clicks: Annotated[tuple[int, int], arg(metavar="N N", help="fewest and most of a user")] = (8, 24),
    split: Annotated[Literal["train", "eval"] | None, arg(help="keep to what training, or a proof, may see")] = None,
    as_json: Json = False,
) -> int:
    """Draw a synthetic shop: products, users with a taste, histories, reference creatives.

    `--styles` without a value and `--photographs DIR` make a shop of photographs alone."""
    from adgen.shop.synthetic.styles import style_set
    from adgen.shop.synthetic.synth import synthesize

    shown = style_set(styles, many, photographs, split)
    made = synthesize(dest, users, products, pairs, seed, split, styles=shown, words=words, clicks=clicks)
    return print_summary(made, as_json)


COMMANDS = {
    "import-feed": import_feed,
    "import-clicks": import_clicks,
    "make-pairs": make_pairs,
    "import-pad1m": import_pad1m,
    "synth": synth,
}
