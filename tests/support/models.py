"""Small real models and tokenizers for tests: real modules, real BPE, sizes that run in milliseconds."""

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from adgen.generation.prompt import Prompter
from adgen.generation.template import load_template
from adgen.model.config import DecoderConfig, ForegroundConfig, ImageTokenConfig, ModelConfig, PreferenceConfig
from adgen.model.initialize import initialize
from adgen.model.modules import ModelFacts, module_of
from adgen.model.uniadgen import UniAdGen

MARKUP = ("<|User|>", "<|Assistant|>")
CORPUS = (
    'a mug! <prompt>fresh mug!</prompt> <prompt>red lamp!</prompt> "steel, warm, 500ml" 红色 茶杯 新款',
    "Write a product title with the selling points. The customer has clicked the products. Answer with the title alone.",
)
# What a tokenizer may join, in order: words, tag pieces, and - where it may - a title's end with its closing tag.
MERGES = ["m u", "mu g", "p r", "pr o", "pro m", "prom p", "promp t", "< /", "l a", "la m", "lam p", "Ġ a"]
MERGES_ACROSS_TAGS = ["! </", "!</ prompt", "!</prompt >"]


def small_config(**changes) -> ModelConfig:
    """16 image tokens, three decoder layers, every module present."""
    config = ModelConfig(
        name="small",
        decoder=DecoderConfig(
            hidden_size=64, intermediate_size=96, num_layers=3, num_heads=4, num_key_value_heads=2,
            vocab_size=640, max_positions=800,
        ),
        image=ImageTokenConfig(
            codebook_size=64, base_channels=32, channel_multiplier=(1, 1, 1), num_res_blocks=1, latent_channels=16, head_size=48,
            image_size=16, history_size=8, history_source_size=32,
        ),
        preference=PreferenceConfig(num_heads=4, mask_layers=1, fusion_layers=1, tokens_per_image=4, tokens_per_title=6),
        foreground=ForegroundConfig(hidden_size=24, num_layers=1, num_heads=3, position_grid=5, condition_size=64, interval=2),
        history_items=4,
    )  # fmt: skip
    return config.model_copy(update=changes)


def small_model(seed: int = 0, **changes) -> UniAdGen:
    """A random model whose every path matters: weights larger than the initialiser's, no zeroed control."""
    model = initialize(UniAdGen(small_config(**changes)), seed).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed + 1)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "image_tokenizer" not in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
    return model


def bpe_tokenizer(merge_across_tags: bool = False) -> Tokenizer:
    """A byte-level BPE with the special tokens of the default template.

    merge_across_tags: "!</prompt>" is one token, as in vocabularies learned without a pre-tokenizer.
    """
    merges = [tuple(m.split(" ")) for m in MERGES + (MERGES_ACROSS_TAGS if merge_across_tags else [])]
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(m) for m in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not merge_across_tags)
    tokenizer.decoder = decoders.ByteLevel()
    return _with_special_tokens(tokenizer)


def unigram_tokenizer() -> Tokenizer:
    """A Unigram tokenizer: the other family, whose best segmentation can change far before an edit."""
    words = {"mug": -4.0, "mug!": -4.5, "</": -3.0, "prompt": -4.0, "prompt>": -4.2, "!</": -3.5, "lamp": -4.0, "a\u0120": -3.0}
    pieces = [(piece, -8.0 - i / 100) for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))] + list(words.items())
    tokenizer = Tokenizer(models.Unigram(pieces))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _with_special_tokens(tokenizer)


def _with_special_tokens(tokenizer: Tokenizer) -> Tokenizer:
    names = [*load_template().tokens.model_dump().values(), *MARKUP]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return tokenizer


def small_prompter(tokenizer: Tokenizer | None = None, config: ModelConfig | None = None) -> Prompter:
    """Prompts of the default template for a small model."""
    return Prompter(tokenizer or bpe_tokenizer(), load_template(), config or small_config())


def save_small_model(directory: Path, seed: int = 0, num_layers: int = 3) -> UniAdGen:
    """A whole model directory: weights, config, tokenizer, template. Many layers make it slow, and hardly larger."""
    from adgen.model.checkpoint import save

    decoder = small_config().decoder.model_copy(update={"num_layers": num_layers})
    model = small_model(seed, decoder=decoder)
    save(model, directory)
    small_prompter(config=model.config).save(directory)
    ModelFacts(modules={module_of(name): "trained" for name in model.state_dict()}).save(directory)  # as good as trained, to tests
    return model


@torch.no_grad()
def script_titles(model: UniAdGen, chain: dict[int, int]) -> UniAdGen:
    """Make the model's text head follow `chain` from token to token: token embeddings outweigh what attention adds, so
    the next title token is chosen, while pictures still depend on everything that was read."""
    embeddings = model.decoder.embed_tokens.weight
    embeddings.mul_(30 / embeddings.norm(dim=-1, keepdim=True))
    model.decoder.lm_head.weight.zero_()
    for token, following in chain.items():
        model.decoder.lm_head.weight[following] += embeddings[token]
    return model
