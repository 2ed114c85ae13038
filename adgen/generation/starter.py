"""A new, untrained model directory: random weights of a named size, and a tokenizer trained on a shop's titles.

Its pictures are noise. Training starts from it, and every step around a model can be run and measured before one is trained.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

from adgen.errors import ModelError
from adgen.generation.prompt import Prompter
from adgen.generation.template import Template, load_template
from adgen.model.checkpoint import save
from adgen.model.config import PRESETS, ModelConfig
from adgen.model.copying import COPYING_LAYERS, constant, start_copying
from adgen.model.decoder import Decoder
from adgen.model.initialize import initialize
from adgen.model.modules import ModelFacts, module_of
from adgen.model.uniadgen import UniAdGen

_ROLES = ("<|User|>", "<|Assistant|>")


def write_starter_model(directory: str | Path, texts: Iterable[str], size: str = "tiny", seed: int = 0) -> ModelConfig:
    """Write a model directory; the same texts, size and seed give the same files. ModelError: an unknown size."""
    if size not in PRESETS:
        raise ModelError(f"unknown size {size!r}; known are {', '.join(PRESETS)}")
    config = PRESETS[size]()
    template = load_template()
    tokenizer = train_tokenizer(texts, template, config.decoder.vocab_size)
    model = initialize(UniAdGen(config), seed)
    ease_learning(model, seed)
    save(model, directory)
    Prompter(tokenizer, template, config).save(directory)
    ModelFacts(modules={module_of(name): "untrained" for name in model.state_dict()}).save(directory)
    return config


@torch.no_grad()
def ease_learning(model: UniAdGen, seed: int = 0) -> None:
    """A better start than `initialize` for a model that is trained from scratch.

    The decoder's projections are drawn at fan-in scale: at a width of 192 a deviation of 0.02 is a quarter of that, and
    attention stays even for hundreds of steps (title loss after 200 steps 0.76 in the place of 0.90). What they add to the residual
    stream is as long as what is there. The decoder copies from its first step (`start_copying`). Embeddings of image tokens start
    from the codebook, where near codes look alike, and are as long as those of text, with the same constant: through a table of
    short rows and two projections they'd be a hundredth.
    """
    decoder = model.decoder
    generator = torch.Generator().manual_seed(seed)
    drawn = [part for part in decoder.layers.modules() if isinstance(part, nn.Linear)]
    aligner = [part for part in model.image_embedding.gen_aligner if isinstance(part, nn.Linear)]
    for linear in (*drawn, *aligner):
        linear.weight.copy_(torch.randn(linear.weight.shape, generator=generator) * linear.in_features**-0.5)
    start_copying(decoder, generator)
    _shorten_branches(decoder)
    codes = nn.functional.normalize(torch.randn(512, aligner[0].in_features, generator=generator), dim=-1)
    length = model.image_embedding.gen_aligner(codes).norm(dim=-1).mean()
    model.image_embedding.gen_embed.weight.copy_(model.image_tokenizer.codebook())
    aligner[-1].weight.mul_(decoder.embed_tokens.weight[:, 1:].norm(dim=-1).mean() / length)
    aligner[-1].bias[0] = constant(decoder)


def _shorten_branches(decoder: Decoder) -> None:
    """Outputs into the residual stream, but for those that copy: as in `initialize`, for embeddings of this length."""
    scale = decoder.embed_tokens.weight.square().mean().sqrt() * (2 * len(decoder.layers)) ** -0.5
    for index, layer in enumerate(decoder.layers):
        layer.mlp.down_proj.weight.mul_(scale)
        if index >= COPYING_LAYERS:
            layer.self_attn.o_proj.weight.mul_(scale)


def train_tokenizer(texts: Iterable[str], template: Template, vocab_size: int) -> Tokenizer:
    """A byte-level BPE over the texts and the template's own wording, special tokens last; any text can be spelled.

    Tags are learned apart from titles (the byte-level split keeps letters and punctuation apart), so that a title's end
    never melts into its closing tag. Chinese characters stand alone: between spaces there is a whole phrase, and a vocabulary of
    phrases (colour with pattern, one token) is one of rare tokens that nobody learns to copy. The template counts as often as
    a share of the texts, or its words are spelled by the letter where there are many.
    """
    texts = list(texts)
    special = [*template.tokens.model_dump().values(), *_ROLES]
    tokenizer = Tokenizer(models.BPE())
    alone = pre_tokenizers.Split(Regex(r"\p{Han}"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([alone, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special) - 16, initial_alphabet=alphabet, min_frequency=2, show_progress=False
    )
    wording = [template.user, template.negative, template.answer] * max(2, len(texts) // 100)
    tokenizer.train_from_iterator([*texts, *wording], trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return tokenizer
