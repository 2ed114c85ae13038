"""Training and inference agree: the same sequence, the same alignment, the same numbers. No Ray."""

import math
import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError
from support.examples import example
from support.language import CONFIG, PROMPTER, cached_logits, requests, rows, training_settings
from support.models import small_config, small_model
from torch.overrides import TorchFunctionMode

from adgen.errors import ModelError, RunError, SettingsError
from adgen.generation.generate import generate
from adgen.generation.sampling_settings import SamplingSettings
from adgen.model.checkpoint import load
from adgen.on_ray.training.settings import PretrainSettings
from adgen.training.batches import IGNORED, LanguageCollator
from adgen.training.language import LanguageTask
from adgen.training.pictures import TokenizerTask
from adgen.training.settings import LossSettings, TrainableSettings
from adgen.training.step import TorchStep
from adgen.training.trainable import choose_trainable

GREEDY = SamplingSettings(title_temperature=0, picture_temperature=0, guidance=1.0, control_strength=1.0, max_title_tokens=40)


@pytest.fixture(autouse=True)
def _one_thread():
    """Models this small run many times faster on one thread than on several that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("stage", ["general", "personal"])
@pytest.mark.parametrize("residual", [True, False])
def test_teacher_forced_logits_are_those_of_cached_generation(stage, residual):
    """Rows of different lengths and histories in one padded batch, against each one alone with a cache, step by step."""
    preference = CONFIG.preference.model_copy(update={"residual": residual})
    model = small_model(preference=preference)
    settings = training_settings(stage)
    collator, task = LanguageCollator(PROMPTER, CONFIG, settings), LanguageTask(model, PROMPTER, settings).eval()
    examples = rows(4)
    batch = collator(examples)
    with torch.no_grad():
        hidden = task.hidden(batch)
        texts = model.text_logits(hidden.gather(1, batch["answer_at"][..., None].expand(-1, -1, hidden.shape[-1])))
        pictures = model.image_logits(hidden[:, -1 - CONFIG.image.tokens_per_picture : -1])
        for row, request in enumerate(requests(collator, examples)):
            text, picture = cached_logits(model, request, examples[row]["titles"][0], batch["codes"][row])
            answer = batch["answer_ids"][row] != IGNORED
            assert (texts[row][answer] - text).abs().max() < 1e-4
            assert (pictures[row] - picture).abs().max() < 1e-4


@pytest.mark.slow
def test_an_overfitted_model_generates_its_references():
    """What training drives to zero is what inference does: greedy generation repeats titles and codes."""
    model = small_model()
    settings = training_settings()
    collator, examples = LanguageCollator(PROMPTER, CONFIG, settings), rows(2, clicks=(1, 2))
    choose_trainable(model, "personal", settings.trainable)
    task = LanguageTask(model, PROMPTER, settings)
    step = TorchStep(task, settings.optimizer, accumulation=1)
    batch = collator(examples)
    task.eval()  # no dropout, no noise: two examples by heart
    for _ in range(60):
        loss, _ = step.forward(batch)
        step.backward(loss)
        step.apply(6e-3)
        if loss < 0.03:
            break
    assert loss < 0.03
    made = generate(model, PROMPTER, requests(collator, examples), GREEDY)
    assert [result.title for result in made] == [row["titles"][0] for row in examples]
    assert torch.equal(torch.stack([result.codes for result in made]), batch["codes"])


def test_padded_histories_are_those_that_a_sample_has_alone():
    """Fewer items than the batch's most: same rows, same masks, same noise."""
    model = small_model()
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(0, 64, (3, 4, 4), generator=generator)
    titles = torch.randint(0, 300, (3, 4, 6), generator=generator)
    num_items = torch.tensor([4, 1, 3])
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)]
    images, texts = model.embed_history(codes, titles, True, generators, num_items)
    for row, (size, seed) in enumerate(zip(num_items.tolist(), (5, 6, 7), strict=True)):
        alone = model.embed_history(codes[row, None, :size], titles[row, None, :size], True, torch.Generator().manual_seed(seed))
        assert (images[row, : size * 4] - alone[0][0]).abs().max() < 1e-5
        assert (texts[row, : size * 6] - alone[1][0]).abs().max() < 1e-5


def test_a_sample_without_any_history_gives_numbers_in_a_batch_with_some():
    model = small_model().train()
    codes, titles = torch.zeros(2, 2, 4, dtype=torch.int64), torch.zeros(2, 2, 6, dtype=torch.int64)
    images, texts = model.embed_history(codes, titles, None, None, torch.tensor([0, 2]))
    assert torch.isfinite(images).all()
    assert torch.isfinite(texts).all()


