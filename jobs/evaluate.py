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
of background. A TOML file after the command's name holds its settings, and flags override them. Progress and tables go to
stderr; the last line of stdout is one JSON object (on a terminal with `--json`).
"""

import shlex
import sys
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, arg

from adgen.evaluation.robustness.settings import PhotographsSettings, RobustnessSettings
from adgen.on_ray import command
from adgen.on_ray.command import Outcome, on_cluster, progress
from adgen.on_ray.display import error_console
from adgen.on_ray.evaluation.settings import ModelEvaluationSettings, RunEvaluationSettings
from adgen.on_ray.proof.settings import ProofSettings

commands = command.Commands()
Output = OmitArgPrefixes[command.Output]
WIDTH = 120  # columns of the tables


@commands.add
def run(settings: Annotated[RunEvaluationSettings, arg(name="")], output: Output = command.DEFAULT) -> Outcome:
    """How good are the creatives of a published run? Every row scored, means with intervals, a report."""
    from adgen.on_ray.evaluation.job import evaluate_run

    with on_cluster(settings.cluster, settings.s3, output), progress() as bar:
        record = evaluate_run(settings, bar)
    return _with_scores(record, output)


@commands.add
def model(settings: Annotated[ModelEvaluationSettings, arg(name="")], output: Output = command.DEFAULT) -> Outcome:
    """How good are the creatives that a model makes of the pairs with a reference? Made, then scored as `run` does."""
    from adgen.on_ray.evaluation.model import evaluate_model

    with on_cluster(settings.cluster, settings.s3, output), progress() as bar:
        record = evaluate_model(settings, bar)
    return _with_scores(record, output)


def _with_scores(record: dict[str, Any], output: command.Output) -> Outcome:
    from adgen.evaluation.report.tables import print_scores

    print_scores(error_console(WIDTH), record)
    return Outcome(record, output)


@commands.add
def proof(
    settings: Annotated[ProofSettings, arg(name="")],
    require_goals: Annotated[bool, arg(help="exit with 1 where a goal is missed, undecided or not measured")] = False,
    output: Output = command.DEFAULT,
) -> Outcome:
    """Does a creative follow its user? Style, PBS, title and product on a held-out shop, with controls and goals."""
    from adgen.evaluation.proof.table import print_proof
    from adgen.on_ray.proof.job import prove

    with on_cluster(settings.cluster, output=output), progress("") as bar:
        found = prove(settings, bar)
    record = found.as_dict() | {"command": shlex.join(["python", "jobs/evaluate.py", *sys.argv[1:]])}
    print_proof(error_console(WIDTH), found)
    return Outcome(record, output, not (require_goals and found.falls_short))


@commands.add
def robustness(settings: Annotated[RobustnessSettings, arg(name="")], output: Output = command.DEFAULT) -> Outcome:
    """How far does PBS move when a picture changes and its background does not? Compared with the score of other backgrounds."""
    from adgen.evaluation.report.tables import print_robustness
    from adgen.evaluation.robustness.commands import run_robustness

    with progress("pictures") as bar:
        found, record = run_robustness(settings, bar)
    print_robustness(error_console(WIDTH), found, record["left_out"])
    return Outcome(record, output)


@commands.add
def photographs(settings: Annotated[PhotographsSettings, arg(name="")], output: Output = command.DEFAULT) -> Outcome:
    """How well do scores separate labelled kinds of background in real photographs? Retrieval over other products."""
    from adgen.evaluation.report.tables import print_photographs
    from adgen.evaluation.robustness.commands import run_photographs

    with progress("scores") as bar:
        found, record = run_photographs(settings, bar)
    print_photographs(error_console(WIDTH), found, record)
    return Outcome(record, output)


def main(arguments: list[str]) -> int:
    """Run a command; the exit code."""
    return commands.run("evaluate", __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
