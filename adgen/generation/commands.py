"""Commands of `adgen` about model directories. Each imports what it needs, so that `adgen --help` stays quick."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from adgen.command_line import Dest, Json


def starter_model(
    inputs: Annotated[Positional[str], arg(metavar="INPUTS", help="its table products: the tokenizer learns the titles")],
    dest: Dest,
    size: Annotated[str, arg(metavar="NAME", help="tiny, janus-pro-1b or janus-pro-7b")] = "tiny",
    seed: Annotated[int, arg(metavar="N", help="same seed, same weights")] = 0,
) -> int:
    """Write an untrained model directory, to start a training from or to try the machinery with. It paints noise."""
    from adgen.generation.starter import write_starter_model
    from adgen.shop.inputs.tables import open_inputs

    titles = (batch.column(0).to_pylist() for batch in open_inputs(inputs, tables=("products",))["products"].batches(["title"]))
    write_starter_model(dest, (title for some in titles for title in some if title), size, seed)
    print(f"{dest}: untrained {size}")
    return 0


def convert(
    base: Annotated[Positional[Path], arg(metavar="BASE", help="a Janus-Pro directory, DeepSeek's or transformers' layout")],
    dest: Annotated[Positional[Path], arg(metavar="DEST", help="model directory to write")],
    finetune: Annotated[Path | None, arg(metavar="FILE.pth", help="the released fine-tune; read as data, never unpickled")] = None,
    dinov2: Annotated[Path | None, arg(metavar="DIR", help="a DINOv2 in Hugging Face layout, where there is no fine-tune")] = None,
    prompt: Annotated[
        Path | None, arg(metavar="FILE", help="wording of prompts (prompt.toml); default the base's, or ours")
    ] = None,
    lora: Annotated[Literal["merge", "keep"], arg(help="low-rank updates: add them to the weights, or keep them apart")] = "merge",
    dtype: Annotated[Literal["bf16", "fp16", "fp32"], arg(help="of the weights")] = "bf16",
    dry_run: Annotated[bool, arg(help="check everything and say what would be done; write nothing")] = False,
    as_json: Json = False,
) -> int:
    """Turn Janus-Pro weights, and the released fine-tune over them, into a model directory; one shard is in memory at a time.

    Everything is checked before anything is written. The same command goes on where it was stopped."""
    from adgen.generation.convert import ConversionSettings, convert
    from adgen.terminal import TerminalProgress, print_summary

    with TerminalProgress(of_bytes=True) as bar:
        done = convert(ConversionSettings(base, dest, finetune, dinov2, prompt, lora == "keep", dtype), bar, dry_run)
    return print_summary(done, as_json)


def inspect(
    model: Annotated[Positional[Path], arg(metavar="MODEL", help="a model directory")],
    prompt_tokens: Annotated[int | None, arg(metavar="N", help="memory for prompts of N tokens; default the longest")] = None,
    gpu: UseAppendAction[Annotated[tuple[float, ...], arg(metavar="GB", help="slots on a GPU of so many GB")]] = (),
    digest: Annotated[bool, arg(help="hash the files, too, which reads all of them")] = False,
    as_json: Json = False,
) -> int:
    """Show what a model directory holds: sizes, modules and whether they are trained, tokenizer, memory, slots on GPUs."""
    from adgen.generation.inspect import inspect_model
    from adgen.generation.model_directory import ModelDirectory
    from adgen.terminal import print_record

    return print_record(inspect_model(ModelDirectory(model), prompt_tokens, gpu, digest), as_json)


def check_device(
    model: Annotated[
        Positional[Path | None], arg(metavar="MODEL", help="whose shapes; default the small one of this package")
    ] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], arg(help="which")] = "auto",
    num_slots: Annotated[int | None, arg(metavar="N", help="creatives at once; default what the device holds")] = None,
    cache_dtype: Annotated[Literal["same", "float8_e4m3fn"], arg(help="of keys and values")] = "same",
    as_json: Json = False,
) -> int:
    """Compare a device's kernels with the plain path, as an engine on a GPU does at its start. Exit 1 if one differs."""
    from adgen.errors import SettingsError
    from adgen.generation.device_report import check_model
    from adgen.generation.engine_settings import EngineSettings
    from adgen.shipped import shipped_model
    from adgen.terminal import print_record

    directory = model or shipped_model()
    if directory is None:
        raise SettingsError("MODEL: this package holds no trained model: name a model directory")
    found = check_model(directory, device, EngineSettings(num_slots=num_slots, cache_dtype=cache_dtype))
    print_record(found, as_json)
    return 1 if found.switched_off else 0


COMMANDS = {"starter-model": starter_model, "convert": convert, "inspect": inspect, "check-device": check_device}
