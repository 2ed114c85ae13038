"""What a feed says of a product's sale: price, availability, link and GTIN, in one spelling each.

For exports; the refresh never reads it.
"""

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation

import pyarrow as pa

OFFERS = pa.schema(
    [
        pa.field("product_id", pa.string(), nullable=False),
        pa.field("price", pa.string()),
        pa.field("availability", pa.string()),
        pa.field("link", pa.string()),
        pa.field("gtin", pa.string()),
    ]
)
AVAILABILITIES = ("in_stock", "out_of_stock", "preorder", "backorder", "discontinued")
_SPELLINGS = {
    **{each: each for each in AVAILABILITIES},
    **dict.fromkeys(("instock", "available", "available_for_order", "true", "yes", "1", "limited_availability"), "in_stock"),
    **dict.fromkeys(("outofstock", "sold_out", "soldout", "unavailable", "false", "no", "0", "pending"), "out_of_stock"),
    **dict.fromkeys(("pre_order", "presale"), "preorder"),
    "back_order": "backorder",
}
_SCHEMA_ORG = re.compile(r"^https?://schema\.org/", re.I)
_AMOUNT = re.compile(r"\d[\d.,' \u00a0\u202f]*")
_CURRENCY = re.compile(r"(?<![A-Za-z])[A-Z]{3}(?![A-Za-z])")
_SIGNS = {"€": "EUR", "£": "GBP", "₹": "INR", "₩": "KRW", "₽": "RUB"}  # $ and ¥ are of several countries
LONGEST_LINK = 2048


def price_of(text: str, currency: str | None = None) -> str:
    """As `129.99 USD`; `currency` where the text names none. ValueError: no price."""
    amounts = _AMOUNT.findall(text)
    if len(amounts) != 1 or "-" in text[: text.find(amounts[0])]:
        raise ValueError("expected one amount, such as 129.99 USD")
    try:
        number = Decimal(_with_point(re.sub(r"[' \u00a0\u202f]", "", amounts[0]).rstrip(".,")))
    except InvalidOperation:
        raise ValueError("expected one amount, such as 129.99 USD") from None
    named = _CURRENCY.findall(text) or [code for sign, code in _SIGNS.items() if sign in text]
    code = named[0] if named else currency
    return f"{number:f} {code}" if code else f"{number:f}"


def _with_point(amount: str) -> str:
    """1,299.00 and 1.299,00 are 1299.00; a single comma before three digits parts thousands, before one or two is the point."""
    point, comma = amount.rfind("."), amount.rfind(",")
    if point >= 0 and comma >= 0:
        thousands, decimal = (",", ".") if point > comma else (".", ",")
        return amount.replace(thousands, "").replace(decimal, ".")
    if amount.count(",") > 1 or (comma >= 0 and len(amount) - comma - 1 == 3):
        return amount.replace(",", "")
    return amount.replace(".", "") if amount.count(".") > 1 else amount.replace(",", ".")


def availability_of(text: str) -> str:
    """One of AVAILABILITIES. ValueError: none of their spellings."""
    word = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", _SCHEMA_ORG.sub("", text.strip()))
    word = re.sub(r"[\s\-]+", "_", word).lower()
    if word not in _SPELLINGS:
        raise ValueError(f"expected one of {', '.join(AVAILABILITIES)}")
    return _SPELLINGS[word]


def gtin_of(text: str) -> str:
    """8, 12, 13 or 14 digits. ValueError: another number of digits, or a wrong check digit."""
    digits = re.sub(r"[\s\-']", "", text)
    if not (digits.isascii() and digits.isdigit() and len(digits) in (8, 12, 13, 14)):
        raise ValueError("expected 8, 12, 13 or 14 digits (spreadsheets turn long numbers into 1.2E+12)")
    total = sum(int(digit) * (3 if place % 2 else 1) for place, digit in enumerate(reversed(digits)))
    if total % 10:
        raise ValueError("its check digit is wrong")
    return digits


def link_of(text: str) -> str:
    """An http(s) link of the shop's page. ValueError: another scheme, too long, or with blanks."""
    if not re.match(r"https?://[^\s/@]+(?:[/?#]\S*)?$", text, re.I) or len(text) > LONGEST_LINK:
        raise ValueError(f"expected http:// or https://, no blanks, no credentials, at most {LONGEST_LINK} characters")
    return text


def offer_of(texts: dict[str, str], currency: str | None, report: Callable[[str, str, str, str], None]) -> dict[str, str | None]:
    """price, availability, link and gtin; what cannot be read is null, after `report(column, value, reason, detail)`."""
    readers = {"price": lambda text: price_of(text, currency), "availability": availability_of, "link": link_of, "gtin": gtin_of}
    offer: dict[str, str | None] = {}
    for column, read in readers.items():
        offer[column] = None
        if text := texts[column]:
            try:
                offer[column] = read(text)
            except ValueError as error:
                report(column, text, f"bad_{column}", str(error))
    return offer