def test_the_loss_of_a_batch_is_the_mean_of_its_halves():
    """So that accumulation and the number of workers change nothing, dropped prompts included."""
    settings = training_settings(dropout={"prompt": 0.4, "foreground": 0.3, "history": 0.2})
    collator, examples = LanguageCollator(PROMPTER, CONFIG, settings), rows(8)
    task = LanguageTask(small_model(), PROMPTER, settings)
    for module in task.modules():
        module.training = not isinstance(module, torch.nn.Dropout)  # Gumbel noise stays: it belongs to the sample
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
    samples = [collator.sample(row, 2) for row in examples]
    assert {len(s.prompt) == s.answer_start for s in samples} == {True, False}
    with torch.no_grad():
        whole = task(collator(examples, [2] * 8))[0]
        halves = [task(collator(part, [2] * 4))[0] for part in (examples[:4], examples[4:])]
    assert float(whole) == pytest.approx(float(sum(halves)) / 2, rel=1e-5)


def test_a_pictures_first_row_weighs_more_in_training_only():
    collator = LanguageCollator(PROMPTER, CONFIG, training_settings())
    batch = collator(rows(3))
    plain, heavy = (
        LanguageTask(small_model(), PROMPTER, training_settings(losses=LossSettings(first_row=weight))) for weight in (1.0, 5.0)
    )
    hidden = plain.eval().hidden(batch)
    even = plain.picture_losses(hidden, batch)
    assert torch.equal(heavy.eval().picture_losses(hidden, batch), even)
    tokens = batch["codes"].shape[1]
    side = math.isqrt(tokens)
    first = plain.picture_losses(
        torch.cat((hidden[:, -1 - tokens : -1 - tokens + side], hidden[:, -1:]), 1), batch | {"codes": batch["codes"][:, :side]}
    )
    expected = (even * tokens + 4 * first * side) / (tokens + 4 * side)
    torch.testing.assert_close(heavy.train().picture_losses(hidden, batch), expected)


def test_a_dropped_prompt_is_the_negative_one_and_learns_no_title():
    settings = training_settings(dropout={"prompt": 1.0, "foreground": 0.0})
    batch = LanguageCollator(PROMPTER, CONFIG, settings)(rows(2), [0, 0])
    assert batch["ids"][0].tolist() == list(PROMPTER.negative_prompt().ids)
    assert (batch["answer_ids"] == IGNORED).all()
    assert batch["num_items"].tolist() == [0, 0]


def test_draws_belong_to_the_sample_and_the_epoch():
    settings = training_settings(dropout={"prompt": 0.5, "foreground": 0.5})
    collator = LanguageCollator(PROMPTER, CONFIG, settings)
    row = example(5, CONFIG, 12)
    first, again, later = (collator.sample(row, epoch) for epoch in (1, 1, 2))
    assert (first.prompt, first.seed, first.hidden) == (again.prompt, again.seed, again.hidden)
    assert first.seed != later.seed
    drawn = [collator.sample(row, epoch).facts.history_titles for epoch in range(8)]
    assert len(set(drawn)) > 1


@pytest.mark.parametrize("stage", ["general", "personal"])
def test_the_released_recipe_moves_its_own_set_only(stage):
    model = small_model()
    trainable = choose_trainable(model, stage, TrainableSettings(preset="released"))
    assert any(name.endswith("lora_A") for name in trainable)
    assert "decoder.embed_tokens.weight" in trainable
    assert any(name.startswith("foreground.adapter.") for name in trainable)
    assert any(name.startswith("preference.") for name in trainable) == (stage == "personal")
    assert not [name for name in trainable if name.startswith(("image_", "decoder.lm_head", "decoder.norm"))]
    assert not [name for name in trainable if name.startswith("decoder.layers") and "lora" not in name]


def test_frozen_names_are_checked():
    with pytest.raises(SettingsError, match=r"decoder\.lmhead"):
        choose_trainable(small_model(), "personal", TrainableSettings(freeze=("decoder.lmhead",)))
    trainable = choose_trainable(small_model(), "personal", TrainableSettings(freeze=("decoder.",)))
    assert not [name for name in trainable if name.startswith("decoder.")]


