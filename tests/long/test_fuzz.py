"""2,200 random mutations of tables, feeds, pictures and JSON: never a traceback, never a lost sound row, and memory is bounded.

    PYTHONPATH=tests python -m pytest tests/long/test_fuzz.py --hypothesis-seed=1

Hypothesis draws the mutations and shrinks what fails to the smallest that does. No Ray: catalog and plan are made in this process.
ADGEN_FUZZ=0.1 does a tenth of them.
"""

import json
import os
import resource
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as draw
from PIL import Image
from support.feeds import write_pictures
from support.fuzz.documents import mutated_bytes, mutated_json
from support.fuzz.feeds import MAPPED, ROWS, SCHEMAS, feeds_and_logs
from support.fuzz.pictures import harmless, pictures, spoilt_bytes
from support.fuzz.tables import TABLES, FuzzedShop, parquet, rewritten, spoilt_cells, spoilt_columns
from support.models import save_small_model
from support.runs import CAMPAIGN, make_older, pair_ids, refresh

from adgen.cli import main
from adgen.config import load_settings
from adgen.creatives.pull import pull
from adgen.creatives.stores import open_storage
from adgen.cutouts import check_product, cut_out
from adgen.errors import AdgenError, InputError, PairError
from adgen.generation.model_directory import ModelDirectory
from adgen.images import read_picture, square_frame
from adgen.on_ray.refresh.settings import RefreshSettings
from adgen.shop.inputs.feeds.clicks import ClickOptions, ClickSummary, import_clicks
from adgen.shop.inputs.feeds.products import FeedOptions, FeedSummary, import_feed
from adgen.shop.inputs.tables import open_inputs

SHARE = float(os.environ.get("ADGEN_FUZZ", "1"))
MEMORY = 6 * 2**30  # address space above what the process has
FILES = ("products.parquet", "histories.parquet", "pairs.parquet")


