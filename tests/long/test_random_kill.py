"""A driver dies by SIGKILL at a moment that nobody chose, the same command goes on, and nobody could tell."""

import random
import subprocess
from contextlib import suppress

import pytest
from support.jobs import NUM_PAIRS, PER_SHARD, UNEQUAL, assert_published_as, command, make_inputs, refresh, shards_done, start

pytestmark = [pytest.mark.kill, pytest.mark.timeout(900)]


def test_a_driver_killed_at_a_random_moment_loses_nothing_and_doubles_nothing(tmp_path):
    inputs, store, undisturbed = make_inputs(tmp_path / "inputs"), tmp_path / "store", tmp_path / "undisturbed"
    assert refresh(inputs, undisturbed)["engine_calls"] == NUM_PAIRS
    seed = random.SystemRandom().randrange(2**32)
    wait = random.Random(seed).uniform(0, 30)
    print(f"seed {seed}: killed after {wait:.2f} s")
    process = start(command(inputs, store))
    with suppress(subprocess.TimeoutExpired):
        process.wait(wait)
    process.kill()
    process.communicate()
    done = shards_done(store)
    again = refresh(inputs, store)
    assert again["published"]
    assert again["engine_calls"] <= NUM_PAIRS - done * PER_SHARD
    # A run that was published before it died is the base of this one.
    assert_published_as(undisturbed, store, UNEQUAL | ({"carried_from"} if again["carried"] else set()))
