"""What the service's benchmark counts."""

import asyncio

from adgen.on_ray.benchmark.serving import Turns, timed


def test_each_client_asks_one_at_a_time_and_every_request_is_asked_once():
    asked, open_now, most = [], 0, 0

    async def send(one: int) -> None:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        asked.append(one)
        await asyncio.sleep(0)
        open_now -= 1

    seconds, each = asyncio.run(timed(send, iter(range(20)), 4))
    assert sorted(asked) == list(range(20))
    assert (most, len(each)) == (4, 20)
    assert sum(each) <= 4 * seconds


def test_a_share_is_of_the_same_round():
    engine, service = Turns(rates=[2.0, 10.0, 4.0]), Turns(rates=[1.0, 9.0, 3.0], seconds=[0.1] * 99 + [1.0], fills=[0.5, 1.0, 1.0])
    assert service.share_of(engine) == 0.75
    assert service.as_dict() == {"per_second": 3.0, "p50_ms": 100.0, "p95_ms": 100.0, "p99_ms": 109.0, "batch_fill": 1.0}
    assert Turns(rates=[1.0]).as_dict() == {"per_second": 1.0}
