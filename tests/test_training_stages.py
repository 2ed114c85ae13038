"""The tokenizer and PBS stages, the order of examples, the schedule, and what training costs by formula. No Ray."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.examples import example
from support.janus import save_janus
from support.models import small_config, small_model, small_prompter
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from adgen.errors import InputError, ModelError
from adgen.model.checkpoint import load
from adgen.model.config import PRESETS
from adgen.model.decoder import rope_angles
from adgen.model.initialize import initialize
from adgen.model.names import published_name
from adgen.model.pbs import load_pbs, pbs
from adgen.model.pbs_config import PBSConfig
from adgen.model.uniadgen import UniAdGen
from adgen.shop.synthetic.drawing.backgrounds import STYLES, draw_background
from adgen.shop.synthetic.drawing.products import draw_cutout
from adgen.shop.synthetic.drawing.skins import PATTERNS
from adgen.shop.synthetic.people import COLOUR_NAMES, KIND_NAMES
from adgen.training.batches import LanguageCollator
from adgen.training.codebook import MovingCodebook
from adgen.training.contrast import ContrastTask, SceneCollator, new_encoder
from adgen.training.cost import activation_bytes, count_parameters, state_bytes, training_cost
from adgen.training.language import LanguageTask
from adgen.training.order import Order, Share, held_out
from adgen.training.pictures import PictureCollator, TokenizerTask, as_png
from adgen.training.schedule import learning_rate
from adgen.training.settings import OptimizerSettings, TrainingSettings
from adgen.training.stages import check_start, make_task
from adgen.training.step import TorchStep
from adgen.training.trainable import choose_trainable

CONFIG = small_config()
ENCODER = PBSConfig(image_size=32, resize_to=32, patch_size=8, hidden_size=32, num_layers=2, num_heads=2, feature_size=16)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# -- tokenizer ---------------------------------------------------------------------------------------------------------


def shop_pictures(count: int, size: int = 16) -> list[dict]:
    styles = list(STYLES)
    pictures = [draw_background(styles[n % len(styles)], size, np.random.default_rng(n)) for n in range(count)]
    return [{"picture": as_png(picture), "number": n} for n, picture in enumerate(pictures)]


def train(task, collator, rows, steps: int, rate: float) -> list[float]:
    step = TorchStep(task.train(), OptimizerSettings(), accumulation=1)
    losses = []
    for number in range(steps):
        loss, _ = step.forward(collator(rows, [number] * len(rows)))
        step.backward(loss)
        step.apply(rate)
        task.after_step(number)
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.slow
def test_the_tokenizer_learns_pictures_and_its_codes_are_what_it_decodes():
    settings = TrainingSettings(stage="tokenizer")
    task = TokenizerTask(small_model(), small_prompter(), settings)
    rows, collator = shop_pictures(24), PictureCollator(CONFIG, settings)
    before = task.eval().reconstructed(collator(rows)["pixels"])[0].sub(collator(rows)["pixels"]).abs().mean()
    train(task, collator, rows, 40, 4e-3)
    pixels = collator(rows)["pixels"]
    with torch.no_grad():
        made, _ = task.eval().reconstructed(pixels)
        tokenizer = task.model.image_tokenizer
        assert (tokenizer.decode(tokenizer.encode(pixels)) - made).abs().max() < 1e-4
        assert (made - pixels).abs().mean() < 0.6 * before
    measures = task.state_metrics()
    assert measures["codebook_use"] > 0.5
    assert measures["perplexity"] > 8


def test_a_tokenizer_that_computes_in_bf16_chooses_its_codes_in_fp32():
    """Near codes lie closer than a step of bf16: rounded cosines would tie, and the first of them would win."""
    settings = TrainingSettings(stage="tokenizer")
    task = TokenizerTask(small_model(), small_prompter(), settings).train()
    pixels = PictureCollator(CONFIG, settings)(shop_pictures(8))["pixels"]
    tokenizer = task.model.image_tokenizer
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            latents = tokenizer.latents(pixels)
            assert latents.dtype == torch.bfloat16
            task.reconstructed(pixels)
        seen, codes = task.codebook._seen[0]
    assert seen.dtype == torch.float32
    assert torch.equal(codes, (seen @ tokenizer.codebook().T).argmax(-1))
    rounded = (seen.bfloat16() @ tokenizer.codebook().T.bfloat16()).argmax(-1)
    assert (codes != rounded).any(), "or this test tells nothing"


def test_only_the_tokenizer_is_trainable_in_its_stage():
    settings = TrainingSettings(stage="tokenizer")
    task = TokenizerTask(small_model(), small_prompter(), settings)
    trainable = [name for name, parameter in task.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all(name.startswith("model.image_tokenizer.vqvae.") and "quantize" not in name for name in trainable)


def test_a_dead_code_moves_to_where_the_latents_are():
    book = MovingCodebook(num_codes=4, width=3, decay=0.5, revive_below=0.1, seed=0)
    table = F.normalize(torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), dim=-1)
    latents = F.normalize(torch.tensor([[1.0, 0.1, 0.0], [0.9, 0.0, 0.1], [0.0, 1.0, 0.1], [0.1, 0.9, 0.0]]), dim=-1)
    for step in range(12):
        codes = (latents @ table.T).argmax(-1)
        book.see(latents, codes)
        book.follow(table, step)
    assert (latents @ table.T).max(-1).values.min() > 0.99
    assert torch.allclose(table.norm(dim=-1), torch.ones(4))
    assert book.measures()["perplexity"] > 1.5


# -- pbs ---------------------------------------------------------------------------------------------------------------


def scenes(styles: int = 4) -> tuple[list[dict], list[dict]]:
    rng = np.random.default_rng(0)
    names = list(STYLES)[:styles]
    backgrounds = [{"group": g, "background": as_png(draw_background(n, 32, rng))} for g, n in enumerate(names) for _ in range(4)]
    looks = [(KIND_NAMES[n % len(KIND_NAMES)], COLOUR_NAMES[n % 5], PATTERNS[n % 3]) for n in range(16)]
    cutouts = [{"number": n, "cutout": as_png(draw_cutout(*look, 32, rng))} for n, look in enumerate(looks)]
    return cutouts, backgrounds


@pytest.mark.slow
def test_the_encoder_learns_backgrounds_and_overlooks_products(tmp_path):
    settings = TrainingSettings(stage="pbs", contrast={"encoder": ENCODER.model_dump()})
    cutouts, backgrounds = scenes()
    collator = SceneCollator(backgrounds, settings)
    task = ContrastTask(new_encoder(ENCODER, 0), settings)
    losses = train(task, collator, cutouts, 80, 1e-3)
    assert np.mean(losses[-10:]) < 0.6 * losses[0]
    task.eval().export(tmp_path)
    encoder = load_pbs(tmp_path)
    batch = collator(cutouts)
    with torch.no_grad():
        anchor, positive, negative = (encoder(batch[name]) for name in ("anchor", "positive", "negative"))
    assert pbs(anchor, positive).mean() - pbs(anchor, negative).mean() > 0.3
    with torch.no_grad():
        assert torch.allclose(task.encoder(batch["anchor"]), anchor, atol=1e-5)


def test_scenes_are_what_the_loss_takes_them_for():
    settings = TrainingSettings(stage="pbs", contrast={"encoder": ENCODER.model_dump(), "same_picture": 0.0})
    cutouts, backgrounds = scenes()
    collator = SceneCollator(backgrounds, settings)
    groups = [row["group"] for row in backgrounds]
    for number in range(30):
        here, there, elsewhere = collator.drawn_backgrounds((0, 0, number))
        assert groups[here] == groups[there] != groups[elsewhere]
    batch = collator(cutouts, [0] * len(cutouts))
    assert (batch["group"] != batch["other"]).all()
    assert batch["anchor"].shape == (16, 3, 32, 32)


def test_backgrounds_of_one_group_are_refused():
    settings = TrainingSettings(stage="pbs", contrast={"encoder": ENCODER.model_dump()})
    with pytest.raises(InputError, match=r"all 4 backgrounds are of one group \(0\).*contrast\.pool"):
        SceneCollator(scenes(styles=1)[1], settings)


def test_the_follower_lags_behind_and_has_no_gradient():
    settings = TrainingSettings(stage="pbs", contrast={"encoder": ENCODER.model_dump(), "momentum": 0.9})
    task = ContrastTask(new_encoder(ENCODER, 0), settings)
    first = task.follower.cls_token.clone()
    with torch.no_grad():
        task.encoder.cls_token.add_(1.0)
    task.after_step(0)
    assert torch.allclose(task.follower.cls_token - first, torch.full_like(first, 0.1), atol=1e-6)
    assert not any(parameter.requires_grad for parameter in task.follower.parameters())


def test_a_start_of_another_kind_is_refused(tmp_path):
    from support.models import save_small_model

    save_small_model(tmp_path / "model")
    ContrastTask(new_encoder(ENCODER, 0), TrainingSettings(stage="pbs", contrast={"encoder": ENCODER.model_dump()})).export(
        tmp_path / "encoder"
    )
    with pytest.raises(ModelError, match="an encoder of stage pbs, but stage personal"):
        make_task(tmp_path / "encoder", TrainingSettings(stage="personal"))
    with pytest.raises(ModelError, match=r"no pbs\.json"):
        make_task(tmp_path / "model", TrainingSettings(stage="pbs"))
    with pytest.raises(ModelError, match="has shape"):
        make_task(tmp_path / "encoder", TrainingSettings(stage="pbs"))


@pytest.mark.slow
def test_a_janus_start_needs_a_dinov2_or_a_word(tmp_path):
    """Training from a Janus-Pro directory must not begin with random eyes because nobody thought of them."""
    directory, dino = tmp_path / "janus", tmp_path / "dino"
    save_janus(directory, tied=False)
    start = load(directory)
    small_prompter(config=start.config).save(directory)
    eyes = {k: v for k, v in start.state_dict().items() if k.startswith("foreground.adapter.")}
    dino.mkdir()
    prefix = "language_model.model.adapter.model."
    save_file({published_name(k).removeprefix(prefix): v + 1 for k, v in eyes.items()}, dino / "model.safetensors")
    for stage in ("tokenizer", "general", "personal"):
        with pytest.raises(ModelError, match=r"has no DINOv2.*give dinov2 = .*hidden_size \d+.*'random'"):
            check_start(directory, TrainingSettings(stage=stage))
    settings = TrainingSettings(stage="tokenizer")
    check_start(directory, settings, "random")
    make_task(directory, settings, dino).export(tmp_path / "trained")
    trained = load(tmp_path / "trained").state_dict()
    assert all(torch.equal(trained[k], v + 1) for k, v in eyes.items())
    check_start(tmp_path / "trained", settings)
    with pytest.raises(ModelError, match="has its own weights for that: leave it out"):
        check_start(tmp_path / "trained", settings, dino)


@pytest.mark.parametrize("stage", ["tokenizer", "pbs"])
def test_a_resumed_step_goes_on_to_the_bit_with_what_the_optimizer_does_not_update(stage, tmp_path):
    """The codebook's averages, and the encoder that follows."""
    settings = TrainingSettings(stage=stage, contrast={"encoder": ENCODER.model_dump()})
    cutouts, backgrounds = scenes()
    collator = PictureCollator(CONFIG, settings) if stage == "tokenizer" else SceneCollator(backgrounds, settings)
    rows = shop_pictures(6) if stage == "tokenizer" else cutouts[:6]

    def fresh() -> TorchStep:
        if stage == "tokenizer":
            return TorchStep(TokenizerTask(small_model(), small_prompter(), settings).train(), settings.optimizer, 1)
        return TorchStep(ContrastTask(new_encoder(ENCODER, 0), settings).train(), settings.optimizer, 1)

    def go(step: TorchStep, number: int) -> float:
        loss = step.forward(collator(rows, [number] * len(rows)))[0]
        step.backward(loss)
        step.apply(1e-3)
        step.task.after_step(number)
        return float(loss.detach())

    whole, resumed = fresh(), fresh()
    for number in range(2):
        go(whole, number)
    whole.save(tmp_path)
    resumed.load(tmp_path)
    assert [go(resumed, number) for number in (2, 3)] == [go(whole, number) for number in (2, 3)]
    tensors = resumed.task.state_dict()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in whole.task.state_dict().items())


