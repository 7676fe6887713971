"""The commands that ask a server for text: each a module with `add`, its options, and `run`.

With `cli.py`, these are the modules that know the client; they import it when they run.
"""

from __future__ import annotations

from . import batch, chat, gateway, generate, score, summarize

COMMANDS = {
    "generate": generate,
    "chat": chat,
    "summarize": summarize,
    "batch": batch,
    "score": score,
    "gateway": gateway,
}
