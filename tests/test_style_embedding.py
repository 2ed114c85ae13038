"""The style embedding: clicks encoded one by one, weighted by agreement, added where the picture begins; its loss."""

import json

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.engine import GREEDY, SAMPLED, assert_same, requests
from support.examples import example
from support.language import cached_logits, rows, training_settings
from support.language import requests as requests_of
from support.models import small_config, small_model, small_prompter
from support.two_pass_oracle import two_pass
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from adgen.errors import ModelError
from adgen.generation.engine import Engine
from adgen.generation.engine_settings import EngineSettings
from adgen.generation.generate import embed, embed_history, generate
from adgen.generation.prompt import PromptFacts
from adgen.model.checkpoint import load, save
from adgen.model.config import STYLE_SLOT
from adgen.model.initialize import initialize
from adgen.model.style_embedding import click_shares, style_embedding
from adgen.model.uniadgen import UniAdGen
from adgen.training.batches import LanguageCollator
from adgen.training.language import LanguageTask, predicted_places
from adgen.training.settings import LossSettings, TrainableSettings
from adgen.training.step import TorchStep, load_task
from adgen.training.trainable import choose_trainable

PREFERENCE = small_config().preference.model_copy(update={"residual": True, "style_layers": 2, "agreement_weighting": 8.0})
CONFIG = small_config(preference=PREFERENCE)
PROMPTER = small_prompter(config=CONFIG)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def styled_model(**changes: float) -> UniAdGen:
    return small_model(preference=PREFERENCE.model_copy(update=changes))


def some_codes(*shape: int) -> torch.Tensor:
    return torch.randint(0, 64, shape, generator=torch.Generator().manual_seed(3))


def test_the_published_model_has_no_style_encoder():
    plain, styled = UniAdGen(small_config()).state_dict(), UniAdGen(CONFIG).state_dict()
    assert {name for name in styled if name not in plain} == {name for name in styled if ".style_encoder." in name}
    assert plain.keys() < styled.keys()


def test_a_style_embedding_starts_at_zero_and_can_learn():
    model = initialize(UniAdGen(CONFIG)).eval()
    style = model.embed_history(some_codes(2, 3, 4), some_codes(2, 3, 6))[2]
    assert style.shape == (2, 1, 64)
    assert not style.any()
    style.sum().backward()
    assert model.preference.style_encoder.output_proj.weight.grad.any()


@pytest.mark.parametrize("agreement", [0.0, 8.0])
def test_a_click_is_read_by_itself_and_clicks_are_counted(agreement):
    """No embedding feels another click; the style embedding is their mean, or what most agree on, in any order, and padding
    counts for nothing."""
    model, codes, titles = styled_model(agreement_weighting=agreement), some_codes(1, 4, 4), some_codes(1, 4, 6)
    readings = model.encode_clicks(codes)
    for click in range(4):
        torch.testing.assert_close(model.encode_clicks(codes[:, click, None])[:, 0], readings[:, click])
    style = model.embed_history(codes, titles)[2]
    said = style_embedding(readings, None, agreement) if agreement else readings.mean(1)
    torch.testing.assert_close(style, PREFERENCE.style_gain * said[:, None])
    torch.testing.assert_close(model.embed_history(codes.flip(1), titles)[2], style)
    few = model.embed_history(codes, titles, num_items=torch.tensor([3]))[2]
    torch.testing.assert_close(few, model.embed_history(codes[:, :3], titles[:, :3])[2])
    assert not model.embed_history(codes, titles, num_items=torch.tensor([0]))[2].any()


