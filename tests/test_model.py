"""Properties of the model's parts that no golden states."""

import subprocess
import sys

import pytest
import torch
from support.models import small_config, small_model

from adgen.config import validate_settings
from adgen.errors import SettingsError
from adgen.model.checkpoint import on_meta
from adgen.model.config import PRESETS, ImageTokenConfig, LoRAConfig, ModelConfig, janus_pro_7b
from adgen.model.copying import start_copying
from adgen.model.decoder import Attention
from adgen.model.image_tokens import ImageTokenizer, to_uint8, to_unit_range
from adgen.model.initialize import initialize
from adgen.model.uniadgen import UniAdGen


def test_left_and_right_padding_are_equivalent():
    decoder = small_model().decoder
    embeds = torch.randn(2, 7, 64)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    right = decoder(embeds, mask)
    rolled = embeds.clone()
    rolled[1] = embeds[1].roll(3, dims=0)
    left = decoder(rolled, torch.tensor([[1] * 7, [0] * 3 + [1] * 4]))
    torch.testing.assert_close(left[1, 3:], right[1, :4], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(left[0], right[0], atol=1e-6, rtol=0)


def test_steps_equal_the_whole_sequence():
    decoder = small_model().decoder
    embeds, additions = torch.randn(2, 9, 64), torch.randn(2, 2, 4, 64)
    whole = decoder(embeds, additions=additions)
    cache = decoder.new_cache(2, 9, "cpu", torch.float32)
    parts = [decoder.extend(embeds[:, :5], cache)]
    parts += [decoder.extend(embeds[:, i : i + 1], cache, additions=additions[:, :, i - 5 : i - 4]) for i in range(5, 9)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_a_row_does_not_feel_what_lies_behind_its_neighbours():
    decoder = small_model().decoder
    a, b = torch.randn(3, 64), torch.randn(8, 64)
    cache = decoder.new_cache(2, 12, "cpu", torch.float32)
    padded = torch.stack((torch.cat((a, torch.full((5, 64), 1e3))), b))
    decoder.extend(padded, cache, num_new=torch.tensor([3, 8]))
    step = torch.randn(2, 1, 64)
    together = decoder.extend(step, cache)
    alone = decoder(torch.cat((a, step[0]))[None])
    torch.testing.assert_close(together[0, 0], alone[0, -1], atol=1e-5, rtol=1e-5)


def test_a_full_cache_refuses_more():
    decoder = small_model().decoder
    cache = decoder.new_cache(1, 4, "cpu", torch.float32)
    with pytest.raises(ValueError, match="5 positions do not fit a cache of 4"):
        decoder.extend(torch.randn(1, 5, 64), cache)


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointed in (False, True):
        model = small_model().train().requires_grad_(True)
        model.decoder.gradient_checkpointing = checkpointed
        embeds = torch.randn(2, 6, 64, generator=torch.Generator().manual_seed(1))
        model.decoder(embeds).square().sum().backward()
        gradients.append(model.decoder.layers[0].mlp.up_proj.weight.grad)
    torch.testing.assert_close(*gradients)


def test_zero_history_works():
    preference = small_model().preference
    images, titles = preference(torch.zeros(2, 0, 4, 64), torch.zeros(2, 0, 6, 64))
    assert images.shape == titles.shape == (2, 0, 64)


def test_titles_without_pictures_work():
    images, titles = small_model().preference(torch.zeros(1, 0, 4, 64), torch.randn(1, 2, 6, 64))
    assert images.shape == (1, 0, 64)
    assert titles.shape == (1, 12, 64)
    assert torch.isfinite(titles).all()


def test_the_residual_starts_as_the_raw_history():
    config = small_config()
    config = config.model_copy(update={"preference": config.preference.model_copy(update={"residual": True})})
    preference = initialize(UniAdGen(config)).eval().preference
    images, titles = torch.randn(2, 3, 4, 64), torch.randn(2, 2, 6, 64)
    out_images, out_titles = preference(images, titles)
    assert torch.equal(out_images, images.flatten(1, 2))
    assert torch.equal(out_titles, titles.flatten(1, 2))
    loss = (out_images.sum() + out_titles.sum()) * 1.0
    loss.backward()
    assert preference.dual_modality_fusion_encoder.output_proj.weight.grad.any(), "the fused part can learn"


@pytest.mark.slow
def test_a_step_of_adam_cannot_bury_the_history_under_a_constant():
    """The fused part comes out of a layer norm: a hundred steps that all push one way leave it no longer than an embedding."""
    config = small_config()
    config = config.model_copy(update={"preference": config.preference.model_copy(update={"residual": True})})
    preference = initialize(UniAdGen(config)).eval().preference
    optimizer = torch.optim.Adam(preference.parameters(), lr=5e-4)
    images, titles = torch.randn(2, 3, 4, 64), torch.randn(2, 3, 6, 64)
    for _ in range(100):
        optimizer.zero_grad()
        (-preference(images, titles)[0].sum()).backward()
        optimizer.step()
    fused = preference(images, titles)[0] - images.flatten(1, 2)
    assert 0 < fused.norm(dim=-1).mean() < images.norm(dim=-1).mean()


def test_the_residual_adds_no_weights():
    plain, config = small_config(), small_config()
    residual = config.model_copy(update={"preference": config.preference.model_copy(update={"residual": True})})
    assert UniAdGen(plain).state_dict().keys() == UniAdGen(residual).state_dict().keys()


def test_gumbel_noise_is_a_switch_and_on_in_training():
    preference = small_model().preference
    images, titles = torch.randn(1, 4, 4, 64), torch.randn(1, 4, 6, 64)
    still = [preference(images, titles)[0] for _ in range(2)]
    assert torch.equal(*still)
    noisy = [preference(images, titles, noise=True)[0] for _ in range(4)]
    assert any(not torch.equal(noisy[0], other) for other in noisy[1:])
    same = [preference(images, titles, noise=True, generator=torch.Generator().manual_seed(1))[0] for _ in range(2)]
    assert torch.equal(*same)
    preference.train()
    for module in preference.modules():
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert any(not torch.equal(still[0], preference(images, titles)[0]) for _ in range(4))
    assert torch.equal(preference(images, titles, noise=False)[0], still[0])


def test_keep_rate_of_the_mask_is_joint_over_items():
    layer = small_model().preference.visual_mask_generator.similarity_mask_layer
    similarity = torch.rand(3, 5, 4)
    mask = layer.mask(similarity, None)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert mask.sum((1, 2)).tolist() == [8.0] * 3
    for row in range(3):
        assert similarity[row][mask[row] == 1].min() >= similarity[row][mask[row] == 0].max()


def test_a_hidden_product_adds_nothing():
    foreground = small_model().foreground
    tokens = foreground.condition_tokens(torch.randn(2, 3, 64, 64), hidden=torch.tensor([True, False]))
    additions = foreground.additions(tokens)
    assert not additions[:, 0].any()
    assert additions[:, 1].any()


def test_initialisation_is_a_function_of_the_seed():
    one, two, other = (initialize(UniAdGen(small_config()), seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.decoder.embed_tokens.weight, other.decoder.embed_tokens.weight)
    assert all(torch.isfinite(p).all() for p in one.parameters())


def test_a_new_decoder_copies_before_its_first_step():
    generator = torch.Generator().manual_seed(3)
    decoder = initialize(UniAdGen(PRESETS["tiny"]())).decoder
    said = torch.randint(0, 2000, (8, 14), generator=generator)
    again = torch.cat((said, torch.randint(0, 2000, (8, 5), generator=generator), said), dim=1)  # phrase, something else, phrase

    def right() -> float:
        with torch.no_grad():
            predicted = decoder.lm_head(decoder(decoder.embed_tokens(again))).argmax(-1)
        return (predicted[:, 21:-1] == again[:, 22:]).float().mean().item()  # from the third token of the copy

    assert right() < 0.01
    start_copying(decoder, generator)
    assert right() > 0.5


def test_attention_of_training_is_that_of_generation():
    """In bf16 on a CPU training takes another way; fp32 is the oracle of both."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(2, 3, 9, 16, generator=generator).bfloat16()  # noqa: E731
    attention = Attention(PRESETS["tiny"]().decoder)
    attention.o_proj = torch.nn.Identity()
    visible = torch.ones(9, 9, dtype=torch.bool).tril() & torch.tensor([[True] * 9, [False] * 4 + [True] * 5])[:, None, None]
    visible = visible | torch.eye(9, dtype=torch.bool)
    values = [draw() for _ in range(3)]
    exact = [value.float().requires_grad_() for value in values]
    trained = [value.clone().requires_grad_() for value in values]
    outputs = [attention.attend(*some, visible) for some in (values, trained, exact)]
    for output in outputs[:2]:
        torch.testing.assert_close(output.float(), outputs[2], atol=0.02, rtol=0.02)
    weights = torch.randn(outputs[2].shape, generator=generator)
    for output in outputs[1:]:
        (output.float() * weights).sum().backward()
    for mine, oracle in zip(trained, exact, strict=True):
        torch.testing.assert_close(mine.grad.float(), oracle.grad, atol=0.05, rtol=0.05)


def test_initialisation_covers_low_rank_updates():
    config = small_config(lora=LoRAConfig(rank=2))
    one = initialize(UniAdGen(config), 1)
    other = initialize(on_meta(config).to_empty(device="cpu"), 1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not one.decoder.layers[0].self_attn.q_proj.lora_B.any()


def test_a_mask_is_chosen_in_fp32_whatever_the_weights_are():
    """Real similarities lie closer together than two neighbouring bf16 numbers."""
    layer = small_model().preference.visual_mask_generator.similarity_mask_layer.to(torch.bfloat16)
    items = (1 + 0.05 * torch.randn(1, 5, 4, 64, generator=torch.Generator().manual_seed(0))).bfloat16()
    similarity = layer.similarity(torch.ones_like(items), items)
    assert similarity.dtype == torch.float32
    assert len(similarity.unique()) == 20
    assert layer(torch.ones_like(items), items, None).dtype == torch.bfloat16


def test_presets_are_what_they_say():
    config = janus_pro_7b()
    assert (config.image.tokens_per_picture, config.image.tokens_per_history_picture) == (576, 64)
    assert config.num_additions == 5
    assert config.decoder.head_size == 128
    for build in PRESETS.values():
        assert ModelConfig.model_validate_json(build().model_dump_json()) == build()
    tiny = UniAdGen(PRESETS["tiny"]())
    assert sum(p.numel() for p in tiny.parameters()) < 20e6


def test_an_impossible_size_is_named():
    raw = small_config().model_dump()
    raw["decoder"]["num_heads"] = 5
    with pytest.raises(SettingsError, match="hidden_size 64 is not an even multiple of num_heads 5"):
        validate_settings(ModelConfig, raw, "test")


def test_a_group_norm_that_takes_each_channel_alone_forgets_the_colour():
    """Why a narrow tokenizer has fewer groups: 32 on 32 channels see no difference between a picture and its tinted copy."""
    features = torch.randn(2, 32, 4, 4, generator=torch.Generator().manual_seed(0))
    tinted = features + torch.randn(1, 32, 1, 1, generator=torch.Generator().manual_seed(1))

    def forgets(groups):
        image = small_config().image.model_copy(update={"norm_groups": groups})
        norms = [module for module in ImageTokenizer(image).modules() if isinstance(module, torch.nn.GroupNorm)]
        assert norms
        assert all(norm.num_groups == groups for norm in norms)
        return all(torch.allclose(norm(features), norm(tinted), atol=1e-5) for norm in norms if norm.num_channels == 32)

    assert forgets(32)
    assert not forgets(4)


def test_tiny_has_a_tokenizer_that_sees_colour():
    norms = [module for module in ImageTokenizer(PRESETS["tiny"]().image).modules() if isinstance(module, torch.nn.GroupNorm)]
    assert min(norm.num_channels // norm.num_groups for norm in norms) >= 8


def test_groups_that_do_not_divide_the_channels_are_named():
    with pytest.raises(SettingsError, match="norm_groups 7 does not divide"):
        validate_settings(ImageTokenConfig, small_config().image.model_dump() | {"norm_groups": 7}, "adgen.json")


def test_pixels_survive_the_round_trip():
    picture = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 16, 16, 3)
    assert torch.equal(to_uint8(to_unit_range(picture)), picture)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["adgen.model.uniadgen", "adgen.model.checkpoint", "adgen.generation.generate"])
def test_model_code_knows_tensors_only(module):
    program = f"import sys, {module}; print(sorted({{'ray', 'boto3', 'deepspeed'}} & sys.modules.keys()))"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
