"""Checkpoints: every published key finds its place, every format loads, and what is wrong is named."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.janus import save_janus, transformers_config
from support.models import save_small_model, small_config, small_model, small_prompter

from adgen.errors import ModelError
from adgen.generation.model_directory import ModelDirectory
from adgen.generation.prompt import Prompter
from adgen.model.checkpoint import (
    load,
    load_dinov2,
    load_finetune,
    load_image_tokenizer,
    on_meta,
    save,
    trainable_names,
)
from adgen.model.config import LoRAConfig, janus_pro_1b, janus_pro_7b
from adgen.model.names import from_janus_name, plain_name, published_name, unused_because
from adgen.model.pbs import PBSEncoder, load_pbs
from adgen.model.pbs_config import PBSConfig
from adgen.model.weight_files import TensorFile, weight_files, write_tensors

GOLDEN = Path(__file__).parent / "golden"
REAL_KEYS = next(f / "real_keys" for f in (Path(os.environ.get("ADGEN_GOLDEN") or GOLDEN), GOLDEN) if (f / "real_keys").is_dir())


def real_keys(name: str) -> dict:
    return json.loads((REAL_KEYS / f"{name}.json").read_text())


def published_shapes(model) -> dict[str, list[int]]:
    return {published_name(key): list(value.shape) for key, value in model.state_dict().items()}


def collapsed(shapes: dict[str, list[int]]) -> dict[str, tuple[list, int]]:
    """Layer numbers as {i}: name -> (its shapes, how many)."""
    out: dict[str, tuple[list, int]] = {}
    for name, shape in shapes.items():
        name = re.sub(r"\.\d+\.", ".{i}.", name)
        seen, count = out.get(name, ([], 0))
        out[name] = (sorted([*seen, shape] if shape not in seen else seen), count + 1)
    return out


# -- names at real size ----------------------------------------------------------------------------------------------


def test_every_key_of_the_published_7b_is_mapped_and_none_is_left():
    expected = {k: v for k, v in real_keys("full_model_keys")["keys"].items() if not unused_because(k)}
    assert published_shapes(on_meta(janus_pro_7b())) == expected


def test_every_key_of_the_published_tokenizer_is_mapped():
    ours = {k: v for k, v in published_shapes(on_meta(janus_pro_7b())).items() if k.startswith("gen_vision_model.")}
    expected = {f"gen_vision_model.{k}": v for k, v in real_keys("vq16_real_keys")["keys"].items()}
    assert ours == {k: v for k, v in expected.items() if not unused_because(k)}


def test_every_key_of_the_released_fine_tune_is_mapped():
    golden = real_keys("trainable_keys")
    model = on_meta(janus_pro_7b().model_copy(update={"lora": LoRAConfig()}))
    shapes = published_shapes(model)
    ours = {name: shapes[name] for name in trainable_names(model.state_dict())}
    expected = {plain_name(k): (sorted(v["shapes"]), v["count"]) for k, v in golden["patterns"].items()}
    assert collapsed(ours) == expected
    assert len(ours) == golden["n_tensors"]
    assert sum(torch.Size(shape).numel() for shape in ours.values()) == golden["n_params"]


def test_every_key_of_the_released_pbs_encoder_is_mapped():
    with torch.device("meta"):
        ours = {k: list(v.shape) for k, v in PBSEncoder().state_dict().items()}
    expected = real_keys("pbs_real_keys")["keys"]
    assert {k: v for k, v in ours.items() if k in expected} == expected
    assert ours.keys() - expected.keys() <= {"compress_layer.1.num_batches_tracked"}


def test_1b_round_trip_through_the_janus_names():
    config = janus_pro_1b()
    with torch.device("meta"):
        janus = transformers.JanusForConditionalGeneration(transformers_config(config))
    theirs = {from_janus_name(k): list(v.shape) for k, v in janus.state_dict().items()}
    theirs = {k: v for k, v in theirs.items() if not unused_because(k)}
    ours = {k: v for k, v in published_shapes(on_meta(config)).items() if k in theirs}
    assert ours == theirs
    new = published_shapes(on_meta(config)).keys() - theirs.keys()
    assert all(re.search(r"adapter|condition_|mask_generator|dual_modality", key) for key in new)


# -- Janus directories -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def janus(tmp_path_factory):
    """A tiny random Janus of transformers', and its directory."""
    directory = tmp_path_factory.mktemp("janus")
    return save_janus(directory, tied=False), directory


