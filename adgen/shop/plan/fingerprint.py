"""What makes a creative changed: its fingerprint. A pair whose published row has the same one is carried, not made again.

What is named here determines the creative: the product (`product_hash`: title, selling points, scale, cut-out, picture), the
drawn history in its order (`click_hash` of each: title, picture), the model, the engine's version, the settings that change a
creative, the seed, and which of the pair's variants it is. How fast and where it is made is not among them. Nor are the rule packs:
a row that was published under other rules is judged again (`rows.TitleRules`), and made again only where they refuse it.
Published fingerprints stay: a new part enters only where it is not at its default.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adgen.records import OK, REJECTED, digest


@dataclass(frozen=True)
class Maker:
    """What makes all creatives of a run, whatever the pair."""

    model_digest: str
    engine_version: str
    digests: tuple[str, ...]
    """Of the sampling settings, the finishing settings, the engine's lossy options, and finishing's look, in this order."""

    def fingerprint(self, product_hash: str, history_hashes: Sequence[str], seed: int, variant: int = 0) -> str:
        """Of all that determines a creative, 64 hex digits. Private: rows have `records.public_fingerprint` of it."""
        history = (len(history_hashes), *history_hashes)
        made_by = (self.model_digest, self.engine_version, len(self.digests), *self.digests)
        return digest("creative", product_hash, *history, *made_by, seed, variant)


def is_unchanged(published: dict[str, Any] | None, fingerprint: str | None) -> bool:
    """Whether the pair's published row (None: it has none) was made from the same. A pair with bad input has no fingerprint: two
    such nights are the same, too."""
    return published is not None and published["fingerprint"] == fingerprint


def is_carried(published: dict[str, Any] | None, fingerprint: str | None) -> bool:
    """Whether the published row is the creative that would be made. A failed row is no creative: it is tried again. A row that
    gates rejected before there were attempts is made again once."""
    if fingerprint is None or not is_unchanged(published, fingerprint):
        return False
    return published["status"] == OK or (published["status"] == REJECTED and published["title_source"] is not None)
