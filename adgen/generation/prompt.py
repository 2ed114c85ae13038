"""A request in words: the prompt's layout as data, and its tokens. docs/design.md 6.8.

The wording is a template file. What it spells itself may be markup; what a product, a click or a model says is data: it
is tokenised as plain text, so a special token spelled inside a title never becomes one.
"""

import itertools
import json
import re
import string
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from adgen.errors import ModelError
from adgen.generation.template import Template, TokenNames, as_toml, load_template
from adgen.model.config import CONFIG_FILE, STYLE_SLOT, ModelConfig

TOKENIZER_FILE, TEMPLATE_FILE = "tokenizer.json", "prompt.toml"
# Added to a base tokenizer that lacks them, in this order: their ids are rows of the published embedding table.
_ADDED = ("image_placeholder", "title_placeholder", "begin_of_history_title", "end_of_history_title")
_ADDED_SPELLINGS = ("<grounding>", "</grounding>", "<box>", "</box>", "<ref>", "</ref>")


@dataclass(frozen=True)
class PromptFacts:
    """What a prompt is about; history_titles and pictures are of the drawn clicks, in order."""

    product_title: str
    selling_points: tuple[str, ...] = ()
    history_titles: tuple[str, ...] = ()
    num_history_pictures: int = 0


@dataclass(frozen=True)
class Prompt:
    """Token ids, and for each the history row that replaces its embedding. -1: none; STYLE_SLOT: the style embedding is added.
    Rows: pictures' tokens, then titles'."""

    ids: tuple[int, ...]
    slots: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class _Data:
    """Text that is never markup."""

    text: str


