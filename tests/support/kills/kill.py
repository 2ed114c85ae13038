"""One kill: commands beside each other on a store of their own, one of them or of their workers dies, and all are given again.

Everything that chance decides comes from (seed, number), the moment as a share of how long the victim runs undisturbed, so that a
kill can be done again.
"""

import json
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

from pydantic import TypeAdapter

from adgen.creatives.reading import open_published
from adgen.creatives.storage import Storage
from adgen.errors import ConsumerError
from support.kills.checks import Faults, check_store, planned_and_done
from support.kills.cluster import Cluster
from support.kills.commands import Command
from support.kills.scene import CAMPAIGN, Scene, comparable, environment_of
from support.kills.stages import generated

PATIENCE_SECONDS = 900.0  # what takes longer hangs, on the busiest of machines
ACTS = {"refresh": 90, "forget": 120, "rollback": 15, "clean-up": 150}  # on the store, about: more than there are hits nothing
SECONDS = {"refresh": 14.0, "forget": 2.0, "rollback": 0.5, "clean-up": 1.0}
BESIDE = ("forget", "rollback", "clean-up")


@dataclass(frozen=True)
class Draw:
    """What chance decided."""

    seed: int
    number: int
    kind: str
    victim: str
    """driver, actor, node or rank."""
    commands: tuple[str, ...]
    """The first is the victim's."""
    engine: str
    at_act: bool
    """A driver dies at an act on the store, otherwise at a time."""
    when: float
    """0 to 1: of the victim's acts or seconds."""
    which: float
    delays: tuple[float, ...]
    user: float
    to_run: float

    @classmethod
    def of(cls, seed: int, number: int, victim: str | None = None) -> "Draw":
        """Kill `number` of the seed; even ones on a folder, odd ones on S3."""
        chance = random.Random(f"{seed}/{number}")
        drawn = chance.choices(("driver", "actor", "node", "rank"), (76, 12, 6, 4))[0]
        victim = victim or drawn
        name = chance.choices(("refresh", *BESIDE), (22, 34, 14, 30))[0] if victim == "driver" else "refresh"
        others = [each for each in BESIDE if each != name and chance.random() < 0.4]
        if name != "refresh" and chance.random() < 0.15:
            others.insert(0, "refresh")
        real = chance.random() < 0.12 and "refresh" in (name, *others)
        engine = "engine" if victim == "rank" or real else "painter"
        delays = tuple(round(chance.uniform(0, 8 if "refresh" in (name, *others) else 0.5), 2) for _ in others)
        rest = [round(chance.random(), 4) for _ in range(4)]
        kind = "s3" if number % 2 else "folder"
        return cls(seed, number, kind, victim, (name, *others), engine, chance.random() < 0.5, *rest[:2], delays, *rest[2:])

    def __str__(self) -> str:
        when = "act" if self.victim == "driver" and self.at_act else "moment"
        beside = f" beside {', '.join(self.commands[1:])}" if self.commands[1:] else ""
        return f"{self.kind}: {self.victim} of {self.commands[0]} ({self.engine}) at {when} {self.when:.2f}{beside}"


@dataclass
class Outcome:
    """What came of a kill."""

    number: int
    what: str
    killed: str = ""
    tries: int = 0
    """How often it was set up until something died."""
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def do_kill(scene: Scene, cluster: Cluster | None, draw: Draw) -> Outcome:
    """Set up, kill, give the commands again, check. A kill that comes too late is set up again with half the time."""
    outcome, started, when = Outcome(draw.number, str(draw)), time.monotonic(), draw.when
    while not outcome.killed and outcome.tries < 6:
        outcome.tries += 1
        attempt = _Attempt(scene, cluster, draw, when)
        outcome.killed, faults = attempt.run()
        outcome.faults += faults
        when /= 2
    if not outcome.killed:
        outcome.faults.append("nothing died: the victim had ended each time")
    outcome.seconds = round(time.monotonic() - started, 1)
    return outcome


