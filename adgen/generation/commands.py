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
    from adgen.terminal import ByteProgress, print_summary

    with ByteProgress() as bar:
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


COMMANDS = {"starter-model": starter_model, "convert": convert, "inspect": inspect}