@pytest.mark.parametrize("preset", ["full", "released"])
def test_a_step_moves_what_shall_move_and_the_export_computes_the_same(preset, tmp_path):
    model = small_model()
    settings = training_settings(trainable={"preset": preset})
    trainable = set(choose_trainable(model, "personal", settings.trainable))
    task = LanguageTask(model, PROMPTER, settings)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    step = TorchStep(task, settings.optimizer, accumulation=1)
    batch = LanguageCollator(PROMPTER, CONFIG, settings)(rows(4), [0] * 4)
    for _ in range(2):  # an update's A moves when its B is no longer zero
        step.backward(step.forward(batch)[0])
        step.apply(1e-2)
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed <= trainable
    # The pads' row of a token table and the like may stand still; whole modules may not.
    assert {name.split(".")[0] for name in changed} == {name.split(".")[0] for name in trainable}
    task.eval()
    with torch.no_grad():
        trained = task.hidden(batch)
        task.export(tmp_path)
        loaded = LanguageTask(load(tmp_path), PROMPTER, settings).eval().hidden(batch)
    assert (trained - loaded).abs().max() < 1e-4


def test_a_checkpoint_of_another_model_or_stage_is_named(tmp_path):
    settings = training_settings()
    TorchStep(LanguageTask(small_model().requires_grad_(True), PROMPTER, settings), settings.optimizer, 1).save(tmp_path)
    other = small_config(decoder=CONFIG.decoder.model_copy(update={"intermediate_size": 128}))
    wider = LanguageTask(small_model(decoder=other.decoder).requires_grad_(True), PROMPTER, settings)
    with pytest.raises(ModelError, match=r"mlp\.down_proj\.weight has shape \[64, 96\], the model needs \[64, 128\]"):
        TorchStep(wider, settings.optimizer, 1).load(tmp_path)
    with pytest.raises(ModelError, match="the checkpoint lacks codebook"):
        TorchStep(TokenizerTask(small_model(), PROMPTER, settings), settings.optimizer, 1).load(tmp_path)


def test_a_start_in_bf16_is_trained_in_fp32(tmp_path):
    """AdamW on bf16 weights would lose most of its small steps to rounding."""
    from adgen.model.checkpoint import save
    from adgen.training.stages import make_task

    save(small_model().to(torch.bfloat16), tmp_path)
    PROMPTER.save(tmp_path)
    task = make_task(tmp_path, training_settings())
    assert {parameter.dtype for parameter in task.parameters()} == {torch.float32}


