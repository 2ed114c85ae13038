"""What a dry run reckons with, and what it says about where its numbers come from."""

import json
from pathlib import Path

import pytest
from support.progress import Silent
from support.shops import small_shop

from adgen.errors import SettingsError
from adgen.on_ray.refresh.dry_run import forecast, read_benchmark
from adgen.on_ray.refresh.job import refresh
from adgen.on_ray.refresh.settings import ForecastSettings, RefreshSettings

RECORD = {"pictures_per_second": 4.0, "model": "small", "device": "cpu", "dtype": "float32", "batch": 5, "more": [1]}


def write(path: Path, **changes) -> Path:
    path.write_text(json.dumps({name: value for name, value in (RECORD | changes).items() if value is not None}))
    return path


@pytest.mark.slow
def test_seconds_that_are_set_come_before_the_benchmark_and_that_before_the_published_run(no_ray, model, tmp_path):
    small_shop(tmp_path / "inputs", num_products=4, num_users=2).save()
    made = RefreshSettings.model_validate(
        {
            "inputs": str(tmp_path / "inputs"),
            "store": str(tmp_path / "store"),
            "campaign": "spring",
            "model": str(model),
            "sampling": {"max_title_tokens": 8},
            "engine": {"deepspeed": False},
            "finish": {"width": 64, "height": 64, "gates": {"title_empty": "warn"}},
        }
    )
    nothing = forecast(made)
    assert (nothing.hours, nothing.cost) == (None, None)
    assert nothing.speed_from.startswith("unknown: no run is published")

    path = write(tmp_path / "engine.json")
    measured = forecast(made.model_copy(update={"forecast": ForecastSettings(benchmark=path, price_an_hour=36)}))
    assert measured.speed_from == f"benchmark {path} (small, cpu, float32, batches of 5)"
    assert (measured.to_generate, measured.seconds_a_creative) == (4, 0.25)
    assert (measured.engine_hours, measured.cost) == (pytest.approx(1 / 3600), pytest.approx(0.01))

    both = forecast(made.model_copy(update={"forecast": ForecastSettings(benchmark=path, seconds_a_creative=2)}))
    assert (both.seconds_a_creative, both.speed_from) == (2, "forecast.seconds_a_creative")

    summary = refresh(made, Silent())
    published = forecast(made)
    assert published.speed_from == f"run {summary.run_id}, which is published"
    assert published.seconds_a_creative > 0
    assert (published.to_generate, published.carried) == (0, 4)

    anew = {"forecast": ForecastSettings(seconds_a_creative=3600, price_an_hour=2), "engine": {"tensor_parallel": 2}}
    again = forecast(RefreshSettings.model_validate(made.model_dump() | anew | {"plan": {"campaign_seed": 7}}))
    share_ok = (4 - summary.rejected) / 4
    assert (again.to_generate, again.cost) == (4, 8)
    assert again.cost_per_1000 == pytest.approx(2000 / share_ok)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"pictures_per_second": None}, r"engine\.json: pictures_per_second: Field required; write it with .* --save"),
        ({"pictures_per_second": 0}, r"pictures_per_second: Input should be greater than 0"),
        ({"model": "janus-pro-7b"}, "measured janus-pro-7b, and this refresh runs small; measure that"),
    ],
)
def test_a_record_that_says_nothing_of_this_refresh_is_refused(tmp_path, change, problem):
    with pytest.raises(SettingsError, match=problem):
        read_benchmark(write(tmp_path / "engine.json", **change), "small")


def test_a_record_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"forecast\.benchmark: .*nowhere.json: No such file"):
        read_benchmark(tmp_path / "nowhere.json", "small")