@torch.no_grad()
def assert_same_as_janus(ours, theirs):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, ours.config.decoder.vocab_size, (2, 9), generator=generator)
    hidden = theirs.model.language_model(input_ids=ids).last_hidden_state
    close = lambda a, b: torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)  # noqa: E731
    close(ours.decoder(ours.decoder.embed_tokens(ids)), hidden)
    close(ours.text_logits(hidden), theirs.lm_head(hidden))
    close(ours.image_logits(hidden), theirs.model.generation_head(hidden))
    codes = torch.randint(0, ours.config.image.codebook_size, (2, ours.config.image.tokens_per_picture), generator=generator)
    close(ours.image_embedding(codes), theirs.prepare_embeddings_for_image_generation(codes))
    close(ours.image_tokenizer.decode(codes), theirs.model.vqmodel.decode(codes))
    pixels = torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1
    close(ours.image_tokenizer.vqvae.encoder(pixels), theirs.model.vqmodel.encoder(pixels))


def test_a_transformers_janus_directory_computes_what_transformers_computes(janus):
    theirs, directory = janus
    ours = load(directory)
    assert_same_as_janus(ours, theirs)
    assert ours.config.history_items == 10
    assert not ours.config.preference.residual


@pytest.mark.parametrize("kind", ["bin", "sharded bin", "sharded safetensors"])
def test_a_deepseek_janus_directory_loads(janus, tmp_path, kind):
    theirs, directory = janus
    tensors = {from_janus_name(k): v for k, v in theirs.state_dict().items()}
    image = load(directory).config.image
    write_deepseek_config(tmp_path, theirs.config, image)
    if kind == "bin":
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    elif kind == "sharded safetensors":
        write_tensors(tmp_path, tensors, max_shard_bytes=200_000)
        assert len(list(tmp_path.glob("*.safetensors"))) > 2
    else:
        names = sorted(tensors)
        shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
        for file, part in shards.items():
            torch.save({n: tensors[n] for n in part}, tmp_path / file)
        weight_map = {n: file for file, part in shards.items() for n in part}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = read_as_small(tmp_path, image)
    assert_same_as_janus(config, theirs)


def test_a_janus_directory_with_a_tied_text_head_loads(tmp_path):
    theirs = save_janus(tmp_path, tied=True)
    assert_same_as_janus(load(tmp_path), theirs)


def write_deepseek_config(directory: Path, config: "transformers.JanusConfig", image) -> None:
    text = config.text_config.to_dict()
    fields = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
              "vocab_size", "max_position_embeddings", "rms_norm_eps")  # fmt: skip
    raw = {
        "model_type": "multi_modality",
        "language_config": {"model_type": "llama"} | {name: text[name] for name in fields},
        "gen_head_config": {"params": {"image_token_embed": image.head_size}},
        "gen_vision_config": {"params": {"image_token_size": image.codebook_size, "n_embed": image.code_size}},
    }
    (directory / "config.json").write_text(json.dumps(raw))


def read_as_small(directory: Path, image):
    """DeepSeek's config.json does not describe the tokenizer's channels (they are VQ-16's); a small one needs them said."""
    import adgen.model.checkpoint as checkpoint

    real = checkpoint._config_from_deepseek(json.loads((directory / "config.json").read_text()))
    assert real.image.channel_multiplier == (1, 1, 2, 2, 4)
    assert (real.image.codebook_size, real.image.code_size, real.image.head_size) == (64, 8, image.head_size)
    small = real.model_copy(
        update={"image": image, "foreground": real.foreground.model_copy(update={"condition_size": 64, "num_layers": 1})}
    )
    model = on_meta(small)
    checkpoint.fill(model, checkpoint._directory_tensors(directory), "cpu", None, str(directory))
    return model


