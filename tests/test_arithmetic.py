"""The numbers of cluster/ARITHMETIC.md are computed again from the formulas that stand beside them."""

import json
import math
import re

import pytest
from support.arithmetic import PAGE, ROOT, inputs_and_results, number, tables, value_of

from adgen.model.config import PRESETS

ROUNDING = 0.006  # numbers are printed with three digits


@pytest.mark.parametrize("columns", [("value",), ("H200", "H100", "L40S"), ("1B", "7B")])
def test_every_result_follows_from_its_formula(columns):
    _, results = inputs_and_results(columns)
    assert len(results) >= 3 * len(columns)
    wrong = [(name, exact, shown) for name, exact, shown in results if not math.isclose(exact, shown, rel_tol=ROUNDING)]
    assert wrong == []


def test_the_hours_table_follows_from_the_pairs():
    pairs = inputs_and_results()[0]["value"]["pairs"]
    [(header, rows)] = [(h, r) for h, r in tables(PAGE) if h[:2] == ["pictures/s/GPU", "share generated"]]
    fleets = [number(cell.removesuffix(" GPUs")) for cell in header[3:]]
    assert len(rows) >= 4
    for row in rows:
        rate, share, gpu_hours, *hours = map(number, row)
        assert gpu_hours == pytest.approx(pairs * share / rate / 3600, rel=ROUNDING)
        assert hours == [pytest.approx(gpu_hours / fleet, rel=ROUNDING) for fleet in fleets]


def test_the_training_inputs_are_the_models_own():
    names, _ = inputs_and_results(("1B", "7B"))
    for column, preset in (("1B", "janus-pro-1b"), ("7B", "janus-pro-7b")):
        config, shown = PRESETS[preset](), names[column]
        assert (shown["width"], shown["layers"]) == (config.decoder.hidden_size, config.decoder.num_layers)
        assert (shown["inner"], shown["vocabulary"]) == (config.decoder.intermediate_size, config.decoder.vocab_size)
        assert shown["head_inner"] == config.image.head_size
        assert shown["condition_layers"] == math.ceil(config.decoder.num_layers / config.foreground.interval)


def test_the_trainable_formula_gives_the_released_count():
    released = json.loads((ROOT / "tests/golden/real_keys/trainable_keys.json").read_text())["n_params"]
    names, _ = inputs_and_results(("1B", "7B"))
    assert names["7B"]["trainable"] == pytest.approx(released, rel=0.002)


def test_prices_are_settings_and_none_is_claimed():
    names = inputs_and_results()[0]["value"]
    assert {names[name] for name in ("gpu_hour_price", "put_price", "storage_price", "spot_factor")} == {1.0}
    for page in ("README.md", "ARITHMETIC.md"):
        assert not re.findall(r"\$ ?[0-9]", (ROOT / "cluster" / page).read_text())
    prices = {**names, "gpu_hour_price": 8.0, "spot_factor": 0.5}
    assert value_of("gpu_hours * gpu_hour_price * spot_factor", prices) == 4 * names["cost_first_night"]


def test_the_readmes_training_table_repeats_the_page():
    names, _ = inputs_and_results(("1B", "7B"))
    [(_, rows)] = [(h, r) for h, r in tables(ROOT / "cluster/README.md") if h == ["what", "1B", "7B", "result"]]
    for label, *cells, name in rows:
        for column, cell in zip(("1B", "7B"), cells, strict=True):
            shown, unit = cell.split()
            exact = names[column][name.strip("`")] / {"GB": 1e9, "h": 1}[unit]
            assert number(shown) == pytest.approx(exact, rel=ROUNDING), label


def test_a_wrong_number_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("| input | value | unit | source |\n|---|---|---|---|\n| `a` | 2 | x | y |\n\n"
                    "| result | formula | value | unit |\n|---|---|---|---|\n| `b` | `a * 3` | 7 | x |\n")  # fmt: skip
    assert inputs_and_results(page=page)[1] == [("`b` value", 6.0, 7.0)]
    with pytest.raises(KeyError):
        value_of("__import__('os')", {})
