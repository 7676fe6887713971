"""What a prompt has in common with one that runs is copied from its row; the text is the same."""

from __future__ import annotations

import pytest

from test_prefix_cache import PREFIX


@pytest.mark.parametrize("inputs", [{}, {"temperature": 1.0, "seed": 5}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("chunk", [16, 256])
def test_prompts_that_arrive_together_compute_what_they_share_once(serve, inputs, chunk) -> None:
    tiny, alone = serve(prefix_cache_bytes=0, max_prefill_tokens=chunk), serve(prefix_cache_bytes=0)
    prompts = [PREFIX + "and " + end for end in ("a", "bcd", "a", "a long end of it" * 3, "")]
    asked = [{"text_input": each, "max_tokens": 200, "ignore_eos": True, **inputs} for each in prompts]
    answers = [tiny.ask(**each) for each in asked]
    expected = [alone.ask(**each).wait().token_ids for each in asked]
    assert [answer.wait().token_ids for answer in answers] == expected
    tally = tiny.engine._tally
    assert tally.reused_tokens >= 4 * len(PREFIX)
    assert tally.input_tokens + tally.reused_tokens == sum(map(len, prompts))
    assert tiny.engine._prefixes.bytes == 0


def test_a_prompt_copies_from_one_that_runs(serve) -> None:
    tiny = serve(prefix_cache_bytes=0)
    running = tiny.ask(text_input=PREFIX + "run", max_tokens=500, ignore_eos=True, stream=True)
    running.wait_for_first()
    alone = serve().ask(text_input=PREFIX + "walk", max_tokens=10).wait()
    assert tiny.ask(text_input=PREFIX + "walk", max_tokens=10).wait().token_ids == alone.token_ids
    assert tiny.engine._tally.reused_tokens >= len(PREFIX)
    running.cancelled = True


def test_what_is_not_known_at_all_waits_for_nobody(serve) -> None:
    tiny = serve()
    answers = [tiny.ask(text_input=f"{number}" * 40, max_tokens=5) for number in range(6)]
    for answer in answers:
        answer.wait()
    assert tiny.engine._tally.reused_tokens == 0
