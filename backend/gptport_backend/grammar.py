"""Answers of a given form: JSON of a schema, a regular expression, one of some texts, a grammar; by llguidance.

llguidance (https://github.com/guidance-ai/llguidance) tells which tokens may come next. It is imported when the first request
asks for a form: nothing else needs it.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from gptport_backend.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from gptport_backend.processors import Logits

FIELDS = ("json_schema", "regex", "choice", "grammar")
# As json.dumps writes it. A model that may put any white space anywhere sometimes writes nothing else.
JSON_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
MOST_COMPILED = 16  # forms that are kept: compiling one of 4,000 characters takes 10 ms, a copy 0.1
MISSING = (
    "{field} needs the package llguidance, which this server does not have: pip install 'gptport[structured]'"
)


@dataclass(frozen=True)
class Form:
    """What an answer has to look like: `field`, one of FIELDS, and its value as it was sent."""

    field: str
    value: str | tuple[str, ...]


class Constraint:
    """Where an answer of a given form stands.

    Args:
        matcher: of llguidance, at the beginning.
        unforced: makes another one, in which the form forces no token.

    Attributes:
        error: why the form cannot be followed any further, a limit of llguidance; usually empty.
    """

    def __init__(self, matcher: Any, unforced: Callable[[], Any]) -> None:
        self._matcher = matcher
        self._unforced = unforced
        self._tokens: list[int] = []
        self.error = ""

    def forbid(self, logits: Logits) -> None:
        """Set what must not come next in `logits [vocab]` to -inf: all, if the form cannot be followed any further."""
        allowed = self._allowed()
        if np.count_nonzero(allowed) == 1 and not self._matcher.validate_tokens([int(allowed.argmax())]):
            # Where only one text fits, llguidance takes the tokens that the tokenizer makes of it. If it spells
            # `<|im_end|>`, that is the special token, which is no text, and most often ends the answer.
            self._matcher = self._unforced()
            self._matcher.consume_tokens(self._tokens)
            allowed = self._allowed()
        if self._matcher.is_error():  # llguidance would end the text here
            self.error = f"the form cannot be followed any further: {_in_short(self._matcher.get_error())}"
            logits[:] = -np.inf
            return
        allowed = allowed[: logits.size]
        logits[: allowed.size][~allowed] = -np.inf
        logits[allowed.size :] = -np.inf

    def append(self, token: int) -> None:
        """Take note of the next token."""
        self._tokens.append(token)
        self._matcher.consume_token(token)

    def _allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(bits, bitorder="little").view(np.bool_)

    @property
    def complete(self) -> bool:
        """True if nothing can be appended."""
        return bool(self._matcher.is_stopped())


class Grammars:
    """Compiles forms, for the tokenizer of a model.

    Args:
        tokenizer: the model's.
        vocab_size: of the logits.
        eos: the ids that end a text.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos = sorted(eos)
        self._lock = threading.Lock()
        self._made: Any = None  # llguidance's view of the tokenizer, which takes a second to make
        # Of `n` answers, and of requests that often ask for the same form, each needs a copy only.
        self._compiled = lru_cache(MOST_COMPILED)(self._compile)

    def constraint(self, form: Form) -> Constraint:
        """A new answer of that form. RequestError if it does not compile."""
        forced = self._compiled(form)
        return Constraint(forced.deep_copy(), lambda: self._compiled(form, forced=False).deep_copy())

    def _compile(self, form: Form, *, forced: bool = True) -> Any:
        """A matcher at the beginning of an answer, not to be moved; if not `forced`, any tokens may spell its text."""
        try:
            from llguidance import LLMatcher
        except ImportError as error:
            raise RequestError(MISSING.format(field=form.field)) from error
        if not self._eos:
            raise RequestError(f"{form.field} needs a model with an end-of-text token, and this one has none")
        try:
            grammar = _GRAMMARS[form.field](LLMatcher, form.value)
            matcher = LLMatcher(self._of_llguidance(), grammar if forced else _unforced(grammar), log_level=0)
        except ValueError as error:
            raise RequestError(f"{form.field} does not compile: {_in_short(str(error))}") from error
        if matcher.is_error():
            raise RequestError(f"{form.field} does not compile: {_in_short(matcher.get_error())}")
        matcher.compute_bitmask()
        if matcher.is_error():
            raise RequestError(f"{form.field} allows no text: {_in_short(matcher.get_error())}")
        return matcher

    def _of_llguidance(self) -> Any:
        from llguidance import LLTokenizer

        with self._lock:
            if self._made is None:
                self._made = LLTokenizer(self._known(), n_vocab=self._vocab_size, eos_token=self._eos)
            return self._made

    def _known(self) -> str:
        """The tokenizer as JSON, without the added tokens that there are no logits for: no form is written in them."""
        document = json.loads(self._tokenizer.to_str())
        added = document["added_tokens"]
        document["added_tokens"] = [token for token in added if token["id"] < self._vocab_size]
        return json.dumps(document)


def _of_schema(matcher: Any, schema: Any) -> Any:
    return matcher.grammar_from_json_schema(schema, defaults=JSON_LAYOUT)


def _of_choice(matcher: Any, texts: Any) -> Any:
    return matcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, texts)))


_GRAMMARS: dict[str, Callable[[Any, Any], Any]] = {
    "json_schema": _of_schema,
    "regex": lambda matcher, regex: matcher.grammar_from_regex(regex),
    "choice": _of_choice,
    "grammar": lambda matcher, grammar: matcher.grammar_from_lark(grammar),
}


def _unforced(grammar: str) -> str:
    """The same in Lark, with llguidance told that no token is forced."""
    if grammar.startswith("{"):
        (document,) = json.loads(grammar)["grammars"]
        grammar = document.get("lark_grammar") or f"start: %json {json.dumps(document['json_schema'])}"
    return f'%llguidance {{"no_forcing": true}}\n{grammar}'


def _in_short(message: str) -> str:
    """The message on one line, without the state of llguidance behind it."""
    line = " ".join(message.partition("<state>")[0].split())
    return line if len(line) <= 300 else f"{line[:297]}..."