def test_clicks_that_agree_outweigh_strays():
    """Four clicks that mean about the same, two that don't; as long as they like, in any order."""
    alike, strays = torch.eye(8)[:1].repeat(4, 1) + 0.1 * torch.eye(8)[4:], 3 * torch.eye(8)[1:3]
    readings = torch.cat((alike, strays))
    equal, weighted = (click_shares(readings[None], None, agreement)[0] for agreement in (0.0, 8.0))
    torch.testing.assert_close(equal, torch.full((6,), 1 / 6))
    torch.testing.assert_close(weighted.sum(), torch.tensor(1.0))
    assert weighted[4:].max() < 0.003
    assert weighted[:4].min() > 0.24
    order = torch.tensor([5, 2, 0, 4, 1, 3])
    torch.testing.assert_close(click_shares(readings[order][None], None, 8.0)[0], weighted[order])
    torch.testing.assert_close(click_shares(0.01 * readings[None], None, 8.0)[0], weighted)
    style = style_embedding(readings[None], None, 8.0)
    assert torch.cosine_similarity(style, alike.mean(0)[None]) > 0.999 > torch.cosine_similarity(readings.mean(0), alike.mean(0), 0)


def test_shares_are_a_samples_own():
    """The same with padding and neighbours as alone; a sample without clicks has none, and readings of nothing count alike."""
    readings = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(5))
    together = click_shares(readings, torch.tensor([5, 3, 0]), 8.0)
    torch.testing.assert_close(together[0], click_shares(readings[:1], None, 8.0)[0])
    torch.testing.assert_close(together[1, :3], click_shares(readings[1:2, :3], None, 8.0)[0])
    assert not together[1, 3:].any()
    assert not together[2].any()
    torch.testing.assert_close(click_shares(torch.zeros(1, 4, 8), None, 8.0), torch.full((1, 4), 0.25))


def test_a_tie_is_left_as_it_is():
    """One click is the style embedding; clicks that are as many and as unlike one way as the other count alike: nobody leads."""
    one, other = torch.eye(8)[:1], torch.eye(8)[1:2]
    torch.testing.assert_close(click_shares(one[None], None, 8.0), torch.ones(1, 1))
    for clicks in (torch.cat((one, other)), torch.cat((one, other, one, other))):
        torch.testing.assert_close(click_shares(clicks[None], None, 8.0)[0], torch.full((len(clicks),), 1 / len(clicks)))
    led = click_shares(torch.cat((one, other, one, other, one))[None], None, 8.0)[0]
    assert led[::2].sum() > 0.95, "three against two"


