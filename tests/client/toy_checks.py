"""What the toy server is asked through the gateway and must answer, and waiting for what comes about by itself."""

from __future__ import annotations

import threading
import time

from toy_model import next_logits

PROMPT = "The quick brown 世界"
MESSAGES = [{"role": "user", "content": "Grüße!"}]
GREEDY = {"model": "toy", "temperature": 0, "max_tokens": 9}
PATIENCE = 100.0  # seconds until what never comes is a failure: on a slow machine too


def expected(toy, *ids):
    return next_logits(list(ids), toy.vocab_size).tolist()


def eventually(holds):
    """Whether it holds before patience ends."""
    end = time.monotonic() + PATIENCE
    while not (found := holds()) and time.monotonic() < end:
        time.sleep(0.01)
    return found


def close_while_it_is_read(stream, toy):
    """In another thread, close the stream once someone waits for it; then the toy's step ends."""

    def close():
        eventually(stream._turn.locked)
        stream.close()
        toy.released.set()

    threading.Thread(target=close).start()