def test_muon_moves_the_matrices_between_hidden_states_and_adamw_everything_else():
    settings = training_settings(optimizer={"kind": "muon", "learning_rate": 1e-3, "weight_decay": 0.1})
    model = small_model()
    choose_trainable(model, "personal", settings.trainable)
    step = TorchStep(LanguageTask(model, PROMPTER, settings), settings.optimizer, accumulation=1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    step.backward(step.forward(LanguageCollator(PROMPTER, CONFIG, settings)(rows(4), [0] * 4))[0])
    step.apply(1e-3)
    kinds = {id(p): type(part).__name__ for part in step.optimizer.parts for group in part.param_groups for p in group["params"]}
    of = {name: kinds[id(parameter)] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert of["decoder.layers.0.self_attn.q_proj.weight"] == of["decoder.layers.0.mlp.down_proj.weight"] == "Muon"
    assert of["preference.dual_modality_fusion_encoder.output_proj.weight"] == of["image_embedding.gen_aligner.0.weight"] == "Muon"
    others = ("decoder.embed_tokens.weight", "decoder.lm_head.weight", "image_head.vision_head.weight", "decoder.norm.weight")
    assert {of[name] for name in others} == {"AdamW"}
    # A Muon step is orthogonal: every direction of a matrix moves alike, and as far as AdamW's step would be.
    name = "decoder.layers.0.mlp.down_proj.weight"
    moved = before[name] * (1 - 1e-3 * 0.1) - dict(model.named_parameters())[name].detach()
    lengths = torch.linalg.svdvals(moved) / (1e-3 * 0.2 * max(moved.shape) ** 0.5)
    assert 0.3 < lengths.min() < lengths.max() < 1.4
    assert moved.square().mean().sqrt() == pytest.approx(0.2e-3, rel=0.2)


def test_muon_is_refused_where_deepspeed_shards_matrices():
    with pytest.raises(ValidationError, match=r"optimizer\.kind muon needs whole matrices"):
        PretrainSettings(batch=4, optimizer={"kind": "muon"}, workers={"num": 2})


ASKING = frozenset(("tolist", "item", "cpu", "numpy", "nonzero", "unique", "repeat_interleave", "masked_select",
                    "__bool__", "__int__", "__float__", "__index__"))  # fmt: skip


class NothingIsAsked(TorchFunctionMode):
    """Fails where Python reads a number from a tensor, or a shape depends on one: on a GPU both wait for the device. `but`:
    tensors that stay on the host."""

    def __init__(self, but: list[torch.Tensor]):
        super().__init__()
        self.but = but

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        indices = args[1] if name in ("__getitem__", "__setitem__") else ()
        parts = indices if isinstance(indices, tuple) else (indices,)
        by_mask = any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in parts)
        on_host = args and any(args[0] is each for each in self.but)
        assert on_host or not (by_mask or name in ASKING), f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("stage", ["general", "personal"])
def test_forward_and_backward_ask_the_device_for_no_number(stage):
    settings = training_settings(stage, losses={"clicks": 1.0})
    preference = CONFIG.preference.model_copy(update={"style_layers": 1})
    task = LanguageTask(small_model(preference=preference), PROMPTER, settings).train()
    step = TorchStep(task, settings.optimizer, accumulation=1)
    batch = LanguageCollator(PROMPTER, task.model.config, settings)(rows(4), [0, 0, 0, 0])
    with NothingIsAsked([batch[name] for name in task.on_host]):
        loss, _ = step.forward(batch)
        step.backward(loss)
    with pytest.raises(AssertionError, match="item waits"), NothingIsAsked([]):
        loss.item()


def test_gradients_that_are_no_numbers_leave_the_weights_as_they_were():
    settings = training_settings()
    task = LanguageTask(small_model().requires_grad_(True), PROMPTER, settings)
    step = TorchStep(task, settings.optimizer, accumulation=1)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    weight = next(p for p in task.parameters() if p.requires_grad)
    weight.grad = torch.full_like(weight, torch.nan)
    with pytest.raises(RunError, match="norm of the gradients is nan: the weights are left as they were"):
        step.apply(1e-3)
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_resumed_step_goes_on_to_the_bit(kind, tmp_path):
    settings = training_settings(optimizer={"kind": kind})
    collator = LanguageCollator(PROMPTER, CONFIG, settings)

    def fresh() -> TorchStep:
        model = small_model()
        choose_trainable(model, "personal", settings.trainable)
        return TorchStep(LanguageTask(model, PROMPTER, settings).train(), settings.optimizer, 1)

    def go(step: TorchStep, number: int) -> float:
        torch.manual_seed(number)
        loss = step.forward(collator(rows(4), [number] * 4))[0]
        step.backward(loss)
        step.apply(1e-3)
        return float(loss.detach())

    whole = fresh()
    losses = [go(whole, number) for number in range(2)]
    whole.save(tmp_path)
    losses += [go(whole, number) for number in range(2, 4)]
    resumed = fresh()
    resumed.load(tmp_path)
    assert [go(resumed, number) for number in range(2, 4)] == losses[2:]


def test_a_sample_that_is_too_long_is_named():
    collator = LanguageCollator(PROMPTER, CONFIG, training_settings())
    row = example(7, CONFIG) | {"titles": ["long title " * 200]}
    with pytest.raises(ModelError, match="example 7: prompt, title and picture need"):
        collator([row])


@pytest.mark.slow
def test_training_loads_no_ray():
    code = "import sys, adgen.training.stages, adgen.training.step, adgen.training.deepspeed_step; "
    code += "print(sorted({'ray', 'boto3', 'deepspeed'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_job_that_ray_train_imports_loads_no_torch():
    """Its controller and Ray Data's own processes import it as well, and torch takes seconds of CPU in each."""
    code = (
        "import sys, adgen.on_ray.training.worker_function, adgen.on_ray.training.example_encoders; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "False"


def test_gradient_checkpointing_changes_no_gradient():
    settings = training_settings()
    batch = LanguageCollator(PROMPTER, CONFIG, settings)(rows(2), [0, 0])
    gradients = []
    for checkpointing in (False, True):
        model = small_model(preference=CONFIG.preference.model_copy(update={"dropout": 0.0}))
        choose_trainable(model, "personal", settings.trainable)
        model.decoder.gradient_checkpointing = checkpointing
        LanguageTask(model, PROMPTER, settings).train()(batch)[0].backward()
        gradients.append(model.decoder.layers[0].mlp.up_proj.weight.grad)
    assert torch.allclose(*gradients, atol=1e-6)
    assert gradients[0].abs().sum() > 0


def test_bf16_computes_in_bf16_and_keeps_fp32_weights():
    settings = training_settings()
    model = small_model()
    choose_trainable(model, "personal", settings.trainable)
    step = TorchStep(LanguageTask(model, PROMPTER, settings).eval(), settings.optimizer, 1, bf16=True)
    batch = LanguageCollator(PROMPTER, CONFIG, settings)(rows(2))
    with torch.no_grad():
        exact = step.task(batch)[0]
        rounded = step.forward(batch)[0]
    assert exact != rounded
    assert float(rounded) == pytest.approx(float(exact), rel=0.02)
    step.backward(step.forward(batch)[0])
    step.apply(1e-3)
    assert model.dtype == torch.float32