# -- order and schedule ------------------------------------------------------------------------------------------------


def test_every_epoch_is_a_permutation_and_another_one():
    order = Order((5, 5, 3), seed=1, window=2)
    epochs = [[example for _, example in order.at(13 * epoch, 13)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(13)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert order.at(13, 1)[0][0] == 1
    assert order.at(20, 10) == Order((5, 5, 3), seed=1, window=2).at(20, 10)
    assert order.at(0, 13) != Order((5, 5, 3), seed=2, window=2).at(0, 13)


def test_held_out_examples_never_come():
    kept = held_out(40, 8, seed=3)
    assert kept == held_out(40, 8, seed=3)
    assert len(kept) == 4  # a tenth at most
    order = Order((20, 20), seed=3, held_out=frozenset(kept))
    assert sorted(example for _, example in order.at(0, len(order))) == [n for n in range(40) if n not in kept]


def test_a_step_has_the_same_examples_whoever_computes_them():
    one, two = Share(batch=8, micro_batch=4, workers=1), Share(batch=8, micro_batch=4, workers=2)
    assert (one.accumulation, two.accumulation) == (2, 1)
    assert {one.place(number) for number in range(2)} == {two.place(rank) for rank in range(2)} == {0, 4}


def test_the_schedule():
    cosine = OptimizerSettings(learning_rate=1.0, schedule="cosine", warmup_steps=4, final_share=0.1)
    rates = [learning_rate(step, 20, cosine) for step in range(21)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert all(a >= b for a, b in itertools.pairwise(rates[3:]))
    assert rates[12] == pytest.approx(0.55)
    assert rates[20] == pytest.approx(0.1)
    assert {learning_rate(step, 20, OptimizerSettings(learning_rate=0.5)) for step in range(20)} == {0.5}


# -- cost --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["general", "personal"])
@pytest.mark.parametrize(
    "changes", [{}, {"preset": "released", "lora": {"rank": 1}}, {"freeze": ("decoder.layers.", "foreground.")}]
)
def test_the_flops_formula_counts_what_runs(stage, changes):
    """Forward of all, backward of what needs it: what stands still has no gradients of its own."""
    settings = TrainingSettings(stage=stage, trainable=changes)
    model = small_model()
    choose_trainable(model, stage, settings.trainable)
    task = LanguageTask(model, small_prompter(), settings).eval()
    batch = LanguageCollator(small_prompter(), CONFIG, settings)([example(n, CONFIG) for n in range(3)])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        task(batch)[0].backward()
    assert task.step_flops(batch) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_a_stage_without_a_formula_counts_a_pass_and_leaves_nothing_behind():
    settings = TrainingSettings(stage="pbs", contrast={"encoder": ENCODER.model_dump()})
    cutouts, backgrounds = scenes()
    task = ContrastTask(new_encoder(ENCODER, 0), settings).train()
    batch = SceneCollator(backgrounds, settings)(cutouts)
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    counted = task.step_flops(batch)
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.state_dict().items())
    assert all(parameter.grad is None for parameter in task.parameters())
    assert task.training
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        task(batch)[0].backward()
    assert counted == counter.get_total_flops()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        task(batch)
    assert 1.5 < counted / counter.get_total_flops() < 2  # two of the three pictures have no backward pass


def test_costs_are_those_of_the_arithmetic_page():
    from support.arithmetic import inputs_and_results

    names, _ = inputs_and_results(("1B", "7B"))
    for column, preset in (("1B", "janus-pro-1b"), ("7B", "janus-pro-7b")):
        page = names[column]
        released, full = training_cost(PRESETS[preset]()), training_cost(PRESETS[preset](), "full")
        for stage in (1, 2, 3):
            assert released.gpu_bytes[stage] == pytest.approx(page[f"zero{stage}"], rel=0.02)
            assert full.gpu_bytes[stage] == pytest.approx(page[f"full_zero{stage}"], rel=0.02)
        assert released.epoch_hours == pytest.approx(page["epoch_hours"], rel=0.02)
        assert full.epoch_hours == pytest.approx(page["full_epoch_hours"], rel=0.02)
        assert released.checkpoint_bytes == pytest.approx(page["checkpoint"], rel=0.02)


def test_a_workers_state_has_the_bytes_of_the_formula():
    """What 1B and 7B are computed with, on a model that is small enough to be measured."""
    model, settings = small_model(), TrainingSettings(stage="personal", trainable={"preset": "released"})
    expected = state_bytes(*count_parameters(model.config, "released"))
    choose_trainable(model, "personal", settings.trainable)
    step = TorchStep(LanguageTask(model, small_prompter(), settings), settings.optimizer, 1)
    collator = LanguageCollator(small_prompter(), model.config, settings)
    loss, _ = step.forward(collator([example(number, model.config) for number in range(2)], None))
    step.backward(loss)
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    step.apply(1e-4)
    weights = sum(p.nbytes for p in model.parameters())
    moments = sum(t.nbytes for state in step.optimizer.state.values() for t in state.values() if t.dim())
    assert weights + gradients + moments == pytest.approx(expected, rel=0.1)


def test_activations_have_the_bytes_of_the_formula(monkeypatch):
    """Of a wide model with checkpointing in bf16: what the whole forward pass saves, and one layer's inside, with the fused
    attention of GPUs."""
    fused = lambda q, k, v, visible: F.scaled_dot_product_attention(q, k, v, attn_mask=visible)  # noqa: E731
    monkeypatch.setattr("adgen.model.decoder._unfused_attention", fused)
    sizes = {"hidden_size": 512, "intermediate_size": 1376, "num_layers": 6, "num_heads": 8, "num_key_value_heads": 8}
    small = small_config()
    config = small.model_copy(update={"decoder": small.decoder.model_copy(update=sizes)})
    model = initialize(UniAdGen(config), 0).to(torch.bfloat16).train().requires_grad_(True)
    model.image_tokenizer.requires_grad_(False)
    model.decoder.gradient_checkpointing = True
    settings, prompter = TrainingSettings(stage="personal"), small_prompter(config=config)
    batch = LanguageCollator(prompter, config, settings)([example(number, config) for number in range(4)], None)
    length = batch["ids"].shape[1] + batch["codes"].shape[1]
    inputs = torch.randn(4, length, 512, dtype=torch.bfloat16, requires_grad=True)
    angles = rope_angles(torch.arange(length).expand(4, length), config.decoder.head_size, 10000.0)
    visible = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    saved = saved_bytes(model, lambda: LanguageTask(model, prompter, settings).train()(batch))
    inside = saved_bytes(model, lambda: model.decoder.layers[1](inputs, *angles, visible))
    assert saved + inside == pytest.approx(activation_bytes(config, 4, length), rel=0.1)


def saved_bytes(model, forward) -> int:
    """Bytes that autograd keeps of a forward pass, without the model's weights."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in weights)


def test_the_released_set_has_the_published_size():
    golden = json.loads((Path(__file__).parent / "golden/real_keys/trainable_keys.json").read_text())
    assert count_parameters(PRESETS["janus-pro-7b"](), "released")[1] == golden["n_params"]
