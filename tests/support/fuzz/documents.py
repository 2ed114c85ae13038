"""Mutations of bytes, and of JSON as JSON."""

import copy
import json
from typing import Any

from hypothesis import strategies as draw

ODD = (
    None,
    True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308, "", " ", "0", "a", "../../etc/passwd", "\x00",
    "\x1b[31m", "\ud800", "x" * 10_000, "2026-13-45T99:99:99Z", [], [None], [[]], {}, {"": None}, {"a": {"b": []}}, [0] * 1000,
)  # fmt: skip


def mutated_bytes(sound: bytes) -> draw.SearchStrategy[bytes]:
    """Some bytes other, cut out, put in, or the end away."""

    @draw.composite
    def mutate(choose) -> bytes:
        data = bytearray(sound)
        for _ in range(choose(draw.integers(1, 4))):
            place = choose(draw.integers(0, max(0, len(data) - 1)))
            act = choose(draw.sampled_from(("change", "cut", "insert", "end", "zero", "repeat")))
            length = choose(draw.integers(1, 64))
            if act == "change" and data:
                data[place] = choose(draw.integers(0, 255))
            elif act == "cut":
                del data[place : place + length]
            elif act == "insert":
                data[place:place] = choose(draw.binary(min_size=1, max_size=16))
            elif act == "end":
                del data[place:]
            elif act == "zero":
                data[place : place + length] = bytes(len(data[place : place + length]))
            else:
                data[place:place] = data[place : place + length]
        return bytes(data)

    return mutate()


def mutated_json(sound: bytes) -> draw.SearchStrategy[bytes]:
    """The document with values of another kind, without a key, or with one more; NaN and depths that no parser likes, too."""
    document = json.loads(sound) if sound.lstrip()[:1] in (b"{", b"[") else {}

    @draw.composite
    def mutate(choose) -> bytes:
        if choose(draw.integers(0, 30)) == 0:
            return choose(
                draw.sampled_from((b"[" * 100_000, b'{"a":' * 50_000, b"NaN", b"null", b"", b"\xff\xfe{}", b"\xef\xbb\xbf{}"))
            )
        changed = json.loads(sound) if document else {}
        for _ in range(choose(draw.integers(1, 3))):
            places = list(_places(changed))
            if not places:
                break
            holder, name = choose(draw.sampled_from(places))
            act = choose(draw.sampled_from(("value", "value", "value", "remove", "add", "NaN")))
            if act == "remove":
                del holder[name]
            elif act == "add" and isinstance(holder, dict):
                holder[choose(draw.text(max_size=8))] = copy.deepcopy(choose(draw.sampled_from(ODD)))
            else:
                holder[name] = float("nan") if act == "NaN" else copy.deepcopy(choose(draw.sampled_from(ODD)))
        return json.dumps(changed).encode("utf-8", "surrogatepass")

    return mutate()


def _places(value: Any):
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in list(inner):
        yield value, name
        yield from _places(each)