class Prompter:
    """Prompts of one model: its template and its tokenizer."""

    def __init__(self, tokenizer: Tokenizer, template: Template, config: ModelConfig, source: str = "tokenizer"):
        self.template = template
        self.config = config
        self._full = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        # DeepSeek's vocabularies lack some single letters ("ü"), which were added as tokens: text, not markup.
        self._letters = {t.content: i for i, t in added.items() if len(t.content) == 1 and not t.special}
        self._letter = re.compile(f"([{re.escape(''.join(self._letters))}])" if self._letters else r"((?!))")
        self._special = {t.content: i for i, t in added.items() if t.content not in self._letters}
        self._special_ids = frozenset(self._special.values()) - {_unknown_id(tokenizer)}
        self._markup = re.compile("|".join(map(re.escape, sorted(self._special, key=len, reverse=True))) or r"(?!)")
        self._plain = _without_added_tokens(tokenizer)
        for field, spelling in template.tokens.model_dump().items():
            if spelling not in self._special and not (field == "begin_of_sentence" and not self._adds_bos):
                raise ModelError(f"{source}: has no special token {spelling!r} ({field}), which prompts need")
        too_high = max(tokenizer.get_vocab().values())
        if too_high >= config.decoder.vocab_size:
            raise ModelError(f"{source}: token id {too_high} lies outside the model's table of {config.decoder.vocab_size} rows")
        self.pad_id = self._special[template.tokens.pad]
        self.eos_id = self._special[template.tokens.end_of_sentence]
        self._check_segments(source)

    @classmethod
    def load(cls, directory: str | Path, config: ModelConfig, template: Template | None = None) -> "Prompter":
        """The tokenizer of a model directory; its own template or ours, unless one is given. ModelError names the file and what
        it lacks. A Janus-Pro tokenizer gets the tokens that the published model adds to it."""
        directory = Path(directory)
        path = directory / TOKENIZER_FILE
        if not path.is_file():
            raise ModelError(f"{path}: no such file")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ModelError(f"{path}: not a tokenizer: {error}") from None
        for token in json.loads(path.read_text(encoding="utf-8")).get("added_tokens", []):
            # The library closes gaps between ids without a word: the model would read other tokens than it was trained on.
            if (loaded := tokenizer.token_to_id(token["content"])) != token["id"]:
                raise ModelError(
                    f"{path}: token {token['content']!r} has id {token['id']} but is loaded as {loaded}: ids have gaps"
                )
        tokenizer.no_truncation()
        tokenizer.no_padding()
        template = template or load_template(directory / TEMPLATE_FILE if (directory / TEMPLATE_FILE).exists() else None)
        if not (directory / CONFIG_FILE).exists():
            _add_missing(tokenizer, template.tokens)
        return cls(tokenizer, template, config, source=str(path))

    def save(self, directory: str | Path) -> None:
        """Write `tokenizer.json` and `prompt.toml` into a model directory."""
        self._full.save(str(Path(directory) / TOKENIZER_FILE))
        (Path(directory) / TEMPLATE_FILE).write_text(as_toml(self.template), encoding="utf-8")

    # -- prompts ---------------------------------------------------------------------------------------------------

    def title_prompt(self, facts: PromptFacts) -> Prompt:
        """What the model reads before it writes the title: the answer is open, the end-of-sentence token is left out."""
        return self._expand(self._encode(self._chat(facts, [self.template.title_open])))

    def picture_prompt(self, facts: PromptFacts, title: str) -> Prompt:
        """What the model reads before it paints: the whole answer, end of sentence, begin of image."""
        answer = [self.template.title_open, _Data(title), self.template.title_close]
        ids = [*self._encode(self._chat(facts, answer)), self.eos_id, self._id("begin_of_image")]
        prompt = self._expand(ids)
        if not (self.config.preference.style_layers and facts.num_history_pictures):
            return prompt
        return Prompt(prompt.ids, (*prompt.slots[:-1], STYLE_SLOT))

    def negative_prompt(self) -> Prompt:
        """The unconditional prompt: the negative text, an empty answer, begin of image."""
        pieces = self._fill(self.template.chat, {"user": [self.template.negative], "answer": []})
        ids = [*self._encode(pieces), self._id("begin_of_image")]
        return Prompt(tuple(ids), (-1,) * len(ids))

    def token_id(self, spelling: str) -> int:
        """The id of a special token. KeyError: the tokenizer has none that is spelled so."""
        return self._special[spelling]

    def history_title_ids(self, title: str) -> list[int]:
        """A clicked title as exactly preference.tokens_per_title ids: cut, or padded on the right; empty is all padding."""
        size = self.config.preference.tokens_per_title
        ids = self.text_ids(title)[:size]
        return ids + [self.pad_id] * (size - len(ids))

    def read_title(self, new_ids: list[int]) -> str | None:
        """The title that the generated tokens spell, up to the first closing tag; None while there is none."""
        text = self._full.decode(new_ids, skip_special_tokens=False)
        title, closed, _ = text.partition(self.template.title_close)
        return title if closed else None

    def max_prompt_tokens(self, history_items: int) -> int:
        """Tokens of a picture prompt with an empty title and texts of the longest that the template allows.

        An estimate of the highest: a tokenizer may spell two texts differently together than apart.
        """
        bare = PromptFacts("", (), ("",) * history_items, history_items)
        texts = self.template.max_product_title_tokens + self.template.max_selling_points_tokens
        return len(self.picture_prompt(bare, "")) + texts

    # -- from template to ids --------------------------------------------------------------------------------------

    def _chat(self, facts: PromptFacts, answer: list) -> list:
        names = self.template.tokens
        points = self.template.selling_points_joined_by.join(facts.selling_points)
        user = self._fill(
            self.template.user,
            {
                "selling_points": [_Data(self._cut(points, self.template.max_selling_points_tokens))],
                "history_titles": [names.title_placeholder] * len(facts.history_titles),
                "product_title": [_Data(self._cut(facts.product_title, self.template.max_product_title_tokens))],
                "history_images": [names.image_placeholder] * facts.num_history_pictures,
            },
        )
        return self._fill(self.template.chat, {"user": user, "answer": answer})

    @staticmethod
    def _fill(template: str, fields: dict[str, list]) -> list:
        """The template's literals (markup) with each field's pieces between them."""
        pieces: list = []
        for literal, field, _, _ in string.Formatter().parse(template):
            pieces.append(literal)
            pieces += fields[field] if field is not None else []
        return pieces

    def _encode(self, pieces: list) -> list[int]:
        """Pieces (str: markup, _Data: plain) -> ids. Neighbouring text is tokenised as one, as in one long string."""
        runs: list[str | int] = [""]
        for piece in pieces:
            for part in [piece] if isinstance(piece, _Data) else self._split_markup(piece):
                if isinstance(part, int):
                    runs += [part, ""]
                else:
                    runs[-1] += part.text
        runs[0], runs[-1] = runs[0].lstrip(), runs[-1].rstrip()
        ids = [self._special[self.template.tokens.begin_of_sentence]] if self._adds_bos else []
        for run in runs:
            ids += [run] if isinstance(run, int) else self.text_ids(run)
        return ids

    def _split_markup(self, literal: str) -> list[int | _Data]:
        parts: list[int | _Data] = []
        end = 0
        for match in self._markup.finditer(literal):
            parts += [_Data(literal[end : match.start()]), self._special[match.group()]]
            end = match.end()
        return [*parts, _Data(literal[end:])]

    @property
    def title_close_ids(self) -> list[int]:
        """What ends a title."""
        return self._encode([self.template.title_close])[1 if self._adds_bos else 0 :]

    def text_ids(self, text: str) -> list[int]:
        """Plain text -> ids, none of them special."""
        ids: list[int] = []
        for part in filter(None, self._letter.split(text)):
            ids += [self._letters[part]] if part in self._letters else self._plain_ids(part)
        return ids

    def _plain_ids(self, text: str) -> list[int]:
        encoding = self._plain.encode(text, add_special_tokens=False)
        spelled = [at for token, at in zip(encoding.ids, encoding.offsets, strict=True) if token in self._special_ids]
        # Where the vocabulary itself spells a special token, cut the spelling after its first character.
        cuts = [start + 1 for start, end in spelled if end - start > 1]
        if not cuts:
            return [token for token in encoding.ids if token not in self._special_ids]
        bounds = itertools.pairwise([0, *cuts, len(text)])
        return [token for start, end in bounds for token in self._plain_ids(text[start:end])]

    def _cut(self, text: str, max_tokens: int) -> str:
        """The start of the text that its first max_tokens tokens reach; a character of several tokens stays whole."""
        encoding = self._plain.encode(text, add_special_tokens=False)
        return text if len(encoding.ids) <= max_tokens else text[: encoding.offsets[max_tokens - 1][1]]

    def _expand(self, ids: list[int]) -> Prompt:
        return expand_placeholders(
            ids,
            image=(self._id("begin_of_image"), self._id("image_placeholder"), self._id("end_of_image")),
            title=(self._id("begin_of_history_title"), self._id("title_placeholder"), self._id("end_of_history_title")),
            tokens_per_image=self.config.image.tokens_per_history_picture,
            tokens_per_title=self.config.preference.tokens_per_title,
        )

    def _id(self, field: str) -> int:
        return self._special[getattr(self.template.tokens, field)]

    @property
    def _adds_bos(self) -> bool:
        """Whether the tokenizer itself puts begin-of-sentence before a text."""
        bos = self._special.get(self.template.tokens.begin_of_sentence)
        return bos is not None and bos in self._full.encode("", add_special_tokens=True).ids

    def _check_segments(self, source: str) -> None:
        """Tokenising between special tokens must equal tokenising the whole string, as the published flow does."""
        facts = PromptFacts("a b", ("c",), ("d",), 1)
        pieces = self._chat(facts, [self.template.answer.format(title="e f")])
        whole = "".join(p.text if isinstance(p, _Data) else p for p in pieces).strip()
        if self._encode(pieces) != self._full.encode(whole, add_special_tokens=True).ids:
            raise ModelError(f"{source}: text after a special token is tokenised differently; this tokenizer is not supported")


