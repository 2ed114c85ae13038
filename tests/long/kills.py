"""Kills at random moments: nothing is lost, nothing doubled, nobody who is forgotten stays.

    PYTHONPATH=tests python tests/long/kills.py --kills 100 --seed 1 [--work DIR] [--from N] [--only N] [--no-refresh]

Each kill copies a store with four nights in it (half of them a folder, half S3, which is moto on loopback), runs commands beside
each other on it (refresh, forget, rollback, clean-up), and sends SIGKILL to a driver, an actor, a node or a rank at a random
moment, or at a random act on the store. Then the same commands run again, and the store is looked through: the published rows are
those of an undisturbed run, none is there twice, a consumer that reads all the time saw whole runs only, no shard that was
committed is made again, and a forgotten user is nowhere. Most refreshes paint noise in the engine's place; one in eight runs the
real engine of a small random model, and those whose ranks die always do.

With --work the shop and what was done stay there: the same command goes on. A kill that fails names itself; --only does it again.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from support.kills.cluster import TwoNodes
from support.kills.kill import Draw, Outcome, do_kill
from support.kills.scene import Scene, start_s3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--from", type=int, default=0, dest="first", help="number of the first kill")
    parser.add_argument("--only", type=int, help="do this kill alone")
    parser.add_argument("--no-refresh", action="store_true", help="only kills in which no refresh takes part: they start no Ray")
    parser.add_argument("--work", type=Path, help="folder that stays; default one that goes")
    arguments = parser.parse_args()
    numbers = [arguments.only] if arguments.only is not None else range(arguments.first, arguments.kills)
    if arguments.no_refresh:
        numbers = [number for number in numbers if "refresh" not in Draw.of(arguments.seed, number).commands]
    with nullcontext(str(arguments.work)) if arguments.work else tempfile.TemporaryDirectory(prefix="adgen-kills-") as folder:
        return kill_all(Path(folder), arguments.seed, numbers, again=arguments.only is not None)


def kill_all(folder: Path, seed: int, numbers, again: bool) -> int:
    """Every kill that is not done yet; exit code 1 where something did not hold."""
    folder.mkdir(parents=True, exist_ok=True)
    results, started = folder / f"kills-{seed}.jsonl", time.monotonic()
    done = [Outcome(**json.loads(line)) for line in results.read_text().splitlines()] if results.exists() and not again else []
    known = {outcome.number for outcome in done}
    left = [number for number in numbers if number not in known]
    if left:
        with tempfile.TemporaryDirectory(prefix="scene-", dir=folder) as room:
            say(f"{len(left)} kills; a shop, a store of four nights and an undisturbed run are made first")
            draws = [Draw.of(seed, number) for number in left]
            scene = Scene(Path(room), start_s3()).prepare(with_engine=any(draw.engine == "engine" for draw in draws))
            with TwoNodes() if any("refresh" in draw.commands for draw in draws) else nullcontext() as cluster:
                for place, number in enumerate(left):
                    done.append(outcome := do_kill(scene, cluster, Draw.of(seed, number)))
                    with open(results, "a") as file:
                        print(json.dumps(asdict(outcome)), file=file)
                    report(outcome, seed, place + 1, len(left), started)
    failed = [outcome.number for outcome in done if outcome.faults]
    record = {
        "seed": seed,
        "kills": len(done),
        "failed": failed,
        "victims": dict(Counter(outcome.killed.split(" ")[0].split("::")[0] for outcome in done)),
        "on": dict(Counter(outcome.what.split(":")[0] for outcome in done)),
        "seconds": round(sum(outcome.seconds for outcome in done)),
    }
    print(json.dumps(record), flush=True)
    return 1 if failed else 0


def report(outcome: Outcome, seed: int, place: int, total: int, started: float) -> None:
    """A line for people, with the time that is left."""
    each = (time.monotonic() - started) / place
    left = f"{each * (total - place) / 60:.0f} min left"
    say(f"[{place}/{total}, {left}] kill {outcome.number}, {outcome.what}: {outcome.killed or 'nothing'} died, {outcome.seconds} s")
    for fault in outcome.faults:
        say(f"    FAULT (--seed {seed} --only {outcome.number}): {fault}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
