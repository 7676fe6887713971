"""What is computed of the times at which tokens of one sequence came."""

from __future__ import annotations

import pytest
from benchmarks import transports
from benchmarks.transports import SERVER, WAYS, Answer


def test_the_first_token_is_the_prompts_and_not_counted() -> None:
    assert Answer((5, 6, 7), (1.0, 1.1, 1.2)).milliseconds == pytest.approx(100.0)


def test_tokens_that_came_together_share_their_time() -> None:
    """The second came with the first, in which it had been held back; two came later, in a tenth of a second."""
    assert Answer((5, 6, 7, 8), (1.0, 1.0, 1.1, 1.1)).milliseconds == pytest.approx(50.0)


def test_the_servers_loop_is_what_others_are_compared_with() -> None:
    race = transports.Race(16)
    server, client = Answer((5, 6, 7), (1.0, 1.1, 1.2)), Answer((5, 9, 7), (1.0, 1.3, 1.6))
    found = transports.compare(race, {SERVER: [{16: server}], "client": [{16: client}]}, ("a note",))
    assert found.kind == "transports"
    assert found.contestants[0].name == SERVER
    assert found.contestants[1].remark.startswith("1 of")
    assert found.ratio(found.contestants[1]).median == pytest.approx(3.0)
    assert found.notes == ("a note",)


def test_every_transport_that_runs_here_is_measured() -> None:
    measured = {way.transport for way in WAYS.values() if way.loop == "client"}
    assert measured == {"state", "shared_memory"}
    assert {way.protocol for way in WAYS.values() if way.transport == "state"} == {"grpc", "http"}
