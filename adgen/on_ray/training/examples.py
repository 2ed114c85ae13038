"""From tables to cached examples: DuckDB joins, Ray Data reads and encodes every picture once.

Everything lies under a digest of what decides it: the inputs' files, the tokenizer's weights, the sizes. A second run
with the same digest reads it as it is. A dataset row is a part; its worker writes the part's file under its own name, so
a killed job goes on with the parts that are missing.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy, DataContext

from adgen.errors import InputError
from adgen.generation.model_directory import ModelDirectory
from adgen.model.weight_files import read_tensors, weight_files
from adgen.on_ray.training.example_encoders import BackgroundMaker, ClickMaker, CutoutMaker, ExampleMaker, Maker, PictureMaker
from adgen.on_ray.training.run_folder import on_this_node
from adgen.on_ray.training.settings import TABLES, PretrainSettings
from adgen.records import digest
from adgen.shop.inputs.tables import Inputs, open_inputs
from adgen.training.example_files import ExampleFolder, Index, part_name
from adgen.training.settings import LANGUAGE_STAGES

_VERSION = 1  # another number for any change of what an example holds
ROWS_PER_PART = 512

CLICKED_SQL = """SELECT DISTINCT p.product_id, p.title, p.image FROM products p
    JOIN (SELECT DISTINCT unnest(clicks).product_id AS product_id FROM histories) USING (product_id)
    WHERE p.image IS NOT NULL ORDER BY p.product_id"""
# Each click once, at its newest place, oldest first; the target is no click of its own.
EXAMPLES_SQL = """
    WITH refs AS (SELECT row_number() OVER (ORDER BY user_id, product_id, image) AS number, * FROM refs_table),
    opened AS (SELECT user_id, unnest(clicks).product_id AS product, generate_subscripts(clicks, 1) AS place FROM histories),
    newest AS (SELECT user_id, product, max(place) AS place FROM opened GROUP BY ALL),
    shown AS (
        SELECT r.number, list({'product': n.product, 'title': coalesce(c.title, ''), 'codes': c.codes} ORDER BY n.place) AS clicks
        FROM refs r JOIN newest n USING (user_id) JOIN clicked c ON c.product = n.product
        WHERE n.product != r.product_id GROUP BY r.number)
    SELECT coalesce(p.title, '') AS product_title, p.selling_points, r.titles, r.image AS reference, p.image, p.cutout, p.scale,
           coalesce(s.clicks, []) AS clicks
    FROM refs r JOIN products p USING (product_id) LEFT JOIN shown s ON s.number = r.number
    WHERE r.image IS NOT NULL AND len(r.titles) > 0 ORDER BY r.number"""
PICTURES_SQL = """SELECT image FROM (SELECT image FROM products UNION SELECT image FROM refs_table)
    WHERE image IS NOT NULL ORDER BY image"""
CUTOUTS_SQL = "SELECT title, image, cutout, scale FROM products ORDER BY product_id"


@dataclass(frozen=True)
class Prepared:
    """Where a stage's examples are."""

    examples: str
    backgrounds: str | None
    num_examples: int
    reasons: dict[str, int]
    digest: str


def prepare_examples(settings: PretrainSettings, start: str | None) -> Prepared:
    """The examples of a stage, made where they are not there yet. InputError when there are none."""
    directory = on_this_node(start) if start else None
    config = ModelDirectory(directory).config if settings.stage != "pbs" else None
    inputs = open_inputs(settings.inputs, TABLES)
    cache = settings.cache or f"{settings.out.rstrip('/')}/examples"
    stamps = digest("inputs", *(part for pair in sorted(inputs.stamps.items()) for part in pair))
    backgrounds = None
    if settings.stage in LANGUAGE_STAGES:
        tokenizer = _tokenizer_digest(directory)
        sizes = digest(config.image.digest(), config.foreground.condition_size)
        made = digest("examples", _VERSION, stamps, tokenizer, sizes)
        clicks = ExampleFolder(f"{cache}/clicks-{made[:16]}")
        _make(inputs, clicks, CLICKED_SQL, ClickMaker(clicks.uri, inputs, start), settings)
        folder = ExampleFolder(f"{cache}/examples-{made[:16]}")
        index = _make(inputs, folder, EXAMPLES_SQL, ExampleMaker(folder.uri, inputs, start), settings, clicks)
    elif settings.stage == "tokenizer":
        made = digest("pictures", _VERSION, stamps, config.image.image_size)
        folder = ExampleFolder(f"{cache}/pictures-{made[:16]}")
        index = _make(inputs, folder, PICTURES_SQL, PictureMaker(folder.uri, inputs, config.image.image_size), settings)
    else:
        own = settings.contrast
        styles = own.style_set("train") if own.backgrounds == "drawn" else None
        drawn = digest("styles", *styles.slots) if styles else own.backgrounds
        made = digest("scenes", _VERSION, stamps, own.encoder.resize_to, own.pool, drawn, settings.seed)
        folder = ExampleFolder(f"{cache}/cutouts-{made[:16]}")
        index = _make(inputs, folder, CUTOUTS_SQL, CutoutMaker(folder.uri, inputs, own.encoder.resize_to), settings)
        backgrounds = f"{cache}/backgrounds-{made[:16]}"
        maker = BackgroundMaker(backgrounds, inputs, own.encoder.resize_to, styles, settings.seed)
        _make(inputs, ExampleFolder(backgrounds), _backgrounds_sql(settings), maker, settings)
    if index.num_rows < 2:
        raise InputError(
            f"{settings.inputs}: the tables give {index.num_rows} examples for stage {settings.stage} ({index.reasons})"
        )
    return Prepared(folder.uri, backgrounds, index.num_rows, index.reasons, made)


