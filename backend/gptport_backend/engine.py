"""The loop: admit, prefill, decode, sample, emit."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from gptport_backend.errors import NothingToChoose, RequestError, Unavailable
from gptport_backend.intake import Intake
from gptport_backend.kv_cache import KVCache
from gptport_backend.logits import HostLogits
from gptport_backend.metrics import Publisher, Tally
from gptport_backend.prefix_cache import PrefixCache
from gptport_backend.reuse import Reuse
from gptport_backend.rows import Rows
from gptport_backend.sampling import sample
from gptport_backend.scheduler import Prefill, Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from gptport_backend.beams import BeamSearch
    from gptport_backend.generation import Generation, Vocabulary
    from gptport_backend.logits import StepLogits
    from gptport_backend.manifest import Manifest
    from gptport_backend.request import GenerationRequest
    from gptport_backend.runner import Runner
    from gptport_backend.sequence import Sink

log = logging.getLogger(__name__)

IDLE_SECONDS = 10.0  # without work, until the memory that is for work alone is given back
# For the step that runs while the engine is closed; a sink may also hang if the server is dead.
STOP_SECONDS = 2.0


@dataclass(frozen=True)
class EngineOptions:
    """The most sequences that run at once, tokens of prompts that one step computes, and requests that wait.

    `kv_cache_bytes` is the most memory for keys and values, None for a share of what is free, which `engines` of the model
    on the device divide. `prefix_cache_bytes` is the most, beside that, for those of sequences that have ended; 0 keeps none.
    """

    max_batch_size: int = 32
    max_prefill_tokens: int = 256
    max_waiting: int = 1024
    kv_cache_bytes: int | None = None
    prefix_cache_bytes: int = 256 << 20
    engines: int = 1


class Engine:
    """Generates text for many requests at once, in a thread of its own.

    `submit` may be called from any thread; everything else happens in the loop's, which also calls the sinks.
    """

    def __init__(
        self,
        manifest: Manifest,
        runner: Runner,
        vocabulary: Vocabulary,
        options: EngineOptions,
        publisher: Publisher,
    ) -> None:
        self._runner = runner
        self._publisher = publisher
        self._max_waiting = options.max_waiting
        self._scheduler: Scheduler[Generation] = Scheduler(
            options.max_batch_size,
            options.max_prefill_tokens,
            reusable=lambda generation: self._reuse.find(generation, self._scheduler.running),
            fits=lambda rows, tokens: self._cache.fits(rows, tokens),
        )
        budget = options.kv_cache_bytes or int(runner.memory.share * runner.memory.free() / options.engines)
        self._cache = KVCache(
            manifest.cache, options.max_batch_size, manifest.max_length, runner.memory, budget
        )
        self._prefixes = PrefixCache(manifest.cache, runner.memory, options.prefix_cache_bytes)
        self._reuse = Reuse(self._cache, self._prefixes)
        self._rows = Rows(self._scheduler, self._cache, self._prefixes, runner)
        self._tally = Tally()
        self._intake = Intake(
            manifest, vocabulary, runner.adapters, self._cache, options.max_batch_size, self._tally
        )
        self._inbox: deque[Generation] = deque()
        self._wake = threading.Condition()
        self._deadline: float | None = None  # set by close: when what still runs is ended
        self._thread = threading.Thread(target=self._loop, name="gptport-engine", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest, sink: Sink) -> None:
        """Queue a request; its answers go to `sink`. RequestError or Unavailable if it is not taken."""
        self._check_queue(request.sequences)  # before the work of preparing it
        generations = self._intake.prepare(request, sink)
        with self._wake:
            if self._deadline is not None:
                raise Unavailable("the server is shutting down; send the request to another one")
            self._check_queue(request.sequences)
            self._inbox.extend(generations)
            self._wake.notify()

    def _check_queue(self, more: int) -> None:
        """Whether `more` sequences may wait too; one that waits is a request, or one of its `n` answers."""
        if more > self._max_waiting:
            raise RequestError(f"n is {more}; it must be at most max_waiting, which is {self._max_waiting}")
        waiting = len(self._inbox) + len(self._scheduler.waiting)
        if waiting + more > self._max_waiting:
            asked = f", n is {more}" if more > 1 else ""
            raise Unavailable(
                f"the queue is full: {waiting} requests wait{asked}, and max_waiting is {self._max_waiting}; "
                "try again later, or send the request to another server"
            )

    def close(self, drain_seconds: float) -> None:
        """Take no more requests, give those at hand `drain_seconds` to finish, then fail them."""
        with self._wake:
            self._deadline = time.monotonic() + drain_seconds
            self._wake.notify()
        self._thread.join(drain_seconds + STOP_SECONDS)

    def _loop(self) -> None:
        while self._wait_for_work():
            try:
                self._step()
            except BaseException as error:  # whatever it is: without the loop all would wait forever
                log.exception("a step of %s failed", self._running())
                self._abandon(f"the engine failed: {error}")
            self._publish()
        self._cache.release()

    def _wait_for_work(self) -> bool:
        """Block until there is something to run; False when the engine is closed and nothing is left."""
        if not self._await(IDLE_SECONDS):
            self._rest()  # without the lock: who submits does not wait for it
            self._await(None)
        with self._wake:
            while self._inbox:
                self._scheduler.add(self._inbox.popleft())
            overdue = self._deadline is not None and time.monotonic() >= self._deadline
        if overdue:
            self._fail([*self._scheduler.running, *self._scheduler.waiting], "the server is shutting down")
        return self._scheduler.busy or self._deadline is None

    def _await(self, seconds: float | None) -> bool:
        """Block until there is something to run or the engine is closed; False if `seconds` are over before."""
        with self._wake:
            return self._wake.wait_for(
                lambda: bool(self._inbox) or self._scheduler.busy or self._deadline is not None, seconds
            )

    def _rest(self) -> None:
        """Give back the memory that is for work alone."""
        if not self._cache.bytes:
            return
        try:
            self._runner.shrink(self._cache)
        except Exception:
            log.exception("memory of onnxruntime could not be given back")
        self._cache.release()
        self._publish()

    def _step(self) -> None:
        """One turn of the loop: a request passes through it from top to bottom."""
        with self._tally.timed("schedule"):
            self._drop_ended()
            self._make_room()
        spent = 0
        while (prefill := self._next_prefill(spent)) is not None:
            self._prefill(prefill)
            spent += prefill.cost
        decoding = self._scheduler.decoding
        if len(decoding) == len(self._scheduler.running) == 1 and (guess := decoding[0].guess()):
            self._verify(decoding[0], guess)
        elif decoding:
            self._decode(decoding)
        with self._tally.timed("schedule"):
            self._rows.settle()

    def _drop_ended(self) -> None:
        now = time.monotonic()
        for generation in [*self._scheduler.running, *self._scheduler.waiting]:
            if generation.over(now):
                self._advance(generation, generation.check_end)

    def _make_room(self) -> None:
        """Let sequences wait again until the others can go on; what they had computed is computed anew, or copied."""
        while not self._cache.fits(*self._scheduler.space):
            generation = self._scheduler.next_to_give_up()
            if generation is None:  # one alone always fits
                return
            self._rows.keep(generation)
            self._rows.put_back(generation)
            self._tally.preemptions += 1

    def _next_prefill(self, spent: int) -> Prefill[Generation] | None:
        with self._tally.timed("schedule"):
            self._rows.settle()
            return self._scheduler.next_prefill(spent)

    def _prefill(self, prefill: Prefill[Generation]) -> None:
        end = prefill.start + prefill.count
        self._rows.reserve(end)
        self._tally.reused_tokens += self._reuse.fill(prefill.sequences[0], self._scheduler.running)
        if not prefill.count:
            self._tally.input_tokens += 1  # the last one, by the decode step that follows
            return
        tokens = [generation.context[prefill.start : end] for generation in prefill.sequences]
        first = prefill.sequences[0]
        with self._tally.timed("prefill"):
            if first.chunk is None:
                last = self._runner.prefill(self._cache, prefill.first_row, tokens, prefill.start)
            else:
                each = self._runner.extend(self._cache, prefill.first_row, tokens[0], prefill.start)
                last = HostLogits(each[-1:])
        for generation, ids in zip(prefill.sequences, tokens, strict=True):
            generation.computed += len(ids)
            self._tally.input_tokens += len(ids)
        if first.chunk is not None:
            self._advance(first, partial(first.score_prompt, prefill.start, each))
        if first.computed == len(first.context) and first in self._scheduler.running:
            self._emit(prefill.sequences, last)

    def _decode(self, generations: list[Generation]) -> None:
        used = self._rows.reserve(max(generation.computed for generation in generations) + 1)
        tokens = [generation.last_token for generation in generations]
        self._tally.batch_size = len(generations)
        with self._tally.timed("decode"):
            logits = self._runner.decode(self._cache, tokens, used[: len(generations)])
        for generation in generations:
            generation.computed += 1
        self._emit(generations, logits)

    def _verify(self, generation: Generation, guess: list[int]) -> None:
        """Decode the only one, and what is guessed to follow, at once; all that is drawn as guessed needs no step of its own."""
        (used,) = self._rows.reserve(generation.computed + 1 + len(guess))
        self._tally.batch_size = 1
        self._tally.guessed_tokens += len(guess)
        with self._tally.timed("decode"):
            logits = self._runner.extend(self._cache, 0, [generation.last_token, *guess], used)
        for row, token in enumerate((*guess, None)):
            generation.computed += 1  # what the cache has behind it is overwritten by the next step
            self._emit([generation], HostLogits(logits[row : row + 1]))
            if generation.last_token != token or not self._scheduler.running:
                return
            self._tally.right_guesses += 1

    def _emit(self, generations: list[Generation] | tuple[Generation, ...], logits: StepLogits) -> None:
        """Sample a token for each row and pass it on, or let its search go on; whoever is done leaves."""
        searches = {generation.search for generation in generations if generation.search}
        for search in searches:
            with self._tally.timed("sample"):
                self._search(search, logits.on_host([generations.index(beam) for beam in search.beams]))
        rows = [row for row, generation in enumerate(generations) if generation.search is None]
        if not rows:
            return
        generations = [generations[row] for row in rows]
        with self._tally.timed("sample"):
            tokens = sample(logits, rows, [generation.sampler for generation in generations])
        with self._tally.timed("answer"):
            self._pass_on(generations, tokens)

    def _pass_on(self, generations: list[Generation], tokens: list[int | BaseException]) -> None:
        now = time.monotonic()
        for generation, token in zip(generations, tokens, strict=True):
            if isinstance(token, NothingToChoose):
                self._fail([generation], str(token))
            elif isinstance(token, BaseException):
                log.error("request %r failed", generation.answers.request_id, exc_info=token)
                self._fail([generation], f"the engine failed: {token}")
            else:
                self._count_token(generation, now)
                self._advance(generation, partial(generation.accept, token))

    def _search(self, search: BeamSearch, logits: NDArray[np.float32]) -> None:
        """One step of a beam search."""
        now = time.monotonic()
        for beam in search.beams:
            self._count_token(beam, now)
        self._advance(search, partial(search.extend, logits))
        if search in self._scheduler.running:
            self._rows.follow(search)

    def _count_token(self, generation: Generation, now: float) -> None:
        self._tally.output_tokens += 1
        if generation.output:
            self._tally.next_token.observe(now - generation.token_at)
        elif generation.first_token is None:  # a search that was put back begins anew
            self._tally.first_token.observe(now - generation.arrived)
        generation.token_at = now

    def _advance(self, generation: Generation, step: Callable[[], None]) -> None:
        """Do something for one generation alone; if it fails, the others go on."""
        try:
            step()
        except BaseException as error:  # a panic of tokenizers or llguidance is no Exception
            log.exception("request %r failed", generation.answers.request_id)
            self._fail([generation], f"the engine failed: {error}")
            return
        if generation.finish_reason:
            self._leave(generation)

    def _leave(self, generation: Generation) -> None:
        """Free the row of a generation that has ended."""
        if generation.finish_reason:
            self._rows.keep(generation)
        self._rows.remove(generation)

    def _fail(self, generations: list[Generation], message: str) -> None:
        for generation in [each for each in generations if each.rows]:
            generation.answers.fail(message)
            self._leave(generation)

    def _running(self) -> str:
        """Which requests run, for the log."""
        ids = {generation.answers.request_id for generation in self._scheduler.running if generation.rows}
        return f"{'request' if len(ids) == 1 else 'requests'} {', '.join(map(repr, sorted(ids)))}"

    def _abandon(self, message: str) -> None:
        """After a failed step nothing in the cache can be trusted: fail all that run, and begin anew.

        If none did, the first that waits fails, so that no step fails as this one without an end.
        """
        failed = [generation for generation in self._scheduler.clear() if generation.rows]
        self._rows.release()
        for generation in failed:
            generation.answers.fail(message)

    def _publish(self) -> None:
        self._tally.running = len(self._scheduler.running)
        self._tally.waiting = len(self._scheduler.waiting)
        self._tally.cache_bytes = self._cache.bytes
        self._tally.cache_budget = self._cache.budget or 0
        self._tally.prefix_bytes = self._prefixes.bytes
        try:
            self._publisher.publish(self._tally)
        except Exception:  # no reason to stop generating
            log.exception("the metrics could not be published")