def test_new_modules_are_initialised_and_quiet(janus):
    model = load(janus[1])
    assert all(torch.isfinite(p).all() for p in model.parameters())
    size = model.config.foreground.condition_size
    additions = model.foreground(torch.ones(1, 3, size, size))
    assert not additions.any(), "an untrained control path must not disturb a trained decoder"
    again = load(janus[1])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_dinov2_from_its_own_directory(tmp_path):
    model = small_model()
    prefix = "language_model.model.adapter.model."
    tensors = {published_name(k): v for k, v in model.state_dict().items() if k.startswith("foreground.adapter.")}
    save_file({k.removeprefix(prefix): v + 1 for k, v in tensors.items()}, tmp_path / "model.safetensors")
    load_dinov2(model, tmp_path)
    changed = {published_name(k): v for k, v in model.state_dict().items() if k.startswith("foreground.adapter.")}
    assert all(torch.equal(changed[k], tensors[k] + 1) for k in tensors)


# -- the released fine-tune ------------------------------------------------------------------------------------------


def finetune_tensors(model, rank: int) -> dict[str, torch.Tensor]:
    """What the released file holds, for a small model: plain names, PEFT prefix."""
    tuned = on_meta(model.config.model_copy(update={"lora": LoRAConfig(rank=rank)}))
    shapes = published_shapes(tuned)
    generator = torch.Generator().manual_seed(3)
    return {
        f"vl_gpt.base_model.model.{name}": torch.randn(shapes[name], generator=generator) * 0.1
        for name in trainable_names(tuned.state_dict())
    }


