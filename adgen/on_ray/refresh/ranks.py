"""An engine that spans several ranks on Ray: one placement group, one actor a rank, started and given up together.

The stage that Ray Data calls holds no model and no slot. It reserves the slots of all its ranks at once or waits for
all of them, so that two engines can never hold half a reservation each and wait for the other's.
"""

import socket
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from adgen.errors import AdgenError, EngineLost, ModelError, SettingsError
from adgen.generation.model_directory import ModelDirectory
from adgen.on_ray.cluster import slot_resources
from adgen.on_ray.refresh.context import Context
from adgen.on_ray.refresh.generate import Generate
from adgen.on_ray.rows import Row, as_row_error, raise_row_error

TRIES = 3
"""How often a shard is given to a new group of ranks before the run stops."""
STAGE_CPUS = 0.001
"""Of the stage itself: next to nothing, but more than a head node with no CPUs has."""
_GRACE_SECONDS = 5.0


class GenerateTogether:
    """What `Generate` does, by a group of ranks. A group that loses a rank is replaced, and its shard done again."""

    def __init__(self, context: Context):
        """Waits until the cluster has room for all ranks."""
        self.context = context
        name = f"{_prefix(context.run_id)}{ray.get_runtime_context().get_actor_id()}"
        _remove(name)  # of a process of ours that was killed: its ranks are gone, its reservation is not
        size = context.settings.engine.tensor_parallel
        self.slots = placement_group([slot_resources(context.settings.device, size)] * size, strategy="PACK", name=name)
        ray.get(self.slots.ready())
        self.ranks: Ranks | None = None

    @as_row_error
    def __call__(self, row: Row) -> Row:
        """Adds title and picture to each pair without a reason. EngineLost: TRIES groups died over this shard.

        A group that ran out of memory is followed by one with half its slots, which is no try of those.
        """
        tries_left = TRIES
        while True:
            try:
                self.ranks = self.ranks or Ranks(self.context, self.slots)
                return self.ranks.generate(row)
            except EngineLost as error:
                if self.ranks:
                    self.ranks.close()
                self.ranks = None
                if fewer := _half_the_slots(self.context, error):
                    self.context = fewer
                    continue
                tries_left -= 1
                if not tries_left:
                    raise


def _half_the_slots(context: Context, error: EngineLost) -> Context | None:
    """The same run with half as many creatives at once, where memory was what was missing and there is a half."""
    engine = context.settings.engine
    if "out of memory" not in str(error) or (engine.num_slots or 1) < 2:
        return None
    engine = engine.model_copy(update={"num_slots": engine.num_slots // 2})
    return replace(context, settings=context.settings.model_copy(update={"engine": engine}))


class Ranks:
    """The actors of one group. Their owner is the process that made them, so that they die with it, however it dies."""

    def __init__(self, context: Context, slots: PlacementGroup):
        """Loads the model and lets the ranks meet. EngineLost: a rank died over it; ModelError, SettingsError: it never will."""
        self.actors = [_actor(context, rank, slots) for rank in range(slots.bundle_count)]
        self.serving: list[ray.ObjectRef] = []
        try:
            [(address, port)] = self._ask([self.actors[0].meeting_point.remote()])
            self._ask([actor.start.remote(address, port) for actor in self.actors])
        except BaseException:
            self.close()
            raise
        self.serving = [actor.serve.remote() for actor in self.actors[1:]]

    def generate(self, row: Row) -> Row:
        """A shard done by all ranks. EngineLost: a rank died, before or meanwhile; the group is of no further use."""
        [made] = self._ask([self.actors[0].generate.remote(row)])
        return made

    def close(self) -> None:
        """End all ranks; their slots stay reserved."""
        for actor in self.actors:
            ray.kill(actor)

    def _ask(self, answers: list[ray.ObjectRef]) -> list[Any]:
        """The answers, unless a rank fails first: without it the others might never end."""
        waiting = [*answers, *self.serving]
        while not set(answers).isdisjoint(waiting):
            [ended], waiting = ray.wait(waiting)
            error = _error(ended)
            # Only a refusal leaves the group intact, and would be the same in another group.
            if isinstance(error, (ModelError, SettingsError)):
                raise error
            if error is not None:
                raise self._lost([ended, *waiting])
        return ray.get(answers)

    def _lost(self, answers: Sequence[ray.ObjectRef]) -> EngineLost:
        ended, _ = ray.wait(list(answers), num_returns=len(answers), timeout=_GRACE_SECONDS)
        said = [f"{type(error).__name__}: {str(error).strip().splitlines()[0]}" for error in map(_error, ended) if error]
        return EngineLost(
            f"an engine of {len(self.actors)} tensor-parallel ranks was lost {TRIES} times in a row: {'; '.join(said)}. The run "
            "is kept: start it again when memory and network are healthy, or lower engine.num_slots"
        )


@ray.remote(max_restarts=0)
class _Rank:
    """One rank in a process of its own."""

    def __init__(self, context: Context, rank: int):
        self.context, self.rank = context, rank

    def meeting_point(self) -> tuple[str, int]:
        """This node's address and a port that is free now."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def start(self, address: str, port: int) -> None:
        from adgen.generation.engine import start_rank

        settings = self.context.settings
        size, model = settings.engine.tensor_parallel, ModelDirectory(settings.model)
        sampling = settings.sampling.of(model.sampling)
        self.engine = start_rank(self.rank, size, address, port, model, settings.engine, sampling, settings.device)

    def serve(self) -> int:
        from adgen.generation.engine import serve_rank

        return serve_rank(self.engine)

    def generate(self, row: Row) -> Row:
        return raise_row_error(Generate(self.context, self.engine)(row))


def _actor(context: Context, rank: int, slots: PlacementGroup) -> Any:
    slot = slots.bundle_specs[rank]
    place = PlacementGroupSchedulingStrategy(slots, placement_group_bundle_index=rank)
    return _Rank.options(num_cpus=slot["CPU"], num_gpus=slot.get("GPU", 0), scheduling_strategy=place).remote(context, rank)


def _error(answer: ray.ObjectRef) -> BaseException | None:
    """What went wrong, in our own words if there are any; None for an answer."""
    try:
        ray.get(answer)
    except ray.exceptions.RayTaskError as error:
        return error.cause if isinstance(error.cause, AdgenError) else error
    except ray.exceptions.RayError as error:
        return error
    return None


def remove_groups(run_id: str) -> None:
    """Free the slots of all groups of the run: Ray keeps a group whose stage has ended until the job ends."""
    for entry in placement_group_table().values():
        if entry["name"].startswith(_prefix(run_id)) and entry["state"] != "REMOVED":
            _remove(entry["name"])


def _prefix(run_id: str) -> str:
    return f"adgen-{run_id}-"


def _remove(name: str) -> None:
    try:
        group = ray.util.get_placement_group(name)
    except ValueError:  # there is none
        return
    remove_placement_group(group)