@pytest.mark.parametrize("agreement", [0.0, 8.0])
def test_clicks_are_weighted_in_fp32_whatever_they_are_in(agreement):
    readings = torch.randn(3, 6, 64, generator=torch.Generator().manual_seed(5)).bfloat16()
    exact = style_embedding(readings.float(), torch.tensor([6, 3, 0]), agreement)
    made = style_embedding(readings, torch.tensor([6, 3, 0]), agreement)
    assert made.dtype == torch.bfloat16
    assert torch.equal(made, exact.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(style_embedding(readings.float(), torch.tensor([6, 3, 0]), agreement), exact)


def test_training_takes_the_mean_of_the_clicks_and_its_gradient_reaches_each():
    model, codes = styled_model(), some_codes(1, 4, 4)
    readings = model.encode_clicks(codes).detach().requires_grad_()
    weighted, mean = model.preference.style_embedding(readings), model.train().preference.style_embedding(readings)
    torch.testing.assert_close(mean, PREFERENCE.style_gain * readings.mean(1, keepdim=True))
    assert (weighted - mean).norm() > 0.01 * mean.norm(), "the clicks agree all the same: nothing is tested"
    mean.sum().backward()
    torch.testing.assert_close(readings.grad, torch.full_like(readings, PREFERENCE.style_gain / 4))


def test_a_style_embedding_is_added_where_the_picture_begins_and_nowhere_else():
    model, request = styled_model(), requests()[0]
    history = embed_history(model, PROMPTER, request)
    picture, title = PROMPTER.picture_prompt(request.facts, "mug"), PROMPTER.title_prompt(request.facts)
    assert picture.slots[-1] == STYLE_SLOT
    assert STYLE_SLOT not in (*picture.slots[:-1], *title.slots, *PROMPTER.negative_prompt().slots)
    shown = embed(model, picture, history)
    token = model.decoder.embed_tokens(torch.tensor(picture.ids[-1]))
    torch.testing.assert_close(shown[-1], token + history[-1])
    others = embed(model, picture, torch.cat((history[:-1], history[-1:] + 1)))
    assert torch.equal(others[:-1], shown[:-1])
    assert PROMPTER.picture_prompt(PromptFacts("mug", (), ("lamp",)), "mug").slots[-1] == -1, "titles alone show none"


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_tokens_of_a_model_with_a_style_embedding_equal_the_two_pass_oracle(sampling):
    model = styled_model()
    results = generate(model, PROMPTER, requests(), sampling)
    for request, result in zip(requests(), results, strict=True):
        title, codes = two_pass(model, PROMPTER, request, sampling)
        assert (result.title, result.codes.tolist()) == (title, codes.tolist())
    model.preference.style_gain = 0.0
    without = generate(model, PROMPTER, requests(), sampling)
    changed = [not torch.equal(one.codes, other.codes) for one, other in zip(results, without, strict=True)]
    assert any(changed)
    assert not any(change for change, request in zip(changed, requests(), strict=True) if not len(request.history_codes))


def test_the_engine_adds_the_style_embedding_as_the_simple_loop_does():
    expected = generate(styled_model(), PROMPTER, requests(), SAMPLED)
    assert_same(Engine(styled_model(), PROMPTER, EngineSettings(num_slots=2), SAMPLED).generate(requests()), expected)


def test_teacher_forced_logits_with_a_style_embedding_are_those_of_cached_generation():
    model, settings = styled_model(), training_settings()
    collator, task = LanguageCollator(PROMPTER, CONFIG, settings), LanguageTask(model, PROMPTER, settings).eval()
    examples = rows(4)
    batch = collator(examples)
    with torch.no_grad():
        hidden = task.hidden(batch)
        pictures = model.image_logits(hidden[:, -1 - CONFIG.image.tokens_per_picture : -1])
        for row, request in enumerate(requests_of(collator, examples)):
            picture = cached_logits(model, request, examples[row]["titles"][0], batch["codes"][row], PROMPTER)[1]
            assert (pictures[row] - picture).abs().max() < 1e-4


@pytest.mark.slow
def test_a_model_directory_loads_with_the_names_of_any_version_and_is_saved_with_those_of_0_1_0(tmp_path):
    model = styled_model()
    save(model, tmp_path)
    weights, config = tmp_path / "model.safetensors", json.loads((tmp_path / "adgen.json").read_text())
    assert config["preference"].items() >= {"taste_layers": 2, "taste_gain": 8.0, "taste_focus": 8.0}.items()
    tensors = load_file(weights)
    assert any(name.startswith("taste_reader.") for name in tensors)
    assert not any(name.startswith("style_encoder.") for name in tensors)
    renamed = {"taste_layers": "style_layers", "taste_gain": "style_gain", "taste_focus": "agreement_weighting"}
    config["preference"] = {renamed.get(name, name): value for name, value in config["preference"].items()}
    as_new = tmp_path / "new"
    as_new.mkdir()
    (as_new / "adgen.json").write_text(json.dumps(config))
    save_file({name.replace("taste_reader.", "style_encoder."): tensor for name, tensor in tensors.items()}, as_new / weights.name)
    for directory in (tmp_path, as_new):
        loaded = load(directory)
        assert loaded.config == model.config
        assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    config["preference"]["taste_gain"] = 8.0
    (as_new / "adgen.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"adgen\.json: preference\.style_gain and preference\.taste_gain are one setting"):
        load(as_new)


def test_a_training_state_of_0_1_0_loads(tmp_path):
    settings = training_settings(losses=LossSettings(clicks=0.5))
    task, other = (LanguageTask(styled_model(), PROMPTER, settings) for _ in range(2))

    def old_name(name: str) -> str:
        return name.replace("style_encoder.", "taste_reader.").replace("click_prediction.", "click_outlook.")

    old = {old_name(name): tensor + 1 for name, tensor in task.state_dict().items()}
    assert "click_outlook.places" in old
    load_task(task, old, "old")
    other.load_state_dict(old)  # as DeepSpeed does it
    for loaded in (task, other):
        assert all(torch.equal(old[old_name(name)], t) for name, t in loaded.state_dict().items())
    frozen = styled_model()
    trainable = choose_trainable(frozen, "personal", TrainableSettings(freeze=("preference.taste_reader.",)))
    assert trainable
    assert not [name for name in trainable if "style_encoder" in name]


# -- the loss of clicks ------------------------------------------------------------------------------------------------


def test_the_loss_of_clicks_is_that_of_a_mixture():
    """Against one click and one place at a time; a sample without clicks has none."""
    settings = training_settings(losses=LossSettings(clicks=0.5))
    task = LanguageTask(styled_model(), PROMPTER, settings).eval()
    batch = LanguageCollator(PROMPTER, CONFIG, settings)(rows(4))
    counts, tokens = batch["num_items"].tolist(), batch["codes"].shape[1]
    assert counts == [4, 4, 0, 4]  # the second and fourth row's two and three clicks are repeated
    losses = task.click_losses(task.click_embeddings(batch), batch)
    for row, count in enumerate(counts):
        chances = []
        for click in range(count):
            said = task.model.encode_clicks(batch["history_codes"][row, None, click, None])[0, 0]
            chance = 1.0
            for place in range(tokens):
                inner = torch.nn.functional.gelu(task.click_prediction.read(said) + task.click_prediction.places[place])
                logits = task.model.image_logits(task.click_prediction.write(inner))
                chance *= logits.double().softmax(-1)[batch["codes"][row, place]]
            chances.append(chance)
        expected = -torch.stack(chances).mean().log() / tokens if count else torch.tensor(0.0)
        assert losses[row].item() == pytest.approx(expected.item(), rel=1e-4)
    loss, metrics = task(batch)
    rest = sum(float(metrics[name][0] / metrics[name][1]) for name in ("text", "image"))
    assert loss.item() == pytest.approx(rest + 0.5 * losses.mean().item(), rel=1e-5)
    assert float(metrics["clicks"][1]) == 3


def test_the_loss_of_clicks_trains_the_style_encoder_and_is_no_part_of_the_model(tmp_path):
    settings = training_settings(losses=LossSettings(text=0.0, image=1e-9, clicks=1.0))
    model = styled_model()
    choose_trainable(model, "personal", settings.trainable)
    task = LanguageTask(model, PROMPTER, settings).train()
    step = TorchStep(task, settings.optimizer, 1)
    step.backward(step.forward(LanguageCollator(PROMPTER, CONFIG, settings)(rows(4), [0] * 4))[0])
    learned = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 1e-6}
    assert any(name.startswith("preference.style_encoder.layers.0.") for name in learned)
    assert not [name for name in learned if name.startswith("decoder.")], "the style encoder learns without the decoder"
    step.apply(1e-3)
    task.export(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "click_prediction" in name]  # noqa: SIM118


def test_a_click_learns_as_much_as_it_explains_of_the_picture():
    """Each click's gradient is the one that it would have alone, times its share in explaining the picture: strays are let off."""
    settings = training_settings(losses=LossSettings(clicks=1.0))
    task = LanguageTask(styled_model(), PROMPTER, settings).eval()
    batch = LanguageCollator(PROMPTER, CONFIG, settings)(rows(1))
    readings = (10 * task.click_embeddings(batch)).detach().requires_grad_()
    alone = [task.click_losses(readings[:, i, None], batch | {"num_items": torch.tensor([1])}) for i in range(readings.shape[1])]
    own = torch.cat([torch.autograd.grad(loss.sum(), readings)[0][:, i] for i, loss in enumerate(alone)])
    shares = (-torch.cat(alone).detach() * batch["codes"].shape[1]).softmax(0)
    assert shares.max() > 1.5 / len(shares), "the clicks explain about as much as each other: nothing is tested"
    together = torch.autograd.grad(task.click_losses(readings, batch).sum(), readings)[0][0]
    torch.testing.assert_close(together, shares[:, None] * own, atol=1e-6, rtol=1e-4)


def test_the_loss_of_clicks_wants_clicks_and_a_style_encoder():
    with pytest.raises(ValidationError, match=r"losses\.clicks is 1, but stage tokenizer reads no clicks"):
        training_settings("tokenizer", losses=LossSettings(clicks=1.0))
    with pytest.raises(ModelError, match=r"losses\.clicks is 1, but the model has no style encoder"):
        LanguageTask(small_model(), PROMPTER, training_settings(losses=LossSettings(clicks=1.0)))


@pytest.mark.parametrize(("number", "most"), [(16, 16), (64, 64), (100, 50), (576, 64)])
def test_of_a_large_picture_some_places_are_predicted_spread_over_it(number, most):
    places = predicted_places(number, torch.tensor([0, 5, 123456789]))
    assert places.shape == (3, most)
    assert 0 <= places.min() <= places.max() < number
    assert all(len(set(row.tolist())) == most for row in places)
    assert (places.max(1).values - places.min(1).values >= number * 0.9 - 2).all()


def test_the_general_stage_trains_the_style_encoder_and_shows_no_history():
    """Same prompts, losses and gradients as without the loss of clicks; in addition the style encoder learns."""
    plain, taught = training_settings("general"), training_settings("general", losses=LossSettings(clicks=1.0))
    examples, grads, batches = rows(4), [], []
    for settings in (plain, taught):
        model = styled_model()
        moving = choose_trainable(model, "general", settings.trainable, reads_clicks=settings.losses.clicks > 0)
        reader = {name for name in moving if name.startswith("preference.")}
        assert reader == ({name for name, _ in model.named_parameters() if ".style_encoder." in name} if reader else set())
        assert bool(reader) == (settings is taught)
        task, collator = LanguageTask(model, PROMPTER, settings).eval(), LanguageCollator(PROMPTER, CONFIG, settings)
        batches.append(collator(examples, [0] * 4))
        task(batches[-1])[0].backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.any()})
        pictures, titles = task.samples(examples[:2], collator, seed=0)
        assert (len(pictures), len(titles)) == (6, 2)
    assert [batch["num_items"].tolist() for batch in batches] == [[0] * 4, [4, 4, 0, 4]]
    assert torch.equal(batches[0]["ids"], batches[1]["ids"])
    assert any(name.startswith("preference.style_encoder.layers.0.") for name in grads[1])
    for name in (name for name in grads[1] if name.startswith(("decoder.", "foreground."))):
        torch.testing.assert_close(grads[1][name], grads[0][name])


@pytest.mark.parametrize("stage", ["general", "personal"])
def test_the_flops_of_a_style_encoder_are_counted(stage):
    settings = training_settings(stage)
    if stage == "general":  # counted with the style encoder, without the auxiliary image prediction
        settings = training_settings(stage, losses=LossSettings(clicks=1e-9))
    model = styled_model()
    choose_trainable(model, stage, settings.trainable, reads_clicks=True)
    task = LanguageTask(model, PROMPTER, settings).eval()
    if task.click_prediction is not None:
        task.click_losses = lambda readings, batch: readings.sum((1, 2))
    batch = LanguageCollator(PROMPTER, CONFIG, settings)([example(n, CONFIG) for n in range(3)])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        task(batch)[0].backward()
    assert task.step_flops(batch) == pytest.approx(counter.get_total_flops(), rel=0.01)
