"""A new, untrained model directory: random weights of a named size, and a tokenizer learned from a shop's titles.

What it paints is noise. It exists so that training has something to start from, and so that every step around a model
can be run and measured before one is trained.
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from adgen.errors import ModelError
from adgen.generation.prompt import Prompter
from adgen.generation.template import Template, load_template
from adgen.model.checkpoint import save
from adgen.model.config import PRESETS, ModelConfig
from adgen.model.initialize import initialize
from adgen.model.uniadgen import UniAdGen

_ROLES = ("<|User|>", "<|Assistant|>")


def write_starter_model(directory: str | Path, texts: Iterable[str], size: str = "tiny", seed: int = 0) -> ModelConfig:
    """Write a model directory; the same texts, size and seed give the same files. ModelError: an unknown size."""
    if size not in PRESETS:
        raise ModelError(f"unknown size {size!r}; known are {', '.join(PRESETS)}")
    config = PRESETS[size]()
    template = load_template()
    tokenizer = train_tokenizer(texts, template, config.decoder.vocab_size)
    save(initialize(UniAdGen(config), seed), directory)
    Prompter(tokenizer, template, config).save(directory)
    return config


def train_tokenizer(texts: Iterable[str], template: Template, vocab_size: int) -> Tokenizer:
    """A byte-level BPE over the texts and the template's own wording, special tokens last; any text can be spelled.

    Tags are learned apart from titles (the byte-level split keeps letters and punctuation apart), so that a title's end
    never melts into its closing tag.
    """
    special = [*template.tokens.model_dump().values(), *_ROLES]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special) - 16, initial_alphabet=alphabet, min_frequency=2, show_progress=False
    )
    tokenizer.train_from_iterator([*texts, *[template.user, template.negative, template.answer] * 2], trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return tokenizer
