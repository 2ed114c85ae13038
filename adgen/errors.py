"""The exception tree: what goes wrong for one pair, and what stops a run.

AdgenError
├── PairError             one pair: becomes the row's status and reason, the run goes on
├── FetchError            one link of a feed: an import names it and goes on
└── RunError              the whole run: stops it, and says what to do
    ├── SettingsError     a settings file or flag: names file, field and value
    ├── InputError        a table: names the table and the column
    ├── ModelError        a model directory, checkpoint or tokenizer: names file and key
    ├── ConsumerError     a published creative that a consumer cannot use: names the object
    ├── EngineLost        ranks of an engine keep dying
    └── StoreError        the object store: names the URI
        └── OwnedElsewhere   another driver is working on this run: names it
"""

import re

# C0 and C1 controls, and what turns the direction of text around: ids, locales and URIs come from other people's tables.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with all that a terminal would obey, line ends and tabs apart, written as \\x1b or \\u202e."""
    return CONTROLS.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class AdgenError(Exception):
    """Base of everything this package raises on purpose. Its text is fit for a terminal."""

    def __str__(self) -> str:
        return printable(super().__str__())


class PairError(AdgenError):
    """One (user, product) pair cannot get a creative; `reason` is a stable word, `detail` is for people.

    A PairError never leaves the code that works on a row: it is turned into the row's `status` and `reason`.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self):
        return (type(self), (self.reason, self.detail))


class FetchError(AdgenError):
    """A link of a feed cannot be followed; `reason` is a stable word, `detail` is for people."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class RunError(AdgenError):
    """The run cannot go on. The message says what was found and what to do about it."""


class EngineLost(RunError):
    """The processes of an engine keep dying under it."""


class SettingsError(RunError):
    """A setting is unknown, of the wrong type or out of range."""


class InputError(RunError):
    """An input table is missing, has the wrong schema, or is empty."""


class ModelError(RunError):
    """A model directory, a checkpoint or its tokenizer cannot be used."""


class ConsumerError(RunError):
    """Something published is missing or differs from what its manifest says."""


class StoreError(RunError):
    """The object store cannot be used: not writable, or its conditional writes do not hold."""


class OwnedElsewhere(StoreError):
    """Another driver's heartbeat moves on this run."""
