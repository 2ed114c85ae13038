"""Commands of `adgen` about model directories. Each imports what it needs, so that `adgen --help` stays quick."""

from typing import Annotated

from tyro.conf import Positional, arg

from adgen.command_line import Dest


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


COMMANDS = {"starter-model": starter_model}
