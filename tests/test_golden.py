"""Our modules against the published model's numbers: every `out/*` of every golden, at whatever sizes the goldens have.

ADGEN_GOLDEN names a folder of goldens, by default tests/golden. The format is described in each JSON.
"""

import copy
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from adgen.generation.generate import PictureStep, paint, prefill
from adgen.generation.layers import StepLayers
from adgen.generation.linears import preparation, prepare_heads
from adgen.generation.painting import Painter
from adgen.generation.pictures import condition_pixels, square_pixels
from adgen.generation.prefill import read_prompts
from adgen.generation.prompt import expand_placeholders
from adgen.generation.sampling import guided, sample
from adgen.generation.sampling_settings import SamplingSettings
from adgen.generation.slots import Slots
from adgen.images import on_white, place_product
from adgen.model.checkpoint import fill, on_meta
from adgen.model.config import (
    DecoderConfig,
    ForegroundConfig,
    ImageTokenConfig,
    LoRAConfig,
    ModelConfig,
    PreferenceConfig,
)
from adgen.model.names import published_name
from adgen.model.pbs import PBS_CONFIG_FILE, PBS_FILE, PBSEncoder, load_pbs, pbs, preprocess
from adgen.model.pbs_config import PBSConfig
from adgen.model.positions import resample_positions
from adgen.model.uniadgen import UniAdGen
from adgen.shop.history import published_order, published_weights

FOLDER = Path(os.environ.get("ADGEN_GOLDEN") or Path(__file__).parent / "golden")
TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-3  # relative, as docs/design.md 6.14 says


class Golden:
    """One golden: its JSON and tensors, and the check that every expected output was compared."""

    def __init__(self, name: str):
        self.facts = json.loads((FOLDER / f"{name}.json").read_text())
        self.tensors = load_file(FOLDER / f"{name}.safetensors")
        self.sizes = self.facts.get("config", {})
        self.unchecked = {key[4:] for key in self.tensors if key.startswith("out/")}

    def input(self, name: str) -> torch.Tensor:
        return self.tensors["in/" + name]

    def out(self, name: str) -> torch.Tensor:
        return self.tensors["out/" + name]

    def weights(self, prefix: str = "") -> dict[str, torch.Tensor]:
        return {prefix + key[8:]: value.float() for key, value in self.tensors.items() if key.startswith("weights/")}

    def check(self, name: str, actual: torch.Tensor, where: torch.Tensor | None = None) -> None:
        """Compare `actual` to out/name, at the positions `where` alone if given."""
        expected = self.out(name)
        assert actual.shape == expected.shape, name
        if where is not None:
            actual, expected = actual[where.bool()], expected[where.bool()]
        if expected.is_floating_point():
            torch.testing.assert_close(actual.float(), expected, atol=TOLERANCE, rtol=0, msg=lambda m: f"{name}: {m}")
        else:
            assert torch.equal(actual.to(expected.dtype), expected), name
        self.unchecked.discard(name)

    def done(self) -> None:
        assert not self.unchecked, f"never compared: {sorted(self.unchecked)}"


