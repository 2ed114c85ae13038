"""Requests whose prompts have exactly the length that is to be measured."""

import torch

from adgen.errors import SettingsError
from adgen.generation.generate import Request
from adgen.generation.prompt import Prompter, PromptFacts
from adgen.generation.starter import train_tokenizer
from adgen.generation.template import load_template
from adgen.model.config import ModelConfig

_HISTORY_TITLE = "red ceramic mug with a long handle, dishwasher safe, 350 ml, gift box"
_FILLERS = (" mug", " a", ",", "7")  # a tokenizer has one of them as a single token, after any text


def bench_prompter(config: ModelConfig) -> Prompter:
    """The default template with a small tokenizer, and no limit to a product's title."""
    template = load_template().model_copy(update={"max_product_title_tokens": config.decoder.max_positions})
    return Prompter(train_tokenizer([_HISTORY_TITLE, " mug a, 7"] * 4, template, config.decoder.vocab_size), template, config)


def bench_requests(config: ModelConfig, prompter: Prompter, batch: int, prompt_tokens: int) -> list[Request]:
    """`batch` requests of different products, histories and seeds. Each has exactly prompt_tokens tokens before its first
    image token, when its title stays empty: as many clicked products as fit, and words for the rest.

    SettingsError: fewer tokens than the template alone takes.
    """
    shortest, one_item = (_length(prompter, "", items) for items in (0, 1))
    if prompt_tokens < shortest:
        raise SettingsError(f"prompt-tokens {prompt_tokens}: the template alone takes {shortest}")
    items = min(config.history_items, (prompt_tokens - shortest) // (one_item - shortest))
    title = _title_of(prompter, prompt_tokens, items)
    generator = torch.Generator().manual_seed(0)
    side, codes = config.foreground.condition_size, (items, config.image.tokens_per_history_picture)
    return [
        Request(
            product_title=title,
            seed=1000 + row,
            history_titles=(_HISTORY_TITLE,) * items,
            history_codes=torch.randint(0, config.image.codebook_size, codes, generator=generator),
            condition=torch.rand(3, side, side, generator=generator) * 2 - 1,
        )
        for row in range(batch)
    ]


def _title_of(prompter: Prompter, prompt_tokens: int, items: int) -> str:
    """Words that fill a prompt up to its length."""
    title = "mug"
    for filler in _FILLERS:
        one = _length(prompter, title + filler, items) - _length(prompter, title, items)
        room = prompt_tokens - _length(prompter, title, items)
        if one < 1 or room < 0:
            continue
        title += filler * (room // one)
    missing = prompt_tokens - _length(prompter, title, items)
    if missing:
        raise SettingsError(f"prompt-tokens {prompt_tokens}: the words at hand make {prompt_tokens - missing}; take another number")
    return title


def _length(prompter: Prompter, title: str, items: int) -> int:
    return len(prompter.picture_prompt(PromptFacts(title, (), (_HISTORY_TITLE,) * items, items), ""))
