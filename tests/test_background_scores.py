"""PBS of many pictures, its robustness, and retrieval of labelled photographs: adgen/evaluation/ and their commands."""

import json
import math
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.models import save_small_model

from adgen import records
from adgen.errors import InputError
from adgen.evaluation.pictures.pbs_features import pbs_features, reencoded
from adgen.evaluation.robustness.changes import CHANGES, Change
from adgen.evaluation.robustness.pbs_robustness import measure_robustness
from adgen.evaluation.robustness.photographs import compare_scores, photograph_features, read_photographs
from adgen.evaluation.robustness.retrieval import average_precision, expected_precision
from adgen.evaluation.robustness.scenes import drawn_scenes, table_scenes
from adgen.model.pbs import PBS_CONFIG_FILE, PBS_FILE, PBSEncoder, initialize_pbs, load_pbs, pbs, preprocess
from adgen.model.pbs_config import PBSConfig
from adgen.shop.inputs.tables import open_inputs

CONFIG = PBSConfig(image_size=32, resize_to=36, patch_size=8, hidden_size=32, num_layers=2, num_heads=2, feature_size=16)
REAL = Path(__file__).parents[2] / "shared" / "data" / "clothing"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> PBSEncoder:
    """A random encoder, read from the files that stage pbs writes."""
    folder = tmp_path_factory.mktemp("pbs")
    save_file(initialize_pbs(PBSEncoder(CONFIG)).state_dict(), folder / PBS_FILE)
    (folder / PBS_CONFIG_FILE).write_text(CONFIG.model_dump_json())
    loaded = load_pbs(folder)
    loaded.folder = folder
    return loaded


# -- PBS -------------------------------------------------------------------------------------------------------


def test_pbs_of_many_pictures_is_that_of_each(encoder):
    pictures = [scene.shown() for scene in drawn_scenes(5, 48, 0)]
    features = pbs_features(encoder, iter(pictures), batch_size=2)
    with torch.no_grad():
        singly = torch.cat([encoder(preprocess(each, CONFIG)[None]) for each in pictures])
    assert torch.allclose(features, singly, atol=1e-5)
    scores = pbs(features, features.flip(0))
    assert scores[2] == pytest.approx(1, abs=1e-5)
    assert scores[0] == pytest.approx(float(torch.cosine_similarity(singly[0], singly[4], dim=0)), abs=1e-5)
    assert scores[0] < 0.999


def test_an_empty_set_is_refused(encoder):
    with pytest.raises(InputError, match="no picture"):
        pbs_features(encoder, [])


def test_the_published_tool_s_jpeg_is_pillow_s_own():
    picture = next(iter(drawn_scenes(1, 48, 0))).shown()
    assert reencoded(picture).size == picture.size
    change = np.abs(np.asarray(reencoded(picture), int) - np.asarray(picture, int))
    assert 0 < change.mean() < 8


# -- robustness ------------------------------------------------------------------------------------------------


def test_every_change_changes_the_picture_the_same_way_each_time():
    scene = next(iter(drawn_scenes(1, 96, 3)))
    shown = np.asarray(scene.shown(), int)
    for change in CHANGES:
        first, again = (np.asarray(change.make(scene, np.random.default_rng(5)), int) for _ in range(2))
        assert first.shape == shown.shape, change
        assert np.array_equal(first, again), change
        assert np.abs(first - shown).max() > 0, change


def test_movements_are_seen_against_other_backgrounds(encoder):
    """An unchanged picture moves by nothing; another background by the whole margin."""
    scenes = list(drawn_scenes(12, 48, 0))
    exchanged = {id(scene): other for scene, other in zip(scenes, scenes[1:] + scenes[:1], strict=True)}
    changes = (
        Change("none", "", lambda scene, rng: scene.shown()),
        Change("background", "", lambda scene, rng: scene._replace(background=exchanged[id(scene)].background).shown()),
        *CHANGES[:1],
    )
    done = []
    found = measure_robustness(encoder, scenes, changes=changes, each=done.append)
    assert sum(done) == found.pictures == 12
    none, background, other_product = found.movements
    assert (none.pbs, none.share_of_margin) == (pytest.approx(1, abs=1e-5), pytest.approx(0, abs=1e-4))
    assert none.nearer_than_other == 1
    assert background.share_of_margin == pytest.approx(1, abs=0.35)
    assert 0.2 < background.nearer_than_other < 0.8
    assert other_product.pbs < 1
    assert found.same_style is not None
    assert all(math.isfinite(value) for row in found.as_dict()["movements"] for value in row.values() if isinstance(value, float))


def test_one_picture_or_one_style_is_nothing_to_compare_with(encoder):
    scenes = list(drawn_scenes(11, 48, 0))
    with pytest.raises(InputError, match="two pictures at least, found 1"):
        measure_robustness(encoder, scenes[:1])
    with pytest.raises(InputError, match="all 2 pictures are of the style 'studio'"):
        measure_robustness(encoder, [scenes[0], scenes[10]])