def model_config(sizes: dict, facts: dict | None = None, **changes) -> ModelConfig:
    """A ModelConfig from a golden's JSON; parts that a golden leaves out get the smallest sizes that fit."""
    facts = facts or {}
    vq = sizes.get("vq")
    smallest_dino = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "image_size": 28, "patch_size": 14}
    dino = sizes.get("dino", smallest_dino)
    if vq:
        factor = 2 ** (len(vq["mult"]) - 1)
        image = ImageTokenConfig(
            codebook_size=vq["codebook"], code_size=vq["embed"], base_channels=vq["ch"], channel_multiplier=vq["mult"],
            latent_channels=vq["z"], head_size=facts.get("head_size", sizes["D"]),
            image_size=round(sizes["img_tokens"] ** 0.5) * factor, history_size=round(sizes["hist_tok"] ** 0.5) * factor,
        )  # fmt: skip
    else:
        image = ImageTokenConfig(
            codebook_size=8, base_channels=32, channel_multiplier=(1,), latent_channels=8, head_size=8,
            image_size=round(sizes["img_tokens"] ** 0.5), history_size=2,
        )  # fmt: skip
    fusion_layers = facts.get("fusion_layers", {"visual": 1, "text": 1, "dual": 1})
    preference = PreferenceConfig(
        num_heads=facts.get("n_head_fusion", 1), mask_layers=fusion_layers["visual"],
        text_mask_layers=fusion_layers["text"], fusion_layers=fusion_layers["dual"],
        tokens_per_image=facts.get("n_token_img", 4), tokens_per_title=facts.get("n_token_txt", 4),
        feed_forward_factor=facts.get("ff_mult", 4),
    )  # fmt: skip
    return ModelConfig(
        decoder=DecoderConfig(
            hidden_size=sizes["D"], intermediate_size=sizes["inter"], num_layers=sizes["layers"], num_heads=sizes["heads"],
            num_key_value_heads=sizes.get("kv_heads", sizes["heads"]), vocab_size=sizes["vocab"],
            max_positions=sizes["max_pos"], rms_norm_eps=facts.get("rms_norm_eps", 1e-6),
            rope_theta=facts.get("rope_theta", 10000.0),
        ),
        image=image,
        preference=preference,
        foreground=ForegroundConfig(
            hidden_size=dino["hidden_size"], num_layers=dino["num_hidden_layers"], num_heads=dino["num_attention_heads"],
            patch_size=dino["patch_size"], position_grid=dino["image_size"] // dino["patch_size"],
            mlp_ratio=facts.get("dinov2", {}).get("mlp_ratio", 4), condition_size=sizes["img_hw"],
            interval=sizes["interval"],
        ),
        **changes,
    )  # fmt: skip


def build(config: ModelConfig, weights: dict[str, torch.Tensor]) -> UniAdGen:
    """The model with a golden's weights; what the golden leaves out is zero."""
    model = on_meta(config)
    filled = fill(model, weights.items(), "cpu", torch.float32, source="golden")
    rest = {published_name(k): torch.zeros(v.shape) for k, v in model.state_dict().items() if published_name(k) not in filled}
    fill(model, rest.items(), "cpu", torch.float32, source="zeros")
    return model.eval()


@pytest.fixture(scope="module")
def whole_model() -> UniAdGen:
    golden = Golden("model")
    weights = golden.weights()
    facts = golden.facts | {"head_size": weights["gen_head.output_mlp_projector.weight"].shape[0]}
    config = model_config(golden.sizes, facts)
    model = on_meta(config)
    filled = fill(model, weights.items(), "cpu", torch.float32, source="golden")
    assert filled == {published_name(key) for key in model.state_dict()}, "the whole model's golden fills every weight"
    return model.eval()