def expand_placeholders(
    ids: list[int],
    image: tuple[int, int, int],
    title: tuple[int, int, int],
    tokens_per_image: int,
    tokens_per_title: int,
) -> Prompt:
    """Each placeholder id (the middle of begin, placeholder, end) becomes begin, its slots, end.

    A slot's number is the history row that fills it: all pictures' tokens first, then all titles', as the fusion returns.
    """
    first_title_row = sum(i == image[1] for i in ids) * tokens_per_image
    next_row = {image[1]: 0, title[1]: first_title_row}
    items = {image[1]: (image, tokens_per_image), title[1]: (title, tokens_per_title)}
    out, slots = [], []
    for token in ids:
        if token not in items:
            out.append(token)
            slots.append(-1)
            continue
        (begin, placeholder, end), size = items[token]
        out += [begin, *[placeholder] * size, end]
        slots += [-1, *range(next_row[token], next_row[token] + size), -1]
        next_row[token] += size
    return Prompt(tuple(out), tuple(slots))


def _add_missing(tokenizer: Tokenizer, names: TokenNames) -> None:
    spellings = [getattr(names, field) for field in _ADDED] + list(_ADDED_SPELLINGS)
    for spelling in spellings:
        if tokenizer.token_to_id(spelling) is None:
            tokenizer.add_special_tokens([AddedToken(spelling, special=True, normalized=False)])


def _without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer for plain text: it knows no added token and adds none."""
    spec = json.loads(tokenizer.to_str())
    spec |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    return Tokenizer.from_str(json.dumps(spec))


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """What the vocabulary says for text that it cannot spell. It may be a special token; it is never markup."""
    model = json.loads(tokenizer.to_str())["model"]
    unknown = model.get("unk_token")
    return model.get("unk_id") if unknown is None else tokenizer.token_to_id(unknown)
