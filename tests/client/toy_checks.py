"""What the toy server must answer, and waiting for what comes about by itself."""

from __future__ import annotations

import time

from toy_model import next_logits


def expected(toy, *ids):
    return next_logits(list(ids), toy.vocab_size).tolist()


def eventually(holds):
    """Whether it holds before ten seconds have passed."""
    end = time.monotonic() + 10
    while not (found := holds()) and time.monotonic() < end:
        time.sleep(0.01)
    return found