def _backgrounds_sql(settings: PretrainSettings) -> str:
    pool = settings.contrast.pool
    if settings.contrast.backgrounds == "drawn":
        return f"SELECT range AS number, NULL::VARCHAR AS image FROM range({pool})"
    chosen = f"SELECT DISTINCT image FROM refs_table WHERE image IS NOT NULL ORDER BY md5(image) LIMIT {pool}"
    return f"SELECT row_number() OVER () - 1 AS number, image FROM ({chosen})"


def _make(
    inputs: Inputs, folder: ExampleFolder, query: str, maker: Maker, settings: PretrainSettings, clicks: ExampleFolder | None = None
) -> Index:
    """Make the folder's parts from the query's rows, if it is not complete."""
    if (index := folder.index()) is not None:
        return index
    numbers = []
    for number, table in enumerate(query_parts(inputs, query, clicks, settings.join_memory)):
        numbers.append(number)
        if not folder.has(f"todo/{part_name(number)}"):
            folder.write(f"todo/{part_name(number)}", table)
    missing = [{"part": number} for number in numbers if not folder.has(part_name(number))]
    if missing:
        data = DataContext.get_current()
        data.enable_progress_bars = False
        data.actor_task_retry_on_errors = False
        actors = max(1, min(int(ray.cluster_resources().get("CPU", 1)), len(missing)))
        dataset = ray.data.from_items(missing, override_num_blocks=len(missing))
        for _ in dataset.map(
            _MakePart, fn_constructor_args=(maker,), compute=ActorPoolStrategy(size=actors), num_cpus=0.9
        ).iter_rows():
            pass
    index = read_index(folder, numbers)
    folder.commit(index)
    return index


class _MakePart:
    """A part's number -> its file; what the maker needs is loaded once a process."""

    def __init__(self, maker: Maker):
        self.maker = maker

    def __call__(self, row: dict) -> dict:
        self.maker.make(row["part"])
        return row


def read_index(folder: ExampleFolder, numbers: list[int]) -> Index:
    """Row groups of every part, from its footer, and all reasons."""
    parts, reasons = [], Counter()
    for number in numbers:
        with folder.files.open_input_file(f"{folder.path}/{part_name(number)}") as source:
            file = pq.ParquetFile(source)
            parts.append(
                [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups) if file.metadata.num_rows]
            )
            for name, count in (file.schema_arrow.metadata or {}).items():
                if name.startswith(b"reason:"):
                    reasons[name.removeprefix(b"reason:").decode()] += int(count)
    return Index(parts, dict(reasons))


def query_parts(inputs: Inputs, query: str, clicks: ExampleFolder | None, memory: str = "2GB") -> Iterator[pa.Table]:
    """The query's rows in parts, over the input tables (and what clicked products look like) as Arrow streams. DuckDB takes
    `memory` at most, and spills the rest to a folder that goes with the query."""
    with (
        tempfile.TemporaryDirectory(prefix="adgen-duckdb-") as spill,  # of this user and query alone: it holds histories
        duckdb.connect(config={"memory_limit": memory, "temp_directory": spill}) as connection,
    ):
        connection.execute("SET preserve_insertion_order = true")
        names = {"products": "products", "histories": "histories", "references": "refs_table"}
        for table, name in names.items():
            connection.register("stream", inputs[table].reader())
            connection.execute(f"CREATE TABLE {name} AS SELECT * FROM stream")
            connection.unregister("stream")
        if clicks is not None:
            for number in range(len(clicks.index().parts)):
                connection.register("stream", clicks.read(part_name(number)))
                make = "CREATE TABLE clicked AS" if number == 0 else "INSERT INTO clicked"
                connection.execute(f"{make} SELECT * FROM stream")
                connection.unregister("stream")
        for batch in connection.sql(query).to_arrow_reader(ROWS_PER_PART):
            yield pa.Table.from_batches([batch])


def _tokenizer_digest(start: Path) -> str:
    """Of the weights that turn pictures into codes: the rest of a model may change."""
    total = hashlib.sha256()
    for path in weight_files(start):
        for name, tensor in sorted(read_tensors(path)):
            if "gen_vision_model" in name or "vqmodel" in name:
                total.update(name.encode() + tensor.float().numpy().tobytes())
    return total.hexdigest()