def test_an_encoder_that_sees_nothing_has_no_margin(encoder):
    blind = initialize_pbs(PBSEncoder(CONFIG)).eval()
    with torch.no_grad():
        blind.patch_embed.proj.weight.zero_()
    found = measure_robustness(blind, drawn_scenes(3, 48, 0), changes=CHANGES[:2])
    assert found.movements[0].share_of_margin is None
    assert found.movements[0].nearer_than_other == 0


def shop_tables(folder: Path, broken: bool = False) -> str:
    """Three products and three references; the first of each can't be read if `broken`."""
    products, references = [], []
    for at, scene in enumerate(drawn_scenes(3, 48, 9)):
        scene.cutout.save(folder / f"cutout{at}.png")
        scene.shown().save(folder / f"reference{at}.png")
        named = {"product_id": f"p{at}", "image": f"reference{at}.png"}
        products.append(named | {"title": "mug", "selling_points": [], "cutout": f"cutout{at}.png", "scale": 0.5})
        references += [named | {"user_id": f"{name}{at}", "titles": ["mug"]} for name in ("u", "v")]  # one picture, two users
    if broken:
        (folder / "cutout0.png").write_bytes(b"")
        (folder / "reference0.png").unlink()
    for name, rows in (("products", products), ("references", references)):
        pq.write_table(pa.Table.from_pylist(rows, records.INPUT_TABLES[name]), folder / f"{name}.parquet")
    return str(folder)


