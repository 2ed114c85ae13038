"""From Janus-Pro weights and a released fine-tune to a model directory; and what is said of one."""

import json
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.janus import save_janus
from support.models import bpe_tokenizer, save_small_model, small_prompter
from support.progress import Silent

from adgen.cli import main
from adgen.errors import ModelError
from adgen.generation import convert as conversion
from adgen.generation.convert import ConversionSettings, convert
from adgen.generation.inspect import inspect_model
from adgen.generation.model_directory import ModelDirectory
from adgen.generation.sampling_settings import SamplingChoice, SamplingSettings
from adgen.model.checkpoint import load, load_dinov2, load_finetune, on_meta, trainable_names
from adgen.model.config import PRESETS, LoRAConfig
from adgen.model.lora import add_lora
from adgen.model.names import published_name

PEFT = "vl_gpt.base_model.model."


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("janus")
    save_janus(directory, tied=True)
    small_prompter(config=load(directory).config).save(directory)
    return directory


@pytest.fixture(scope="module")
def finetune(base, tmp_path_factory):
    """The trainable set, with the names that PEFT gives it, in torch's format."""
    model = load(base)
    add_lora(model.decoder, LoRAConfig())
    shapes = {published_name(own): tensor.shape for own, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(7)
    tensors = {PEFT + n: torch.randn(shapes[n], generator=generator) * 0.1 for n in trainable_names(model.state_dict())}
    path = tmp_path_factory.mktemp("release") / "uniadgen.pth"
    torch.save(tensors, path)
    return path


def small_shards(monkeypatch):
    monkeypatch.setattr(conversion, "MAX_SHARD_BYTES", 40_000)


def converted(base, dest, **options):
    return convert(ConversionSettings(base, dest, dtype="fp32", **options), Silent())


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("keep_lora", [False, True])
def test_a_converted_release_is_the_release_loaded_and_needs_no_setting(base, finetune, tmp_path, monkeypatch, keep_lora):
    small_shards(monkeypatch)
    said = converted(base, tmp_path / "m", finetune=finetune, keep_lora=keep_lora)
    expected = load_finetune(load(base, dtype=torch.float32), finetune, merge=not keep_lora)
    made = ModelDirectory(tmp_path / "m")
    assert same(made.load(), expected)
    assert made.config == expected.config
    assert (made.config.history_order, made.config.history_items, made.config.preference.residual) == ("published", 10, False)
    assert made.sampling["preference_noise"]
    published = SamplingSettings(preference_noise=True)
    assert SamplingChoice().of(made.sampling) == published
    assert (published.guidance, published.control_strength, published.title_top_k) == (5.0, 1.5, 50)
    assert set(made.facts.modules.values()) == {"trained"}
    assert {each.file for each in made.facts.sources} == {"model.safetensors", "uniadgen.pth"}
    assert said.untrained == []
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 3
    made.check()
    made.require_trained()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


@pytest.mark.slow
def test_a_bare_base_gets_new_modules_and_says_so(base, tmp_path):
    said = converted(base, tmp_path / "m")
    assert same(load(tmp_path / "m"), load(base, dtype=torch.float32))
    made = ModelDirectory(tmp_path / "m")
    assert made.facts.having("untrained") == said.untrained
    assert {name.partition(".")[0] for name in said.untrained} == {"foreground", "preference"}
    assert made.config.history_order == "keyed"
    with pytest.raises(ModelError, match="untrained modules"):
        made.require_trained()


@pytest.mark.slow
def test_a_dinov2_goes_under_a_bare_base(base, tmp_path):
    prefix, eyes = "language_model.model.adapter.model.", load(base).state_dict()
    eyes = {published_name(n).removeprefix(prefix): t + 1 for n, t in eyes.items() if n.startswith("foreground.adapter.")}
    (tmp_path / "dino").mkdir()
    save_file(eyes, tmp_path / "dino" / "model.safetensors")
    said = converted(base, tmp_path / "m", dinov2=tmp_path / "dino")
    expected = load(base, dtype=torch.float32)
    load_dinov2(expected, tmp_path / "dino")
    assert same(load(tmp_path / "m"), expected)
    assert "foreground.adapter" not in said.untrained
    assert "foreground.adapter_mlp" in said.untrained


@pytest.mark.slow
def test_bin_shards_and_another_template_are_taken(base, tmp_path, monkeypatch):
    small_shards(monkeypatch)
    old = tmp_path / "old"
    shutil.copytree(base, old)
    tensors = load_file(old / "model.safetensors")
    (old / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"a.bin": names[::2], "b.bin": names[1::2]}
    for file, own in shards.items():
        torch.save({name: tensors[name] for name in own}, old / file)
    index = {"weight_map": {name: file for file, own in shards.items() for name in own}}
    (old / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    text = (base / "prompt.toml").read_text().replace("Write", "Compose")
    (tmp_path / "words.toml").write_text(text)
    converted(old, tmp_path / "m", prompt=tmp_path / "words.toml")
    assert same(load(tmp_path / "m"), load(base, dtype=torch.float32))
    assert "Compose" in ModelDirectory(tmp_path / "m").prompter.template.user
    assert [each.file for each in ModelDirectory(tmp_path / "m").facts.sources] == ["a.bin", "b.bin"]


@pytest.mark.slow
def test_a_stopped_conversion_goes_on_and_other_sources_begin_anew(base, finetune, tmp_path, monkeypatch):
    small_shards(monkeypatch)
    save, written = conversion.save_shard, []

    def failing(path, tensors):
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(path.name)
        save(path, tensors)

    monkeypatch.setattr(conversion, "save_shard", failing)
    with pytest.raises(OSError, match="No space left"):
        converted(base, tmp_path / "m", finetune=finetune)
    assert not (tmp_path / "m").exists()
    monkeypatch.setattr(conversion, "save_shard", lambda path, tensors: (written.append(path.name), save(path, tensors)))
    converted(base, tmp_path / "m", finetune=finetune)
    assert len(written) == len(set(written)) == len(list((tmp_path / "m").glob("*.safetensors")))
    assert same(load(tmp_path / "m"), load_finetune(load(base, dtype=torch.float32), finetune))
    # What an earlier conversion of something else left is no shard of this one.
    staging = tmp_path / ".n.converting"
    staging.mkdir()
    (staging / "conversion.json").write_text('{"identity": "other"}')
    for path in (tmp_path / "m").glob("*.safetensors"):
        shutil.copy(path, staging)
    converted(base, tmp_path / "n")
    assert same(load(tmp_path / "n"), load(base, dtype=torch.float32))


# -- bad inputs: each one sentence, before anything is written -----------------------------------------------------------


def other_architecture(base, finetune):
    (base / "config.json").write_text('{"model_type": "llama"}')


def no_sizes(base, finetune):
    (base / "config.json").unlink()


def truncated(base, finetune):
    data = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(data[: len(data) // 2])


def missing_shard(base, finetune):
    (base / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')


def missing_key(base, finetune):
    tensors = load_file(base / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "gate_proj" not in k}, base / "model.safetensors")


def tokenizer_without_tokens(base, finetune):
    tokenizer = json.loads(bpe_tokenizer().to_str())
    tokenizer["added_tokens"] = []
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))


def finetune_of_another_size(base, finetune):
    tensors = torch.load(finetune, weights_only=True)
    torch.save({name: torch.zeros(3, *tensor.shape[1:]) for name, tensor in tensors.items()}, finetune)


def finetune_that_lacks_keys(base, finetune):
    tensors = torch.load(finetune, weights_only=True)
    torch.save({name: tensor for name, tensor in tensors.items() if "text_mask" not in name}, finetune)


def finetune_that_is_no_dict(base, finetune):
    torch.save([1, 2], finetune)


def finetune_with_code(base, finetune):
    torch.save({"x": ModelDirectory("/")}, finetune)


def finetune_cut_short(base, finetune):
    finetune.write_bytes(finetune.read_bytes()[:5000])


def own_directory(base, finetune):
    save_small_model(base)


BAD = {
    other_architecture: "model_type is 'llama'",
    no_sizes: "not a model directory",
    truncated: "model.safetensors: damaged or truncated",
    missing_shard: "gone.safetensors: no such file",
    missing_key: "3 keys are missing, first language_model",
    tokenizer_without_tokens: "has no special token",
    finetune_of_another_size: "has shape.*the model needs",
    finetune_that_lacks_keys: "trainable keys are missing, first text_mask_generator",
    finetune_that_is_no_dict: "holds a list",
    finetune_with_code: "not unpickled",
    finetune_cut_short: "damaged or truncated",
    own_directory: "is an adgen model directory",
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_what_cannot_be_converted_is_refused_before_anything_is_written(base, finetune, tmp_path, spoil, capsys):
    shutil.copytree(base, tmp_path / "janus")
    shutil.copy(finetune, tmp_path / "f.pth")
    spoil(tmp_path / "janus", tmp_path / "f.pth")
    with pytest.raises(ModelError, match=BAD[spoil]):
        converted(tmp_path / "janus", tmp_path / "m", finetune=tmp_path / "f.pth")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.pth", "janus"]


def test_a_full_disk_and_a_taken_place_are_said_before_anything_is_written(base, tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine.txt").write_text("x")
    with pytest.raises(ModelError, match="is there already and not empty"):
        converted(base, tmp_path / "m")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ModelError, match=r"needs \d+\.\d GB, but its disk has 0\.0 GB left"):
        converted(base, tmp_path / "n")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_fine_tune_and_a_dinov2_are_too_much(base, finetune, tmp_path):
    with pytest.raises(ModelError, match="has its own DINOv2"):
        converted(base, tmp_path / "m", finetune=finetune, dinov2=tmp_path)


# -- true sizes, without their bytes -------------------------------------------------------------------------------------


def sparse(path, shapes):
    """A safetensors file of these shapes (BF16) that takes no room: a header, and a hole."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def deepseek_config(config):
    d, image = config.decoder, config.image
    language = {"hidden_size": d.hidden_size, "intermediate_size": d.intermediate_size, "num_hidden_layers": d.num_layers}
    language |= {"num_attention_heads": d.num_heads, "vocab_size": d.vocab_size, "max_position_embeddings": d.max_positions}
    head = {"params": {"image_token_embed": image.head_size}}
    vq = {"params": {"image_token_size": image.codebook_size, "n_embed": image.code_size}}
    return {"model_type": "multi_modality", "language_config": language, "gen_head_config": head, "gen_vision_config": vq}


@pytest.mark.slow
@pytest.mark.parametrize("size", ["janus-pro-1b", "janus-pro-7b"])
def test_true_sizes_go_through_convert_and_inspect(tmp_path, size, capsys):
    config, base = PRESETS[size](), tmp_path / "janus"
    base.mkdir()
    own = {published_name(n): tuple(t.shape) for n, t in on_meta(config).state_dict().items()}
    new = ("foreground.", "preference.")
    bare = {published_name(n): own[published_name(n)] for n in on_meta(config).state_dict() if not n.startswith(new)}
    names = sorted(bare)
    for number in (0, 1):
        unused = {} if number else {"aligner.layers.0.weight": (2, 2)}
        sparse(base / f"model-{number}.safetensors", {n: bare[n] for n in names[number::2]} | unused)
    files = {n: f"model-{i % 2}.safetensors" for i, n in enumerate(names)}
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    (base / "config.json").write_text(json.dumps(deepseek_config(config)))
    small_prompter(config=config).save(base)
    with_lora = config.model_copy(update={"lora": LoRAConfig()})
    slots = {published_name(n): tuple(t.shape) for n, t in on_meta(with_lora).state_dict().items()}
    trainable = list(trainable_names(on_meta(with_lora).state_dict()))
    sparse(tmp_path / "f.safetensors", {PEFT + n: slots[n] for n in trainable})
    said = convert(ConversionSettings(base, tmp_path / "m", tmp_path / "f.safetensors"), Silent(), dry_run=True)
    assert (said.untrained, said.written, said.history) == ([], False, "10 of 64 + 30 tokens, order published")
    assert said.parameters == sum(torch.Size(shape).numel() for shape in own.values())
    assert said.gigabytes == round(2 * said.parameters / 1e9, 3)
    assert "decoder: base, fine-tune" in said.modules
    if size == "janus-pro-7b":
        assert len(trainable) == 627
    assert not (tmp_path / "m").exists()
    bare_said = convert(ConversionSettings(base, tmp_path / "m"), Silent(), dry_run=True)
    assert len(bare_said.untrained) == 7
    assert main(["inspect", str(base), "--gpu", "80", "--prompt-tokens", "1200", "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert seen["parameters"] == said.parameters
    assert seen["slots"]["80 GB"] > 1
    assert seen["file_dtypes"] == "bf16"
    assert {state.split()[1] for name, state in seen["modules"].items() if name.startswith("pref")} == {"untrained"}


# -- inspect and the command line ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_inspect_says_what_a_directory_holds(base, finetune, tmp_path, capsys):
    converted(base, tmp_path / "m", finetune=finetune)
    model = ModelDirectory(tmp_path / "m")
    seen = inspect_model(model, gpu_gb=(1, 24))
    assert (seen.digest, seen.history_items, seen.history_order, seen.file_dtypes) == (model.digest, 10, "published", "f32")
    assert seen.parameters == sum(t.numel() for t in model.load().state_dict().values())
    assert list(seen.slots) == ["1 GB", "24 GB"]
    assert seen.slots["24 GB"] >= seen.slots["1 GB"] >= 1
    assert len(seen.tokenizer) == 9
    assert inspect_model(model, prompt_tokens=50).slot_mb < seen.slot_mb
    assert main(["inspect", str(tmp_path / "m"), "--digest"]) == 0
    shown = capsys.readouterr().out
    assert model.digest in shown.replace("\n", "").replace(" ", "")
    assert main(["inspect", str(tmp_path / "nothing")]) == 1
    assert "nothing" in capsys.readouterr().err


def test_the_command_converts_and_says_what_is_untrained(base, tmp_path, capsys):
    assert main(["convert", str(base), str(tmp_path / "m"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["written"]
    assert "preference.text_mask_generator: new" in said["modules"]
    assert load(tmp_path / "m").dtype == torch.bfloat16
    assert main(["convert", str(base), str(tmp_path / "m")]) == 1
    assert "is there already" in capsys.readouterr().err