class Inputs:
    """Records what each module of interest received."""

    def __init__(self, modules: dict[str, torch.nn.Module]):
        self.seen: dict[str, torch.Tensor] = {}
        self._handles = [
            module.register_forward_pre_hook(lambda _, args, name=name: self.seen.__setitem__(name, args[0].detach()))
            for name, module in modules.items()
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self._handles:
            handle.remove()


# -- preference ------------------------------------------------------------------------------------------------------


def test_preference_outputs_and_gradients():
    golden = Golden("preference")
    weights = golden.weights()
    sizes = golden.sizes
    count = lambda prefix: len({k.split(prefix)[1].split(".")[0] for k in weights if prefix in k})  # noqa: E731
    config = PreferenceConfig(
        num_heads=sizes["heads"], mask_layers=count("visual_mask_generator.base_transformer.transformer_layers."),
        text_mask_layers=count("text_mask_generator.base_transformer.transformer_layers."),
        fusion_layers=count("cross_modal_layers."), tokens_per_image=sizes["n_tok_img"], tokens_per_title=sizes["n_tok_txt"],
        feed_forward_factor=sizes["ff"] // sizes["D"], keep_rate=golden.facts["token_keep_rate"],
    )  # fmt: skip
    from adgen.model.preference import Preference

    module = Preference(sizes["D"], config).eval()
    module.load_state_dict(weights)
    images, titles = (golden.input(name).clone().requires_grad_() for name in ("image_tokens", "title_tokens"))

    for kind, items, mask_module in (
        ("visual", images, module.visual_mask_generator),
        ("text", titles, module.text_mask_generator),
    ):
        layer = mask_module.similarity_mask_layer
        base = mask_module.base_transformer(items)
        similarity = layer.similarity(base, items)
        golden.check(f"{kind}_base", base)
        golden.check(f"{kind}_similarity", similarity)
        golden.check(f"{kind}_mask", layer.mask(similarity, None))
        golden.check(f"{kind}_out", mask_module(items))
    blocks = module.visual_mask_generator.base_transformer.transformer_layers
    with Inputs({f"visual_layer{i}": block for i, block in enumerate(blocks)}) as inputs:
        module.visual_mask_generator(images)
        golden.check("visual_embedded", inputs.seen["visual_layer0"])
        golden.check("visual_layer0", blocks[0](inputs.seen["visual_layer0"]))

    fusion = module.dual_modality_fusion_encoder
    x = fusion.embed(golden.out("visual_out"), golden.out("text_out"))
    golden.check("dual_embedded", x)
    for i, layer in enumerate(fusion.cross_modal_layers):
        x = layer(x)
        golden.check(f"dual_layer{i}", x)

    fused = torch.cat(module(images, titles), dim=1)
    golden.check("fused", fused)
    loss = (fused * golden.input("loss_weights")).sum()
    loss.backward()
    # The loss sums thousands of terms: relative, like a gradient.
    torch.testing.assert_close(loss.detach()[None], golden.out("loss"), rtol=GRADIENT_TOLERANCE, atol=TOLERANCE)
    golden.unchecked.discard("loss")
    gradients = {"grad_image_tokens": images.grad, "grad_title_tokens": titles.grad}
    gradients |= {f"grad/{name}": parameter.grad for name, parameter in module.named_parameters()}
    for name in sorted(golden.unchecked):
        expected = golden.out(name)
        difference = (gradients[name] - expected).abs().max() / expected.abs().max()
        assert difference < GRADIENT_TOLERANCE, f"{name}: {difference}"
        golden.unchecked.discard(name)
    golden.done()


# -- foreground ------------------------------------------------------------------------------------------------------


def test_foreground_stepped_and_whole():
    golden = Golden("foreground")
    sizes = golden.sizes
    model = build(model_config(sizes, golden.facts), golden.weights("language_model.model."))
    path, decoder = model.foreground, model.decoder
    pixels = golden.input("condition_pixels")
    strength = golden.facts["control_strength_eval"]

    with torch.no_grad():
        golden.check("resized_pixels", path.resized(pixels))
        golden.check("dino_features", path.features(pixels))
        golden.check("adapter_mlp", path.adapter_mlp(path.features(pixels)))
        tokens = path.condition_tokens(pixels)
        golden.check("condition_token", tokens)
        golden.check("condition_token_dropped", path.condition_tokens(pixels, torch.ones(len(pixels), dtype=torch.bool)))
        additions = path(pixels)
        for k, addition in enumerate(additions):
            golden.check(f"condition_layer{k}", addition)

        check_stepped(golden, decoder, additions * strength)

        mask = golden.input("train_attention_mask")
        with Inputs({f"train_hs{i}": layer for i, layer in enumerate(decoder.layers)}) as inputs:
            hidden = decoder(golden.input("train_embeds"), mask, additions * golden.facts["control_strength_train"])
        golden.check("train_last_hidden", hidden, mask)
        for name in [n for n in golden.unchecked if n.startswith("train_hs")]:
            golden.check(name, inputs.seen.get(name, hidden), mask)

        prefix, steps = golden.input("prefix_embeds"), golden.input("step_embeds")
        both = torch.cat((prefix, steps[:, 1:]), dim=1)
        mask = golden.input("attention_mask")[:, : both.shape[1]]
        golden.check("nocond_last_hidden", decoder(both, mask), mask)
    golden.done()


def check_stepped(golden: Golden, decoder, additions: torch.Tensor) -> None:
    """The cached path: rows without their padding, interleaved conditional and unconditional, one addition a step."""
    prefix, steps = golden.input("prefix_embeds"), golden.input("step_embeds")
    mask = golden.input("attention_mask")[:, : prefix.shape[1]]
    rows, length = mask.shape
    additions = additions.repeat_interleave(2, dim=1)
    cache = decoder.new_cache(rows, length + golden.sizes["steps"], "cpu", torch.float32)
    unpadded = [embeds[keep.bool()] for embeds, keep in zip(prefix, mask, strict=True)]
    padded = torch.nn.utils.rnn.pad_sequence(unpadded, batch_first=True)
    lengths = mask.sum(1)
    for step in range(golden.sizes["steps"]):
        with Inputs({f"hs{i}": layer for i, layer in enumerate(decoder.layers)}) as inputs:
            if step == 0:
                hidden = decoder.extend(padded, cache, num_new=lengths)
            else:
                hidden = decoder.extend(steps[:, step : step + 1], cache, additions=additions[:, :, step - 1 : step])
        outputs = {f"eval_step{step}_{name}": value for name, value in inputs.seen.items()}
        outputs |= {f"eval_step{step}_last_hidden": hidden, f"eval_step{step}_hs{len(decoder.layers)}": hidden}
        for name in outputs.keys() & golden.unchecked:
            if step:
                golden.check(name, outputs[name])
            else:
                golden.check(name, left_padded(outputs[name], mask), mask)


def left_padded(right_padded: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Rows (B, T', D) that start at 0, moved to where a left-padded mask (B, T) has them."""
    out = right_padded.new_zeros(*mask.shape, right_padded.shape[-1])
    for row, keep in enumerate(mask.bool()):
        out[row, keep] = right_padded[row, : int(keep.sum())]
    return out


# -- inputs ----------------------------------------------------------------------------------------------------------


def test_inputs_batching_history_and_embeddings(whole_model):
    golden = Golden("inputs")
    sizes, ids = golden.sizes, golden.facts["token_ids"]
    tokens_per_title = sizes["tt"]
    image = tuple(ids[n] for n in ("<begin_of_image>", "<image_placeholder>", "<end_of_image>"))
    title = tuple(ids[n] for n in ("<begin_of_history_title>", "<title_placeholder>", "<end_of_history_title>"))
    pad = next(i for name, i in ids.items() if "pad" in name)
    prompts = [
        expand_placeholders(golden.input(f"prompt_ids{b}").tolist(), image, title, sizes["hist_tok"], tokens_per_title)
        for b in range(len(golden.facts["titles"]))
    ]
    length = max(map(len, prompts))
    batch = torch.tensor([[pad] * (length - len(p)) + list(p.ids) for p in prompts])
    slots = torch.tensor([[-1] * (length - len(p)) + list(p.slots) for p in prompts])
    golden.check("batch_input_ids", batch)
    golden.check("batch_attention_mask", torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts]))
    num_image_rows = sizes["nimg"] * sizes["hist_tok"]
    golden.check("batch_images_seq_mask", (slots >= 0) & (slots < num_image_rows))
    golden.check("batch_titles_seq_mask", slots >= num_image_rows)
    rows = len(prompts)
    golden.check("batch_images_emb_mask", torch.ones(rows, sizes["nimg"], sizes["hist_tok"], dtype=torch.bool))
    golden.check("batch_titles_emb_mask", torch.ones(rows, sizes["ntitle"], tokens_per_title, dtype=torch.bool))

    title_ids = torch.tensor(
        [
            [([int(t) for t in text.split()] + [pad] * tokens_per_title)[:tokens_per_title] for text in row]
            for row in golden.facts["titles"]
        ]
    )
    golden.check("batch_title_tokens", title_ids)
    pictures = golden.input("history_uint8")
    pixels = torch.stack([torch.stack([square_pixels(Image.fromarray(p.numpy()), sizes["pix"]) for p in row]) for row in pictures])
    golden.check("batch_pixel_values", pixels)

    with torch.no_grad():
        codes = whole_model.image_tokenizer.encode(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
        golden.check("history_indices", codes)
        images = whole_model.image_embedding(codes)
        golden.check("history_image_embeds", images)
        titles = whole_model.decoder.embed_tokens(title_ids)
        for kind, items, module in (
            ("visual", images, whole_model.preference.visual_mask_generator),
            ("text", titles, whole_model.preference.text_mask_generator),
        ):
            similarity = module.similarity_mask_layer.similarity(module.base_transformer(items), items)
            golden.check(f"{kind}_similarity", similarity)
            golden.check(f"{kind}_mask", module.similarity_mask_layer.mask(similarity, None))
            golden.check(f"{kind}_out", module(items))
        history = torch.cat(whole_model.embed_history(codes, title_ids), dim=1)
        golden.check("fused", history)
        golden.check("inputs_embeds", whole_model.embed_prompt(batch, slots, history))
        untitled = torch.cat(whole_model.embed_history(codes, title_ids[:, :0]), dim=1)
        no_title_slots = slots.where(slots < num_image_rows, -1)
        golden.check("inputs_embeds_notitle", whole_model.embed_prompt(batch, no_title_slots, untitled))
    golden.done()


# -- text and picture ------------------------------------------------------------------------------------------------


def test_text_greedy_tokens_and_scores(whole_model):
    golden = Golden("text")
    embeds, mask = golden.input("inputs_embeds"), golden.input("attention_mask")
    eos, pad, num_new = golden.facts["eos"], golden.facts["pad"], golden.facts["max_new_tokens"]
    lengths = mask.sum(1)
    positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)
    golden.check("position_ids_first_step", positions)

    with torch.no_grad():
        golden.check("prefill_logits", whole_model.text_logits(whole_model.decoder(embeds, mask)), mask)
        cache = whole_model.decoder.new_cache(len(embeds), embeds.shape[1] + num_new, "cpu", torch.float32)
        hidden = prefill(whole_model, cache, [e[m.bool()] for e, m in zip(embeds, mask, strict=True)])
        # A row's cache starts at its first real token, which is the published position 0.
        assert torch.equal(cache.lengths, lengths)
        assert torch.equal(lengths - 1, positions[:, -1])
        tokens, scores = [], []
        running = torch.ones(len(embeds), dtype=torch.bool)
        while running.any() and len(tokens) < num_new:  # the published loop stops once every row has ended
            scores.append(whole_model.text_logits(hidden))
            chosen = sample(scores[-1], temperature=0, noise=None).where(running, torch.tensor(pad))
            tokens.append(chosen)
            running &= chosen != eos
            hidden = whole_model.decoder.extend(whole_model.decoder.embed_tokens(chosen)[:, None], cache)[:, 0]
    golden.check("tokens", torch.stack(tokens, dim=1))
    golden.check("scores", torch.stack(scores, dim=1))
    golden.done()


def test_generate_guided_picture(whole_model):
    golden = Golden("generate")
    conditional, mask = golden.input("cond_embeds"), golden.input("cond_attention_mask")
    negative_ids, negative_mask = golden.input("neg_ids"), golden.input("neg_attention_mask")
    num_tokens, rows = golden.out("tokens").shape[1], len(conditional)
    settings = SamplingSettings(picture_temperature=0, guidance=golden.facts["cfg_weight"])

    with torch.no_grad():
        negative = whole_model.decoder.embed_tokens(negative_ids)
        golden.check("interleaved_embeds", torch.stack((conditional, negative), dim=1).flatten(0, 1))
        cache = whole_model.decoder.new_cache(2 * rows, conditional.shape[1] + num_tokens, "cpu", torch.float32)
        embeds = [e[m.bool()] for e, m in zip(torch.cat((conditional, negative)), torch.cat((mask, negative_mask)), strict=True)]
        hidden = prefill(whole_model, cache, embeds)
        additions = whole_model.foreground(golden.input("condition_pixels")) * settings.control_strength
        steps: list[PictureStep] = list(
            paint(whole_model, cache, hidden, additions, torch.zeros(rows, dtype=torch.int64), settings)
        )
        codes = torch.stack([step.codes for step in steps], dim=1)
        logits = {name: torch.stack([getattr(s, name) for s in steps], dim=1) for name in ("conditional", "unconditional")}
        golden.check("logits_cond", logits["conditional"])
        golden.check("logits_uncond", logits["unconditional"])
        golden.check("logits_cfg", guided(logits["conditional"], logits["unconditional"], settings.guidance))
        golden.check("tokens", codes)
        golden.check("decoded_pixels", whole_model.image_tokenizer.decode(codes, tuple(golden.facts["grid"])))
    # The published loop feeds prompt and all tokens but the last, at consecutive positions; so does ours, padding left out.
    fed = cache.lengths[:rows] + (mask == 0).sum(1)
    assert all(torch.equal(torch.arange(int(n)), golden.out("position_ids")) for n in fed)
    golden.unchecked.discard("position_ids")
    golden.done()


def stepped(model: UniAdGen, num_slots: int, capacity: int) -> tuple[UniAdGen, StepLayers, Slots]:
    """The engine's parts around a copy of the model, whose layers they take."""
    model = copy.deepcopy(model)
    prepare = preparation("same", num_rows=2 * num_slots)
    layers = StepLayers(model.decoder, prepare)
    prepare_heads(model, prepare)
    slots = Slots(model.config, layers, num_slots, capacity, torch.float32, torch.float32)
    slots.start([0] * num_slots)
    return model, layers, slots


def test_the_engine_writes_the_golden_text(whole_model):
    golden = Golden("text")
    embeds, mask = golden.input("inputs_embeds"), golden.input("attention_mask")
    eos, num_new = golden.facts["eos"], golden.facts["max_new_tokens"]
    with torch.inference_mode():
        model, layers, slots = stepped(whole_model, len(embeds), embeds.shape[1] + num_new)
        hidden = read_prompts(layers, slots, [e[m.bool()] for e, m in zip(embeds, mask, strict=True)])
        tokens, scores = [], []
        for _ in range(golden.out("tokens").shape[1]):
            scores.append(model.text_logits(hidden))
            tokens.append(scores[-1].argmax(-1).where(slots.conditional.active, torch.tensor(golden.facts["pad"])))
            slots.conditional.active &= tokens[-1] != eos
            hidden = layers.step(model.decoder.embed_tokens(tokens[-1]), (slots.conditional,))
    golden.check("tokens", torch.stack(tokens, dim=1))
    # A row that has ended waits, and what comes out for it means nothing.
    ended = torch.stack(tokens, dim=1).eq(eos).cumsum(1) - torch.stack(tokens, dim=1).eq(eos).long() > 0
    golden.check("scores", torch.stack(scores, dim=1), ~ended)


def test_the_engine_paints_the_golden_picture(whole_model):
    """A slot at a time: the golden's rows have negative prompts of their own, and an engine's rows share one."""
    golden = Golden("generate")
    rows, num_tokens = golden.out("tokens").shape
    settings = SamplingSettings(picture_temperature=0, guidance=golden.facts["cfg_weight"])
    painted = []
    for row in range(rows):
        embeds = golden.input("cond_embeds")[row][golden.input("cond_attention_mask")[row].bool()]
        negative = golden.input("neg_ids")[row][golden.input("neg_attention_mask")[row].bool()]
        with torch.inference_mode():
            model, layers, slots = stepped(whole_model, 1, len(embeds) + num_tokens)
            conditional = read_prompts(layers, slots, [embeds])
            unconditional = slots.share_negative_prompt(model.decoder.embed_tokens(negative))
            pixels = golden.input("condition_pixels")[row : row + 1]
            slots.additions.copy_(model.foreground(pixels) * settings.control_strength)
            hidden = torch.cat((conditional, unconditional[None]))
            painted.append(Painter(model, layers, slots, settings).paint(hidden, with_additions=True))
    golden.check("tokens", torch.cat(painted))


# -- parts -----------------------------------------------------------------------------------------------------------


def test_vq_codes_and_pictures():
    golden = Golden("vq")
    sizes = golden.sizes
    factor = 2 ** (len(sizes["mult"]) - 1)
    assert factor == golden.facts["factor"]
    base = {"D": 32, "inter": 8, "layers": 1, "heads": 1, "vocab": 8, "max_pos": 8, "interval": 1, "img_tokens": 16, "img_hw": 64}
    config = model_config(base)
    image = ImageTokenConfig(
        codebook_size=sizes["codebook"], code_size=sizes["embed"], base_channels=sizes["ch"], channel_multiplier=sizes["mult"],
        num_res_blocks=golden.facts["num_res_blocks"], latent_channels=sizes["z"], head_size=8,
        image_size=4 * factor, history_size=factor,
    )  # fmt: skip
    tokenizer = build(config.model_copy(update={"image": image}), golden.weights("gen_vision_model.")).image_tokenizer
    grid = tuple(side // factor for side in sizes["hw"])
    entry = lambda codes: tokenizer.codebook()[codes].unflatten(1, grid).permute(0, 3, 1, 2)  # noqa: E731
    with torch.no_grad():
        pixels, codes = golden.input("pixels"), golden.input("codes")
        golden.check("encoder_out", tokenizer.vqvae.encoder(pixels))
        golden.check("quant_conv", tokenizer.latents(pixels))
        golden.check("indices", tokenizer.encode(pixels))
        golden.check("quantized", entry(tokenizer.encode(pixels)))
        golden.check("codebook_entry", entry(codes))
        golden.check("decoded_codes", tokenizer.decode(codes, grid))
        golden.check("reconstruction", tokenizer.decode(golden.out("indices"), grid))
    golden.done()


def test_lora_kept_and_merged():
    from adgen.model.lora import merge_lora

    golden = Golden("lora")
    lora = LoRAConfig(rank=golden.sizes["r"], alpha=golden.sizes["alpha"])
    weights = golden.weights()
    base = build(model_config(golden.sizes), {k: v for k, v in weights.items() if "lora_" not in k})
    model = build(model_config(golden.sizes, lora=lora), weights)
    with torch.no_grad():
        logits = lambda m: m.text_logits(m.decoder(m.decoder.embed_tokens(golden.input("input_ids"))))  # noqa: E731
        golden.check("logits_base", logits(base))
        golden.check("logits_lora", logits(model))
        merge_lora(model.decoder)
        golden.check("logits_lora", logits(model))
    assert not any("lora" in name for name in model.state_dict())
    golden.done()


def test_product_preprocess():
    golden = Golden("product_preprocess")
    for i, case in enumerate(golden.facts["cases"]):
        rgba = Image.fromarray(golden.input(f"rgba{i}").numpy(), "RGBA")
        assert list(rgba.size) == case["size_wh"]
        placed, box = place_product(rgba, case["max_ratio"])
        assert list(box) == case["adjusted_bbox"]
        golden.check(f"adjusted{i}", torch.from_numpy(np.array(placed)))
        white = on_white(placed).resize((512, 512), Image.Resampling.BICUBIC)
        golden.check(f"white512_s8_{i}", torch.from_numpy(np.array(white)[::8, ::8]))
        resized = placed.resize((512, 512), Image.Resampling.BICUBIC)
        golden.check(f"trans_alpha512_s8_{i}", torch.from_numpy(np.array(resized)[::8, ::8]))
        pixels = condition_pixels(rgba, case["max_ratio"], ForegroundConfig(condition_size=384))
        golden.check(f"control384_s6_{i}", pixels[:, ::6, ::6])
    golden.done()


@pytest.mark.slow
def test_history_sampling_published_order():
    golden = json.loads((FOLDER / "history_sampling.json").read_text())
    for case in golden["cases"]:
        given, expected = case["inputs"], case["output"]
        arguments = (given["titles"], given["similarities"], given["k"], given["gt_title"], given["seed"])
        if case["weights"] is not None:
            np.testing.assert_allclose(published_weights(given["similarities"]), case["weights"], rtol=1e-12, atol=0)
        if expected["error"]:
            with pytest.raises(ValueError, match=re.escape(expected["error"].removeprefix("ValueError: "))):
                published_order(*arguments)
            continue
        selected = published_order(*arguments)
        assert selected == expected["selected"], case["name"]
        assert [given["titles"][i] for i in selected] == expected["titles"]
    statistics = golden["statistics"]
    np.testing.assert_allclose(published_weights(statistics["similarities"]), statistics["weights"], rtol=1e-12)
    clicks = len(statistics["similarities"])
    draws = np.array(
        [
            published_order([""] * clicks, statistics["similarities"], statistics["k"], seed=seed)
            for seed in range(statistics["draws"])
        ]
    )
    for drawn, expected in ((draws[:, 0], "first_pick_freq"), (draws.ravel(), "inclusion_freq")):
        frequency = np.bincount(drawn, minlength=clicks) / len(draws)
        np.testing.assert_allclose(frequency, statistics[expected], atol=1e-9, err_msg=expected)


def pbs_config(golden: Golden) -> PBSConfig:
    sizes = golden.sizes
    return PBSConfig(
        image_size=sizes["img"], patch_size=sizes["patch"], hidden_size=sizes["D"], num_layers=sizes["depth"],
        num_heads=sizes["heads"], mlp_ratio=golden.facts["mlp_ratio"], feature_size=sizes["out"],
    )  # fmt: skip


def test_pbs_features_and_preprocessing():
    golden = Golden("pbs")
    encoder = PBSEncoder(pbs_config(golden)).eval()
    missing = encoder.load_state_dict(golden.weights(), strict=False)
    assert missing.missing_keys in ([], ["compress_layer.1.num_batches_tracked"])
    assert not missing.unexpected_keys
    with torch.no_grad():
        images = golden.input("images")
        golden.check("tokens_embedded", encoder.embed(images))
        golden.check("cls_normed", encoder.class_token(images))
        features = encoder(images)
        golden.check("features", features)
        golden.check("features_nonnative", encoder(golden.input("images_nonnative")))
        golden.check("pair_cosine", torch.stack([pbs(features, f.expand_as(features)) for f in features]))
    array = golden.input("preprocess_uint8").numpy()
    picture = Image.fromarray(array)
    if array.shape[:2] != (300, 340):
        picture = picture.resize((340, 300), Image.Resampling.BICUBIC)
    pixels = preprocess(picture, PBSConfig())
    golden.check("preprocessed_stats", torch.stack((pixels.mean((1, 2)), pixels.std((1, 2)))))
    golden.check("preprocessed_crop", pixels[:, 100:116, 60:76])
    golden.done()


@pytest.mark.parametrize("kind", ["directory", "published"])
def test_both_loaders_of_pbs_give_the_golden_features(kind, tmp_path):
    golden = Golden("pbs")
    config, path = pbs_config(golden), tmp_path / "checkpoint.pth"
    if kind == "published":
        prefixed = golden.weights("module.base_encoder.") | golden.weights("module.momentum_encoder.")
        torch.save({"model": prefixed, "epoch": 1}, path)
        encoder = load_pbs(path, config)
    else:
        save_file(golden.weights(), tmp_path / PBS_FILE)
        (tmp_path / PBS_CONFIG_FILE).write_text(config.model_dump_json())
        encoder = load_pbs(tmp_path)
    with torch.no_grad():
        golden.check("features", encoder(golden.input("images")))


def test_every_golden_of_the_folder_has_a_test():
    names = {json.loads(p.read_text())["golden"].split(" ")[0] for p in FOLDER.glob("*.json")}
    known = {
        "preference",
        "foreground",
        "model",
        "inputs",
        "text",
        "generate",
        "vq",
        "lora",
        "product_preprocess",
        "history",
        "pbs",
    }
    assert names <= known, names - known


def test_position_resampling_is_not_the_librarys():
    """If transformers' own resampling ever agreed, ours could go."""
    table = torch.randn(1, 1 + 37 * 37, 8, generator=torch.Generator().manual_seed(0))
    theirs = F.interpolate(table[:, 1:].unflatten(1, (37, 37)).permute(0, 3, 1, 2), size=(24, 24), mode="bicubic")
    ours = resample_positions(table, (24, 24))[:, 1:]
    assert (ours - theirs.permute(0, 2, 3, 1).flatten(1, 2)).abs().max() > 0.01