def test_scenes_from_tables_count_what_they_leave_out(tmp_path, encoder):
    inputs = open_inputs(shop_tables(tmp_path, broken=True), ("products", "references"))
    problems = Counter()
    scenes = list(table_scenes(inputs, 5, 48, 0, problems))
    assert len(scenes) == 2, "a reference each, though there are cut-outs for one: they come again"
    assert problems == {"products: unreadable": 1, "references: missing_file": 1}
    assert all(isinstance(part, Image.Image) and part.size == (48, 48) for part in scenes[0][:3])
    (tmp_path / "cutout1.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"no two cut-outs can be read.*products: unreadable"):
        list(table_scenes(inputs, 5, 48, 0, Counter()))


# -- retrieval -------------------------------------------------------------------------------------------------


def test_average_precision_of_known_orders():
    features = torch.tensor([[1.0, 0], [0.99, 0.1], [-1, 0.1], [-1, 0]])
    perfect = average_precision(features, np.array(["a", "a", "b", "b"]))
    assert perfect.precision.tolist() == [1, 1, 1, 1]
    # The match is the farthest of three, or the second; its cosine is negative, which torchmetrics would leave out.
    worst = average_precision(features, np.array(["a", "b", "b", "a"]))
    assert worst.precision.tolist() == pytest.approx([1 / 3, 1 / 2, 1 / 2, 1 / 3])


def test_what_shares_a_sort_does_not_meet_and_lonely_queries_are_counted():
    features = torch.eye(4)
    found = average_precision(features, np.array(["a", "a", "a", "b"]), np.array(["x", "x", "y", "y"]))
    assert found.without_match == 1
    assert len(found.precision) == 3


@pytest.mark.parametrize(("relevant", "number"), [(1, 1), (1, 5), (3, 7), (7, 7)])
def test_chance_is_the_mean_of_random_orders(relevant, number):
    rng = np.random.default_rng(0)
    labels = np.arange(number) < relevant
    orders = [rng.permutation(labels) for _ in range(20_000)]
    drawn = [np.mean(np.cumsum(order)[order] / (np.flatnonzero(order) + 1)) for order in orders]
    assert expected_precision(relevant, number) == pytest.approx(np.mean(drawn), abs=0.01)


# -- photographs -----------------------------------------------------------------------------------------------


def photograph_set(folder: Path) -> Path:
    """Six photographs of two kinds, red and blue behind; one has no label, one no cut-out, one a broken picture."""
    (folder / "trans").mkdir()
    entries, labels = [], {}
    for at in range(9):
        colour = (200, 30 + 5 * at, 30) if at % 2 else (30, 30 + 5 * at, 200)
        Image.new("RGB", (30, 40), colour).save(folder / f"s{at}.png")
        cutout = Image.new("RGBA", (30, 40))
        cutout.paste((0, 255, 0, 255), (10, 10, 20, 30))
        cutout.save(folder / "trans" / f"s{at}.png")
        labels[f"s{at}"] = {"bg": at % 2, "cls": f"sort {at % 3}"}
        entries.append({"f_path": f"s{at}.png", "f_path_trans": f"trans/s{at}.png", "sku_title_cn": "mug"})
    entries[0] |= {"history_images": ["s8.png", "s1.png"], "history_titles": ["", ""]}
    del entries[8], labels["s5"]  # s8 is only clicked: its cut-out lies beside the others
    entries[6]["f_path_trans"] = ""
    (folder / "s7.png").write_bytes(b"no picture")
    (folder / "pad1m.json").write_text(json.dumps(entries))
    (folder / "labels.json").write_text(json.dumps(labels))
    return folder


def test_photographs_are_read_and_the_others_counted(tmp_path):
    problems = Counter()
    found = read_photographs(photograph_set(tmp_path), problems=problems)
    assert [each.name for each in found] == ["s0", "s1", "s2", "s3", "s4", "s8"]
    assert problems == {"no label": 1, "no cut-out": 1, "unreadable": 1}
    assert {each.background for each in found} == {"0", "1"}


def test_colour_tells_kinds_of_colour_apart(tmp_path, encoder):
    found = read_photographs(photograph_set(tmp_path))
    features = photograph_features(found, encoder, None)
    findings = {(each.score, each.gallery): each for each in compare_scores(found, features, 0, 200)}
    assert set(findings) == {
        (score, where) for score in ("PBS", "PBS, untrained", "mean colour") for where in ("all products", "other sorts")
    }
    colour = findings["mean colour", "all products"]
    assert (colour.mean_average_precision, colour.low, colour.high, colour.queries) == (1, 1, 1, 6)
    assert 0.4 < colour.chance < 0.8
    assert all(each.low <= each.mean_average_precision <= each.high for each in findings.values())


def test_bad_labels_are_named(tmp_path):
    folder = photograph_set(tmp_path)
    with pytest.raises(InputError, match=r"nowhere\.json: no such file"):
        read_photographs(folder, folder / "nowhere.json")
    (folder / "labels.json").write_text('{"s0": 3}')
    with pytest.raises(InputError, match=r'labels\.json: s0: expected \{"bg"'):
        read_photographs(folder)
    (folder / "labels.json").write_text('{"s0": {"bg": 3}}')
    with pytest.raises(InputError, match=r"1 labelled photographs with cut-outs can be used, two are needed: .*no label"):
        read_photographs(folder)


# -- the commands ----------------------------------------------------------------------------------------------


def run(arguments: list[str], capsys) -> tuple[int, str, str]:
    sys.path.insert(0, str(Path(__file__).parents[1] / "jobs"))
    try:
        import evaluate
    finally:
        sys.path.pop(0)
    code = evaluate.main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def test_robustness_prints_a_table_and_one_json_line(encoder, capsys, tmp_path):
    arguments = ["robustness", "--encoder", str(encoder.folder), "--pictures", "4", "--side", "48", "--device", "cpu"]
    code, out, err = run([*arguments, "--save", str(tmp_path / "table.json")], capsys)
    assert code == 0, err
    record = json.loads(out)
    assert len(record["movements"]) == len(CHANGES)
    assert record["pictures"] == 4
    assert record["left_out"] == {}
    assert "other product" in err
    assert json.loads((tmp_path / "table.json").read_text()) == record
    again = json.loads(run(arguments, capsys)[1].splitlines()[-1])
    assert again["movements"] == record["movements"]


def test_photographs_prints_every_score_beside_chance(encoder, capsys, tmp_path):
    save_small_model(tmp_path / "model")
    (tmp_path / "set").mkdir()
    data = ["photographs", "--data", str(photograph_set(tmp_path / "set")), "--model", str(tmp_path / "model")]
    code, out, err = run([*data, "--encoder", str(encoder.folder), "--resamples", "100", "--device", "cpu"], capsys)
    assert code == 0, err
    record = json.loads(out.splitlines()[-1])
    assert {each["score"] for each in record["findings"]} == {"PBS", "PBS, untrained", "own adapter", "mean colour"}
    assert (record["photographs"], record["kinds"]) == (6, 2)
    assert record["left_out"] == {"no cut-out": 1, "no label": 1, "unreadable": 1}
    assert "left out: no cut-out 1, no label 1, unreadable 1" in err
    assert "NaN" not in out
    code, out, err = run([*data, "--encoder", str(tmp_path)], capsys)
    assert code == 1
    assert "is not an encoder of stage pbs" in err


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="the photographs are not at hand")
def test_real_photographs_can_all_be_used():
    """150 in six kinds; the colour behind them tells something of the kind, and far from all."""
    problems = Counter()
    found = read_photographs(REAL, problems=problems)
    assert len(found) == 150
    assert not problems
    assert sorted(Counter(each.background for each in found).values()) == [17, 18, 25, 25, 28, 37]
    colour, others = compare_scores(found, photograph_features(found, None, None), 0, 200)
    assert colour.chance == pytest.approx(0.199, abs=0.001)
    assert colour.low > 1.5 * colour.chance
    assert colour.high < 0.8
    assert others.queries == 150
