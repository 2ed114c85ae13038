"""A proof for people: goals hit and missed, then the models and histories it was compared with."""

from rich.console import Console
from rich.table import Table

from adgen.evaluation.proof.goals import CLASSIFIER_LEAST, GoalCheck, check_goals
from adgen.evaluation.proof.result import Proof
from adgen.evaluation.proof.unseen import print_findings


def print_proof(console: Console, proof: Proof) -> None:
    """All tables and notes."""
    values = proof.values
    title = f"proof on {values['num_pairs']} pairs, seed {values['seed']}, model {values['model_digest'][:12]}"
    table = Table("", "measure", "what it is", "value", "goal", "", title=title, title_justify="left")
    section = None
    for verdict in check_goals(values):
        name = verdict.goal.section if verdict.goal.section != section else ""
        section = verdict.goal.section
        table.add_row(name, verdict.goal.name, verdict.goal.meaning, _text(verdict.value), verdict.goal.text, _mark(verdict))
    console.print(table)
    if proof.unseen:
        print_findings(console, proof.unseen)
    for heading, rows in (("clicks in random other styles", proof.noise), ("ablation", proof.ablation)):
        if rows:
            columns = list(dict.fromkeys(name for row in rows for name in row))
            compared = Table(*(column.replace("_", " ") for column in columns), title=heading, title_justify="left")
            for row in rows:
                compared.add_row(*(_text(row.get(column)) for column in columns))
            console.print(compared)
    if proof.undecided:
        console.print(f"undecided while the classifier's accuracy on real pictures is below {CLASSIFIER_LEAST}")
    if proof.unmeasured:
        console.print(f"not measured: {', '.join(proof.unmeasured)}")
    for note in proof.notes:
        console.print(f"note: {note}", markup=False, highlight=False)


def _mark(verdict: GoalCheck) -> str:
    if verdict.undecided:
        return "[yellow]undecided[/yellow]"
    return {None: "", True: "[green]hit[/green]", False: "[red]missed[/red]"}[verdict.hit]


def _text(value: object) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
