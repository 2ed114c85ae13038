"""How good a model is.

    python jobs/evaluate.py run --store demo/store --campaign demo --inputs demo/shop
    python jobs/evaluate.py model --model runs/tiny/personal/model --inputs demo/shop --out evaluation
    python jobs/evaluate.py proof --model runs/tiny/personal/model --encoder runs/tiny/pbs/model
    python jobs/evaluate.py robustness --encoder runs/tiny/pbs/model
    python jobs/evaluate.py photographs --data photographs/ --encoder runs/tiny/pbs/model

`run` scores every creative of a run, `model` those that a model makes of the pairs with a reference: rows as Parquet, means
with intervals as JSON, a report, and with `--against` a comparison with an earlier evaluation. Stopped, the same command goes
on with what is missing. `proof` measures what is claimed of personalization on a shop that nobody trained on; `robustness` how
far PBS moves when a picture changes and its background does not; `photographs` how well scores separate labelled kinds
of background. Progress goes to stderr, the table to stdout, and the last line of stdout is one JSON object.
"""

import json
import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro
from pydantic import ValidationError
from rich.console import Console
from tyro.conf import arg

from adgen.errors import AdgenError, SettingsError
from adgen.evaluation.robustness.settings import PhotographsSettings, RobustnessSettings
from adgen.on_ray.evaluation.settings import ModelEvaluationSettings, RunEvaluationSettings
from adgen.on_ray.proof.settings import ProofSettings

app = tyro.extras.SubcommandApp()
Save = Annotated[Path | None, arg(metavar="FILE", help="write the JSON there, too")]


class Outcome(NamedTuple):
    """What a command found, and whether the job succeeded."""

    record: dict[str, Any]
    save: Path | None = None
    """Where the record goes, too."""
    passed: bool = True


@app.command
def run(settings: Annotated[RunEvaluationSettings, arg(name="")]) -> Outcome:
    """How good are the creatives of a published run? Every row scored, means with intervals, a report."""
    from adgen.on_ray.cluster import connected
    from adgen.on_ray.display import RichProgress
    from adgen.on_ray.evaluation.job import evaluate_run

    with redirect_stdout(sys.stderr), connected(settings.cluster, settings.s3), RichProgress(Console(stderr=True)) as bar:
        record = evaluate_run(settings, bar)
    return _outcome(record)


@app.command
def model(settings: Annotated[ModelEvaluationSettings, arg(name="")]) -> Outcome:
    """How good are the creatives that a model makes of the pairs with a reference? Made, then scored as `run` does."""
    from adgen.on_ray.cluster import connected
    from adgen.on_ray.display import RichProgress
    from adgen.on_ray.evaluation.model import evaluate_model

    with redirect_stdout(sys.stderr), connected(settings.cluster, settings.s3), RichProgress(Console(stderr=True)) as bar:
        record = evaluate_model(settings, bar)
    return _outcome(record)


def _outcome(record: dict[str, Any]) -> Outcome:
    from adgen.evaluation.report.tables import print_scores

    print_scores(Console(width=max(Console().width, 120)), record)
    return Outcome(record)


@app.command
def proof(
    settings: Annotated[ProofSettings, arg(name="")],
    require_goals: Annotated[bool, arg(help="exit with 1 where a goal is missed, undecided or not measured")] = False,
    save: Save = None,
) -> Outcome:
    """Does a creative follow its user? Style, PBS, title and product on a held-out shop, with controls and goals."""
    from adgen.evaluation.proof.table import print_proof
    from adgen.on_ray.cluster import connected
    from adgen.on_ray.display import RichProgress
    from adgen.on_ray.proof.job import prove

    progress = Console(stderr=True)
    # Libraries print to stdout what they like; there our table and one JSON object stand alone.
    with redirect_stdout(sys.stderr), connected(settings.cluster), RichProgress(progress, unit="") as bar:
        found = prove(settings, bar)
    record = found.as_dict() | {"command": shlex.join(["python", "jobs/evaluate.py", *sys.argv[1:]])}
    print_proof(Console(width=max(Console().width, 120)), found)
    return Outcome(record, save, not (require_goals and found.falls_short))


@app.command
def robustness(settings: Annotated[RobustnessSettings, arg(name="")], save: Save = None) -> Outcome:
    """How far does PBS move when a picture changes and its background does not? Compared with the score of other backgrounds."""
    from adgen.evaluation.report.tables import print_robustness
    from adgen.evaluation.robustness.commands import run_robustness
    from adgen.on_ray.display import RichProgress

    with RichProgress(Console(stderr=True), unit="pictures") as bar:
        found, record = run_robustness(settings, bar)
    print_robustness(Console(width=max(Console().width, 120)), found, record["left_out"])
    return Outcome(record, save)


@app.command
def photographs(settings: Annotated[PhotographsSettings, arg(name="")], save: Save = None) -> Outcome:
    """How well do scores separate labelled kinds of background in real photographs? Retrieval over other products."""
    from adgen.evaluation.report.tables import print_photographs
    from adgen.evaluation.robustness.commands import run_photographs
    from adgen.on_ray.display import RichProgress

    with RichProgress(Console(stderr=True), unit="scores") as bar:
        found, record = run_photographs(settings, bar)
    print_photographs(Console(width=max(Console().width, 120)), found, record)
    return Outcome(record, save)


def _save(record: dict[str, Any], file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"save: {file}: {error}; the JSON stands on stdout") from None


def main(arguments: list[str]) -> int:
    """Run a command; the exit code."""
    console = Console(stderr=True, soft_wrap=True)
    try:
        outcome = app.cli(args=arguments, prog="evaluate.py", description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))
        print(json.dumps(outcome.record, ensure_ascii=False), flush=True)  # first: minutes of work outlive a full disk
        if outcome.save is not None:
            _save(outcome.record, outcome.save)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors(include_url=False))
        console.print(f"evaluate: {problems}", style="red", markup=False, highlight=False)
        return 1
    except (AdgenError, OSError) as error:  # OSError: a full disk, a folder that may not be written
        console.print(f"evaluate: {error}", style="red", markup=False, highlight=False)
        return 1
    return 0 if outcome.passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