@pytest.mark.parametrize("merge", [True, False], ids=["merged", "kept"])
def test_the_released_fine_tune_merged_and_kept(tmp_path, merge):
    tensors = finetune_tensors(small_model(), rank=4)
    torch.save({k: torch.nn.Parameter(v) for k, v in tensors.items()}, tmp_path / "trainable.pth")
    model = load_finetune(small_model(), tmp_path / "trainable.pth", LoRAConfig(rank=4, alpha=8), merge=merge)

    base = small_model()
    name = "vl_gpt.base_model.model.language_model.model.layers.1.self_attn.q_proj.lora_{}.default.weight"
    expected = base.decoder.layers[1].self_attn.q_proj.weight + 2 * tensors[name.format("B")] @ tensors[name.format("A")]
    x = torch.randn(5, 64)
    torch.testing.assert_close(model.decoder.layers[1].self_attn.q_proj(x), x @ expected.T, atol=1e-5, rtol=1e-5)
    embedding = tensors["vl_gpt.base_model.model.language_model.model.embed_tokens.weight"]
    assert torch.equal(model.decoder.embed_tokens.weight, embedding)
    assert (model.config.lora is None) is merge

    save(model, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.config == model.config
    torch.testing.assert_close(again.decoder.layers[1].self_attn.q_proj(x), model.decoder.layers[1].self_attn.q_proj(x))


def test_a_fine_tune_that_lacks_a_key_is_refused(tmp_path):
    tensors = finetune_tensors(small_model(), rank=4)
    gone = "vl_gpt.base_model.model.language_model.model.adapter_mlp.newfc1.weight"
    torch.save({k: v for k, v in tensors.items() if k != gone}, tmp_path / "f.pth")
    with pytest.raises(ModelError, match=r"f\.pth: 1 trainable keys are missing, first language_model\.model\.adapter_mlp"):
        load_finetune(small_model(), tmp_path / "f.pth", LoRAConfig(rank=4))


def test_a_fine_tune_of_another_rank_is_refused(tmp_path):
    torch.save(finetune_tensors(small_model(), rank=4), tmp_path / "f.pth")
    with pytest.raises(ModelError, match=r"lora_A\.default\.weight has shape \[4, 64\], the model needs \[8, 64\]"):
        load_finetune(small_model(), tmp_path / "f.pth", LoRAConfig(rank=8))


# -- our own directory -----------------------------------------------------------------------------------------------


def test_save_and_load_round_trip(tmp_path):
    model = save_small_model(tmp_path)
    again = load(tmp_path)
    assert again.config == model.config
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    assert not again.training


def test_loading_in_another_dtype(tmp_path):
    save_small_model(tmp_path)
    assert {p.dtype for p in load(tmp_path, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("kind", ["own", "bf16", "janus"])
def test_the_image_tokenizer_is_read_alone(tmp_path, janus, monkeypatch, kind):
    """What encodes pictures needs nothing else of a model of gigabytes."""
    directory = janus[1] if kind == "janus" else tmp_path
    if kind != "janus":
        save(save_small_model(tmp_path).to(torch.bfloat16 if kind == "bf16" else torch.float32), tmp_path)
    read, whole = [], load(directory).image_tokenizer.float()
    before = TensorFile.read
    monkeypatch.setattr(TensorFile, "read", lambda file, name: read.append(name) or before(file, name))
    tokenizer, config = load_image_tokenizer(directory)
    assert config == load(directory).config
    assert not tokenizer.training
    assert tokenizer.state_dict().keys() == whole.state_dict().keys()
    assert all(torch.equal(t, tokenizer.state_dict()[name]) for name, t in whole.state_dict().items())
    assert len(read) == len(whole.state_dict())


def test_what_is_wrong_with_an_image_tokenizer_is_named(tmp_path):
    save_small_model(tmp_path)
    rewrite(tmp_path, lambda t: t.pop("gen_vision_model.quant_conv.bias"))
    with pytest.raises(ModelError, match=r"1 keys are missing, first gen_vision_model\.quant_conv\.bias"):
        load_image_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="no such model directory"):
        load_image_tokenizer(tmp_path / "none")


def test_files_carry_published_names_whatever_transformers_calls_its_layers(tmp_path):
    save_small_model(tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert "language_model.model.adapter.model.encoder.layer.0.attention.attention.query.weight" in names
    assert "gen_vision_model.encoder.conv_blocks.0.res.0.conv1.weight" in names


def test_the_digest_of_a_model_is_that_of_its_bytes(tmp_path):
    save_small_model(tmp_path / "a")
    save_small_model(tmp_path / "b")
    assert ModelDirectory(tmp_path / "a").digest == ModelDirectory(tmp_path / "b").digest
    with (tmp_path / "b" / "prompt.toml").open("a") as file:
        file.write("# changed\n")
    assert ModelDirectory(tmp_path / "a").digest != ModelDirectory(tmp_path / "b").digest


@pytest.mark.slow
def test_loading_holds_one_copy(tmp_path):
    """Private memory grows by the model's size once, while the file's pages stay the file's."""
    config = small_config()
    decoder = config.decoder.model_copy(
        update={"hidden_size": 1024, "intermediate_size": 4096, "num_layers": 3, "num_heads": 8, "num_key_value_heads": 8}
    )
    big = config.model_copy(update={"decoder": decoder})
    from adgen.model.initialize import initialize
    from adgen.model.uniadgen import UniAdGen

    save(initialize(UniAdGen(big)), tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size / 2  # loaded as bf16
    program = """
import sys, threading, time, torch
from transformers import Dinov2Model, JanusVQVAE  # a library's own memory is not the model's
from adgen.model.checkpoint import load
private = lambda: int(next(l for l in open('/proc/self/status') if l.startswith('RssAnon')).split()[1]) * 1024
before, peak, done = private(), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, private()); time.sleep(0.001)
thread = threading.Thread(target=watch); thread.start()
model = load(sys.argv[1], dtype=torch.bfloat16)
done = True; thread.join()
print(max(peak, private()) - before)
"""
    out = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(out.stdout) < 1.3 * size + 40e6, f"{int(out.stdout) / 1e6:.0f} MB for a model of {size / 1e6:.0f} MB"


# -- what is wrong is named ------------------------------------------------------------------------------------------


def rewrite(directory: Path, change) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_a_missing_key_is_named(tmp_path):
    save_small_model(tmp_path)
    rewrite(tmp_path, lambda t: t.pop("gen_head.vision_head.bias"))
    with pytest.raises(ModelError, match=r"1 keys are missing, first gen_head\.vision_head\.bias"):
        load(tmp_path)


def test_an_unexpected_key_is_named(tmp_path):
    save_small_model(tmp_path)
    rewrite(tmp_path, lambda t: t.update({"surprise.weight": torch.zeros(1)}))
    with pytest.raises(ModelError, match=r"unexpected key surprise\.weight"):
        load(tmp_path)


def test_a_wrong_shape_is_named(tmp_path):
    save_small_model(tmp_path)
    rewrite(tmp_path, lambda t: t.update({"gen_embed.weight": torch.zeros(3, 8)}))
    with pytest.raises(ModelError, match=r"gen_embed\.weight has shape \[3, 8\], the model needs \[64, 8\]"):
        load(tmp_path)


def test_a_truncated_safetensors_file_is_named(tmp_path):
    save_small_model(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"model\.safetensors: damaged or truncated"):
        load(tmp_path)


@pytest.mark.parametrize("kept", [0, 10, 1000, -100])
def test_a_truncated_bin_file_is_named(tmp_path, kept):
    save_small_model(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    torch.save(load_file(tmp_path / "model.safetensors"), path)
    (tmp_path / "model.safetensors").unlink()
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"pytorch_model\.bin: damaged or truncated"):
        load(tmp_path)


def test_saving_over_a_sharded_model_leaves_no_old_index(tmp_path):
    write_tensors(tmp_path, {"a": torch.zeros(100), "b": torch.zeros(100)}, max_shard_bytes=500)
    write_tensors(tmp_path, {"a": torch.ones(3)})
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]


def test_sizes_that_no_janus_has_are_named(tmp_path, janus):
    raw = json.loads((janus[1] / "config.json").read_text())
    raw["text_config"]["hidden_size"] = 60
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelError, match=r"(?s)config\.json: not the sizes .*hidden_size 60 is not"):
        load(tmp_path)


def test_a_pickle_with_objects_is_not_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    torch.save({"x": Trap()}, tmp_path / "f.pth")
    with pytest.raises(ModelError, match=r"f\.pth: holds more than tensors, and is not unpickled: posix\.mkdir$"):
        load_finetune(small_model(), tmp_path / "f.pth")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"\x80", b"jA", b"PK\x03\x04junk", b"<html>not found</html>", bytes(range(256)) * 9]
)
def test_a_file_that_is_no_torch_file_is_said_to_be_none(tmp_path, data):
    (tmp_path / "f.pth").write_bytes(data)
    with pytest.raises(ModelError, match=r"f\.pth: (damaged or truncated|holds )"):
        load_finetune(small_model(), tmp_path / "f.pth")