class _Attempt:
    def __init__(self, scene: Scene, cluster: Cluster | None, draw: Draw, when: float):
        self.scene, self.cluster, self.draw, self.when = scene, cluster, draw, when
        self.folder = scene.root / "attempt"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.version = "D" if draw.engine == "engine" else "C"
        shutil.rmtree(scene.inputs[self.version].parent / "generated", ignore_errors=True)
        self.store = scene.copy_of_template(draw.kind, "killed")
        self.user = sorted(scene.pairs)[int(draw.user * len(scene.pairs))]
        runs = sorted(run for run, _ in self._runs_of_template())
        self.to_run = runs[int(draw.to_run * (len(runs) - 1))]
        self.faults = Faults()

    def run(self) -> tuple[str, list[str]]:
        """What died ("" for nothing), and what does not hold."""
        commands = [self._command(name) for name in self.draw.commands]
        with self._watched():
            killed = self._kill(commands)
            for command in commands:
                if command.wait(PATIENCE_SECONDS) is None:
                    self.faults.add(f"{command.name} did not end within {PATIENCE_SECONDS:.0f} s")
                    command.kill()
                self._check_said(command)
            if self.draw.victim != "driver" and "rollback" not in self.draw.commands:  # which may publish another run meanwhile
                self._expect_success(commands[0])
            self._again(commands)
        if killed.startswith("node"):
            self.cluster.add_node()
        forgotten = self.user if "forget" in self.draw.commands else None
        storage = self.scene.open(self.store)
        check_store(self.scene, storage, self.version, self.draw.engine, self.draw.commands, forgotten, self.faults)
        if not self.faults:
            self.scene.remove(self.store)
        return killed, list(self.faults)

    # -- the kill ----------------------------------------------------------------------------------------------------

    def _kill(self, commands: list[Command]) -> str:
        first, others = commands[0], sorted(zip(self.draw.delays, commands[1:], strict=True), key=lambda each: each[0])
        begun = time.monotonic()
        seconds = self.when * SECONDS[first.name]
        if self.draw.victim == "driver" and self.draw.at_act:
            first.dies_at = max(1, int(self.when * ACTS[first.name])) + (0.5 if self.draw.which < 0.5 else 0)
            seconds = PATIENCE_SECONDS
        first.start()
        killed = ""
        while not killed and first.is_running:
            while others and time.monotonic() - begun >= others[0][0]:
                others.pop(0)[1].start()
            if time.monotonic() - begun >= seconds:
                killed = self._hit(first)
            time.sleep(0.02)
        if first.dies_at and first.wait(0) == -9:
            killed = f"{first.name} at act {first.dies_at:g}"
        for delay, command in others:
            time.sleep(max(0.0, delay - (time.monotonic() - begun)))
            command.start()
        return killed

    def _hit(self, first: Command) -> str:
        if self.draw.victim == "driver":
            return f"{first.name} after {time.monotonic() - first.started:.1f} s" if first.kill() else ""
        if self.draw.victim == "node":
            return self.cluster.lose_node()
        return self.cluster.kill_worker(self.draw.victim, self.draw.which)

    # -- and again ---------------------------------------------------------------------------------------------------

    def _again(self, commands: list[Command]) -> None:
        """Give each command that did not succeed again, the refresh last: alone it has to succeed."""
        for command in sorted(commands, key=lambda each: each.name == "refresh"):
            if command.process.exitcode != 0:
                self._give_again(command)
        forget = next((each for each in commands if each.name == "forget"), None)
        if forget and forget.process.exitcode != 0:  # beside a run that was alive; now none is
            self._give_again(forget)
            self._expect_success(forget)

    def _give_again(self, command: Command) -> None:
        done = planned_and_done(self.scene.open(self.store))
        before = {run: len(shards) for run, shards in generated(self.scene.inputs[self.version]).items()}
        command.dies_at = 0.0
        command.log = command.log.with_name(f"{command.log.stem}-again.log")
        command.start()
        if command.wait(PATIENCE_SECONDS) is None:
            self.faults.add(f"{command.name} given again did not end within {PATIENCE_SECONDS:.0f} s")
            command.kill()
        self._check_said(command)
        if command.name == "refresh":
            self._expect_success(command)
            self._check_work(command, done, before)
        elif command.name == "clean-up":
            self._expect_success(command)

    def _check_work(self, command: Command, done: dict[str, tuple[int, set[int]]], before: dict[str, int]) -> None:
        """No engine is given a shard that was committed when the command was given again."""
        for run, shards in generated(self.scene.inputs[self.version]).items():
            later = shards[before.get(run, 0) :]
            if again := set(later) & done.get(run, (0, set()))[1]:
                self.faults.add(f"shards {sorted(again)} of run {run} were committed, and made again")
        said = _record(command)
        if said and "run_id" in said and self.draw.engine == "painter":  # without: it failed, which is a fault by itself
            for run, (planned, committed) in done.items():
                if run == said["run_id"] and said["engine_calls"] > planned - len(committed):
                    self.faults.add(f"{said['engine_calls']} pairs made of {planned} planned with {len(committed)} committed")

    def _expect_success(self, command: Command) -> None:
        if command.process.exitcode != 0:
            self.faults.add(f"{command.name} ended with {command.process.exitcode}: {command.said[-1500:]}")

    def _check_said(self, command: Command) -> None:
        """No command ends in a traceback; one that fails says why."""
        code, said = command.process.exitcode, command.said
        if "Traceback" in said or ("Error:" in said.split("adgen:")[0] and code not in (0, 1, -9)):
            self.faults.add(f"{command.name} ended in a traceback: {said[-3000:]}")
        if code not in (0, 1, -9):
            self.faults.add(f"{command.name} ended with {code}: {said[-1500:]}")
        if code == 1 and not said.strip():
            self.faults.add(f"{command.name} failed without a word")

    # -- readers -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """A consumer reads the published run all the time; each reading has to be one whole run."""
        stop, whole = Event(), self._whole_runs()
        reader = Thread(target=self._read, args=(stop, self.scene.open(self.store), whole))
        reader.start()
        try:
            yield
        finally:
            stop.set()
            reader.join()

    def _read(self, stop: Event, storage: Storage, whole: list[dict]) -> None:
        refused = 0
        while not stop.wait(0.25):
            try:
                found = comparable(open_published(storage, CAMPAIGN).rows())
                refused = 0
            except ConsumerError as error:  # a run that was erased meanwhile: the pointer names another one
                refused += 1
                if refused > 8:
                    return self.faults.add(f"a reader was refused {refused} times in a row: {error}")
                continue
            except Exception as error:
                return self.faults.add(f"a reader met {type(error).__name__}: {error}")
            if found not in whole:
                return self.faults.add(f"a reader saw {len(found)} rows that are no whole run")

    def _whole_runs(self) -> list[dict]:
        found = [rows for (_, engine), rows in self.scene.rows.items() if engine == self.draw.engine]
        mine = self.scene.pairs[self.user]
        return found + [{key: row for key, row in rows.items() if key[0] not in mine} for rows in found]

    # -- commands ----------------------------------------------------------------------------------------------------

    def _runs_of_template(self) -> list[tuple[str, str]]:
        storage = self.scene.open(self.store)
        there = set(storage.children(f"campaigns/{CAMPAIGN}/runs/"))
        return [(run, version) for run, version in self.scene.versions.items() if run in there]

    def _command(self, name: str) -> Command:
        words = {
            "refresh": [str(self._settings_file()), "--campaign", CAMPAIGN, "--json"],
            "forget": ["forget", self.store, "--user", self.user],
            "rollback": ["rollback", self.store, CAMPAIGN, self.to_run],
            "clean-up": ["clean-up", self.store, "--keep-runs", "2"],
        }[name]
        return Command(name, words, self.draw.engine, environment_of(self.scene.access), self.folder / f"{name}.log")

    def _settings_file(self) -> Path:
        engine = {"deepspeed": False, "num_slots": 2}
        if self.draw.victim == "rank":
            engine |= {"tensor_parallel": 2, "timeout_seconds": 20, "deepspeed": True}
        where = {"address": self.cluster.address} if self.cluster else {}
        changes = {"engine": engine, "cluster": {"actors": 1, **where}}
        path = self.folder / "refresh.toml"
        path.touch(0o600)
        path.write_text(as_toml(self.scene.settings(self.store, self.version, **changes)))
        return path


def as_toml(settings: dict, table: str = "") -> str:
    """Settings as a file; strings, numbers, flags and tables of them."""
    plain = TypeAdapter(dict).dump_python(settings, mode="json")
    own = [f"{name} = {json.dumps(value)}" for name, value in plain.items() if not isinstance(value, dict)]
    lines = ([f"[{table}]"] if table else []) + own
    for name, value in plain.items():
        if isinstance(value, dict):
            lines.append(as_toml(value, f"{table}.{name}" if table else name))
    return "\n".join(lines)


def _record(command: Command) -> dict | None:
    lines = [line for line in command.said.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else None