def times(count: int):
    """So many examples; a failing one is shrunk and printed with the words that do it again."""
    return settings(
        max_examples=max(1, int(count * SHARE)),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


@pytest.fixture(autouse=True, scope="module")
def bounded_memory():
    """What one mutation makes grow without bound ends as a MemoryError, not as the machine's end."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


# -- tables ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory) -> FuzzedShop:
    return FuzzedShop(tmp_path_factory.mktemp("tables"))


@times(350)
@given(data=draw.data())
def test_a_bad_cell_costs_its_own_rows_and_no_other(fuzzed, data):
    """Every pair whose product, user and clicks were left alone is planned as it was."""
    tables, touched = data.draw(spoilt_cells(fuzzed.tables))
    planned = fuzzed.plan(tables)
    fuzzed.check_sound_rows(planned, touched)


@times(150)
@given(data=draw.data())
def test_a_column_or_type_that_is_wrong_is_named(fuzzed, data):
    """Or it says the same as before in other words, and then the plan is the same."""
    tables, name = data.draw(spoilt_columns(fuzzed.tables))
    try:
        planned = fuzzed.plan(tables)
    except InputError as error:
        fuzzed.check_names(str(error), name)
        return
    fuzzed.check_sound_rows(planned, fuzzed.touched_by(tables))


@times(100)
@given(data=draw.data())
def test_an_encoding_of_the_file_changes_nothing(fuzzed, data):
    table = data.draw(draw.sampled_from(TABLES))
    options = data.draw(rewritten(fuzzed.tables[table]))
    try:
        planned = fuzzed.plan(fuzzed.tables, {table: options})
    except InputError as error:
        if options["data_page_size"] == 1 and "rows are there" in str(error):
            return  # pages of a byte, of which Arrow reads no row
        raise
    fuzzed.check_sound_rows(planned, frozenset())


@times(200)
@given(data=draw.data())
def test_a_damaged_file_is_refused_or_read(fuzzed, data):
    name = data.draw(draw.sampled_from(FILES))
    whole = fuzzed.file(name)
    spoilt = data.draw(spoilt_bytes(whole))
    with suppress(AdgenError):
        fuzzed.plan(fuzzed.tables, damaged={name: spoilt})


# -- feeds and logs -------------------------------------------------------------------------------------------------------

SHOPS_OWN = feeds_and_logs()


@pytest.fixture(scope="module")
def beside_pictures(tmp_path_factory) -> Path:
    """Where feeds and logs lie."""
    write_pictures(folder := tmp_path_factory.mktemp("feeds"))
    return folder


@times(150)
@given(data=draw.data())
def test_a_damaged_feed_or_log_is_imported_or_named(beside_pictures, data):
    name = data.draw(draw.sampled_from(sorted(SHOPS_OWN)))
    kind, sound = SHOPS_OWN[name]
    imported(beside_pictures, kind, name, data.draw(spoilt_bytes(sound)))


@times(50)
@given(data=draw.data())
def test_an_encoding_of_a_feed_s_or_log_s_parquet_loses_no_row(beside_pictures, data):
    """All of its rows come, or the file is refused by name."""
    kind = data.draw(draw.sampled_from(sorted(ROWS)))
    options = data.draw(rewritten(ROWS[kind]))
    found = imported(beside_pictures, kind, f"{kind}.parquet", parquet(ROWS[kind], SCHEMAS[kind], **options))
    if found is None:
        assert options["data_page_size"] == 1  # of which Arrow reads no row
    else:
        assert (found.rows, found.skipped) == (len(ROWS[kind]), {})


def imported(folder: Path, kind: str, name: str, file: bytes) -> FeedSummary | ClickSummary | None:
    """What its import says, and its tables are there; None where it is refused by a sentence with its name."""
    (folder / name).write_bytes(file)
    tables = folder / "tables"
    shutil.rmtree(tables, ignore_errors=True)
    try:
        if kind == "feed":
            found = import_feed(str(folder / name), tables, FeedOptions(max_bad_share=1, mapping=MAPPED[kind]))
        else:
            found = import_clicks(str(folder / name), tables, ClickOptions(max_bad_share=1, mapping=MAPPED[kind]))
    except AdgenError as error:
        names(error, folder / name)
        return None
    open_inputs(str(tables), ("products" if kind == "feed" else "histories",))
    return found


# -- pictures -------------------------------------------------------------------------------------------------------------

PICTURES = pictures()


@times(600)
@given(data=draw.data())
def test_a_damaged_picture_is_a_picture_or_says_why_not(data):
    name = data.draw(draw.sampled_from(sorted(PICTURES)))
    look_at(data.draw(spoilt_bytes(PICTURES[name])))


@times(100)
@given(data=draw.data())
def test_what_says_nothing_about_the_pixels_loses_no_picture(data):
    name, spoilt = data.draw(harmless(PICTURES))
    assert read_picture(spoilt).tobytes() == read_picture(PICTURES[name]).tobytes()


def look_at(picture: bytes) -> Image.Image | None:
    """All that catalog and finishing do with the bytes."""
    try:
        found = read_picture(picture)
        assert found.mode in ("RGB", "RGBA")
        assert min(found.size) >= 2
        check_product(found)
        square_frame(cut_out(found))
        return found
    except PairError as error:
        known(error)
        return None


def known(error: PairError) -> None:
    """The reasons that a picture has."""
    assert error.reason in ("unreadable", "truncated", "too_large", "too_small", "no_cutout")


# -- documents ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fuzzed_store(tmp_path_factory) -> Path:
    """Three published runs, the last one carried."""
    root = tmp_path_factory.mktemp("documents") / "store"
    for number in range(3):
        refresh(open_storage(root), pair_ids(8), f"look {number}", f"night {number}")
    for entry in list(open_storage(root).entries("objects/")):
        make_older(str(root), entry.key, 0)
    return root


COMMANDS = (
    ["runs", "{}", CAMPAIGN, "--json"],
    ["show", "{}", CAMPAIGN, pair_ids(1)[0]],
    ["verify", "{}", CAMPAIGN],
    ["pull", "{}", CAMPAIGN, "{}.pulled"],
    ["clean-up", "{}", "--dry-run"],
    ["rollback", "{}", CAMPAIGN, "RUN"],
    ["forget", "{}", "--user", "user-0"],
)


@times(250)
@given(data=draw.data())
def test_a_damaged_document_of_the_store_is_one_sentence(fuzzed_store, data, tmp_path_factory, capfd):
    store = copied(fuzzed_store, tmp_path_factory)
    paths = sorted(path for path in store.rglob("*.json") if path.is_file())
    path = data.draw(draw.sampled_from(paths))
    path.chmod(0o600)
    path.write_bytes(data.draw(mutated_json(path.read_bytes()) | mutated_bytes(path.read_bytes())))
    words = data.draw(draw.sampled_from(COMMANDS))
    run = sorted(each.name for each in (store / "campaigns" / CAMPAIGN / "runs").iterdir())[0]
    code = main([word.replace("{}", str(store)).replace("RUN", run) for word in words])
    out, said = capfd.readouterr()
    assert code in (0, 1)
    assert "Traceback" not in said
    assert code == 0 or said.strip() or out.strip()
    shutil.rmtree(store.parent)


@times(100)
@given(data=draw.data())
def test_a_damaged_document_of_another_run_costs_consumers_nothing(fuzzed_store, data, tmp_path_factory):
    store = copied(fuzzed_store, tmp_path_factory)
    published = json.loads((store / "campaigns" / CAMPAIGN / "latest.json").read_bytes())["run_id"]
    others = [each for each in store.rglob("*.json") if "/runs/" in str(each) and published not in str(each) and each.is_file()]
    path = data.draw(draw.sampled_from(sorted(others)))
    path.chmod(0o600)
    path.write_bytes(data.draw(mutated_json(path.read_bytes()) | mutated_bytes(path.read_bytes())))
    done = pull(open_storage(store), CAMPAIGN, store.parent / "pulled")
    assert not done.problems
    shutil.rmtree(store.parent)


def copied(store: Path, tmp_path_factory) -> Path:
    return Path(shutil.copytree(store, tmp_path_factory.mktemp("copy") / "store"))


@pytest.fixture(scope="module")
def small_model_directory(tmp_path_factory) -> Path:
    save_small_model(directory := tmp_path_factory.mktemp("models") / "model")
    (directory / "sampling.json").write_text('{"guidance": 3.0, "picture_temperature": 0.5}')
    return directory


@times(100)
@given(data=draw.data())
def test_a_damaged_model_directory_says_which_file(small_model_directory, data, tmp_path_factory):
    directory = Path(shutil.copytree(small_model_directory, tmp_path_factory.mktemp("model") / "model"))
    path = data.draw(draw.sampled_from(sorted(each for each in directory.iterdir() if each.suffix != ".safetensors")))
    path.write_bytes(data.draw(mutated_json(path.read_bytes()) | mutated_bytes(path.read_bytes())))
    model = ModelDirectory(directory)
    try:
        model.check()
        model.load()
        model.prompter.history_title_ids("a lamp")
    except AdgenError as error:
        names(error, directory)
    shutil.rmtree(directory)


@times(50)
@given(data=draw.data())
def test_damaged_settings_name_the_file(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("settings") / "refresh.toml"
    sound = (Path(__file__).parents[2] / "jobs" / "refresh.toml").read_bytes()
    path.write_bytes(data.draw(mutated_bytes(sound)))
    try:
        load_settings(RefreshSettings, path)
    except AdgenError as error:
        names(error, path)


def names(error: AdgenError, path: Path) -> None:
    """Who reads the sentence knows where to look."""
    assert str(path) in str(error)