def test_an_index_cannot_point_out_of_its_directory(tmp_path, janus):
    index = {"weight_map": {"a": "../outside.safetensors"}}
    (tmp_path / "config.json").write_text((janus[1] / "config.json").read_text())
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"'\.\./outside\.safetensors' is not a plain file name"):
        load(tmp_path)


def test_unknown_and_bad_config_fields_are_named(tmp_path):
    save_small_model(tmp_path)
    path = tmp_path / "adgen.json"
    good = json.loads(path.read_text())
    path.write_text(json.dumps(good | {"colour": "red"}))
    with pytest.raises(ModelError, match=r"adgen\.json: colour: unknown key \(value 'red'\)"):
        load(tmp_path)
    path.write_text(json.dumps(good | {"foreground": good["foreground"] | {"condition_size": 128}}))
    with pytest.raises(ModelError, match=r"condition_size 128 gives 64 condition tokens"):
        load(tmp_path)
    path.write_text("{")
    with pytest.raises(ModelError, match=r"adgen\.json: not JSON"):
        load(tmp_path)


def test_not_a_model_directory(tmp_path):
    with pytest.raises(ModelError, match="no such model directory"):
        load(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"neither adgen\.json nor config\.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="model_type is 'bert'"):
        load(tmp_path)


def test_a_tokenizer_without_the_needed_tokens_is_refused(tmp_path):
    save_small_model(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace("<title_placeholder>", "<something_else>"))
    with pytest.raises(ModelError, match=r"tokenizer\.json: has no special token '<title_placeholder>'"):
        Prompter.load(tmp_path, small_config())
    highest = max(t["id"] for t in json.loads(path.read_text())["added_tokens"])
    (tmp_path / "adgen.json").unlink()  # as a Janus-Pro directory, whose tokenizer is completed
    prompter = Prompter.load(tmp_path, small_config())
    added = ["<title_placeholder>", "<grounding>", "</grounding>", "<box>", "</box>", "<ref>", "</ref>"]
    assert [prompter._special[name] for name in added] == list(range(highest + 1, highest + 8)), "in the published order"


def test_a_tokenizer_whose_ids_would_shift_is_refused(tmp_path):
    save_small_model(tmp_path)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    raw["added_tokens"] = [t for t in raw["added_tokens"] if t["content"] != "<title_placeholder>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(ModelError, match="ids have gaps"):
        Prompter.load(tmp_path, small_config())


def test_a_tokenizer_larger_than_the_models_table_is_refused():
    config = small_config()
    narrow = config.model_copy(update={"decoder": config.decoder.model_copy(update={"vocab_size": 270})})
    with pytest.raises(ModelError, match="lies outside the model's table of 270 rows"):
        small_prompter(config=narrow)


def test_pbs_checkpoint_with_momentum_encoder_and_arguments(tmp_path):
    config = PBSConfig(image_size=32, hidden_size=16, num_layers=1, num_heads=2, feature_size=4)
    encoder = PBSEncoder(config).eval()
    torch.nn.init.normal_(encoder.pos_embed)
    tensors = {f"module.base_encoder.{k}": v for k, v in encoder.state_dict().items()}
    tensors |= {"module.momentum_encoder.cls_token": torch.zeros(1), "module.predictor.0.weight": torch.zeros(1)}
    torch.save({"model": tensors, "epoch": 3}, tmp_path / "pbs.pth")
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_pbs(tmp_path / "pbs.pth", config)(pixels), encoder(pixels))
    del tensors["module.base_encoder.norm.bias"]
    torch.save({"model": tensors}, tmp_path / "pbs.pth")
    with pytest.raises(ModelError, match=r"key norm\.bias is missing"):
        load_pbs(tmp_path / "pbs.pth", config)


# -- a model's directory, opened once ------------------------------------------------------------------------------------


def test_a_model_directory_reads_each_part_once(tmp_path, monkeypatch):
    save_small_model(tmp_path)
    (tmp_path / "sampling.json").write_text('{"guidance": 3}')
    directory = ModelDirectory(tmp_path)
    directory.check()
    assert directory.config == small_config()
    digest = directory.digest
    for file in tmp_path.iterdir():
        file.unlink()
    assert (directory.digest, directory.sampling, directory.config) == (digest, {"guidance": 3.0}, small_config())
    assert directory.prompter is directory.prompter
    with pytest.raises(ModelError, match=r"neither adgen\.json nor config\.json"):
        _ = pickle.loads(pickle.dumps(directory)).config  # another process opens it anew


@pytest.mark.parametrize(("change", "error"), [("model.safetensors", "no weights"), ("tokenizer.json", "no such file")])
def test_a_directory_that_lacks_a_file_is_refused_before_its_weights_are_loaded(tmp_path, change, error):
    save_small_model(tmp_path)
    (tmp_path / change).unlink()
    with pytest.raises(ModelError, match=error):
        ModelDirectory(tmp_path).check()


def test_digest_and_sampling_of_a_directory_need_no_torch():
    code = """
import sys
from adgen.generation.model_directory import ModelDirectory
from adgen.generation.sampling_settings import SamplingChoice
from adgen.shipped import shipped_model
directory = ModelDirectory(shipped_model())
print(len(directory.digest), SamplingChoice().of(directory.sampling).guidance > 0, directory.config.name)
print([m for m in ("torch", "transformers", "ray") if m in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "64 True tiny\n[]\n"
