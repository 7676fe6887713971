"""The gateway, asked by the real `openai` package; behind it a server that speaks the protocol."""

from __future__ import annotations

import json
from itertools import accumulate

import pytest

from toy_checks import GREEDY, MESSAGES, PROMPT
from toy_model import MAX_LENGTH, byte_fallback_tokenizer, render
from toy_wire import read_inputs

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")
pytest.importorskip("starlette")


def test_a_completion(ask, client):
    expected = client.generate(PROMPT, max_tokens=9)
    answer = ask.completions.create(prompt=PROMPT, **GREEDY)
    assert answer.object == "text_completion"
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (expected.text, "length")
    assert answer.usage.prompt_tokens == expected.usage.prompt_tokens
    assert answer.usage.completion_tokens == 9
    assert answer.usage.total_tokens == expected.usage.prompt_tokens + 9


def test_a_completion_in_pieces(ask, client):
    expected = client.generate(PROMPT, max_tokens=9).text
    options = {"stream_options": {"include_usage": True}, "stream": True}
    events = list(ask.completions.create(prompt=PROMPT, **options, **GREEDY))
    assert "".join(event.choices[0].text for event in events[:-1]) == expected
    assert [event.choices[0].finish_reason for event in events[:-1]][-1] == "length"
    assert (events[-1].choices, events[-1].usage.completion_tokens) == ([], 9)
    assert len({event.id for event in events}) == 1


def test_several_prompts_and_several_answers(ask, client, toy):
    ids = [5, 6, 7]
    answer = ask.completions.create(
        prompt=[PROMPT, "b"], n=2, model="toy", max_tokens=5, seed=2**64 - 1, temperature=0.8
    )
    found = [choice.text for choice in sorted(answer.choices, key=lambda choice: choice.index)]
    expected = [
        client.generate(prompt, max_tokens=5, seed=seed, temperature=0.8)
        for prompt in (PROMPT, "b")
        for seed in (2**64 - 1, 0)
    ]
    assert found == [result.text for result in expected]
    assert answer.usage.prompt_tokens == sum(result.usage.prompt_tokens for result in expected[::2])
    assert answer.usage.completion_tokens == 20
    assert sum("n" in read_inputs(request) for request in toy.requests) == 2  # one for each prompt
    of_ids = ask.completions.create(prompt=ids, **GREEDY).choices[0].text
    assert of_ids == client.generate(ids, max_tokens=9).text


def test_echo_and_stop(ask, client):
    expected = client.generate(PROMPT, max_tokens=9, stop=["e"])
    answer = ask.completions.create(prompt=PROMPT, echo=True, stop="e", **GREEDY).choices[0]
    assert answer.text == PROMPT + expected.text
    pieces = ask.completions.create(prompt=PROMPT, echo=True, stop=["e"], stream=True, **GREEDY)
    assert "".join(piece.choices[0].text for piece in pieces) == PROMPT + expected.text


def test_a_completion_has_sixteen_tokens_and_a_conversation_no_limit(ask, toy):
    toy.eos_token_ids = ""
    completion = ask.completions.create(model="toy", prompt="a")
    assert completion.usage.completion_tokens == 16
    chat = ask.chat.completions.create(model="toy", messages=MESSAGES)
    assert chat.usage.total_tokens == MAX_LENGTH


def test_a_conversation(ask, client):
    expected = client.chat(MESSAGES, max_tokens=9)
    answer = ask.chat.completions.create(messages=MESSAGES, **GREEDY)
    message = answer.choices[0].message
    assert (answer.object, message.role, message.content) == ("chat.completion", "assistant", expected.text)
    parts = [{"type": "text", "text": "Grü"}, {"type": "text", "text": "ße!"}]
    in_parts = ask.chat.completions.create(messages=[{"role": "user", "content": parts}], **GREEDY)
    assert in_parts.choices[0].message.content == expected.text
    arguments = {**GREEDY, "max_completion_tokens": 3}
    assert ask.chat.completions.create(messages=MESSAGES, **arguments).usage.completion_tokens == 3


def test_a_conversation_in_pieces(ask, client):
    events = list(ask.chat.completions.create(messages=MESSAGES, stream=True, n=2, **GREEDY))
    expected = client.generate(render(MESSAGES), max_tokens=9).text
    for index in (0, 1):
        own = [event.choices[0] for event in events if event.choices[0].index == index]
        assert [choice.delta.role for choice in own] == ["assistant"] + [None] * (len(own) - 1)
        assert "".join(choice.delta.content for choice in own) == expected
        assert [choice.finish_reason for choice in own] == [None] * (len(own) - 1) + ["length"]


def test_parameters_beyond_openais(ask, client):
    answer = ask.completions.create(
        model="toy", prompt=PROMPT, max_tokens=9, temperature=0.8, seed=3, top_p=0.9, extra_body={"top_k": 5}
    )
    expected = client.generate(PROMPT, max_tokens=9, temperature=0.8, seed=3, top_p=0.9, top_k=5)
    assert answer.choices[0].text == expected.text


def test_logprobs(ask, client):
    expected = client.generate(PROMPT, max_tokens=9, logprobs=2)
    texts = client.token_texts(expected.token_ids)
    found = ask.completions.create(prompt=PROMPT, logprobs=2, **GREEDY).choices[0].logprobs
    assert found.tokens == list(texts)
    assert found.token_logprobs == [-1] * 9
    assert found.text_offset == sorted(found.text_offset)
    assert found.text_offset[0] == 0
    assert found.text_offset[-1] < len(expected.text)
    events = ask.chat.completions.create(
        messages=MESSAGES, logprobs=True, top_logprobs=2, stream=True, **GREEDY
    )
    for event in events:
        (content,) = event.choices[0].logprobs.content
        assert (content.logprob, bytes(content.bytes).decode()) == (-1, content.token)
        assert [each.logprob for each in content.top_logprobs] == [0, -1]
    assert ask.completions.create(prompt=PROMPT, **GREEDY).choices[0].logprobs is None


def test_a_prompt_is_scored_with_echo(ask, client):
    expected = client.score(PROMPT, top=2)
    texts = client.token_texts(expected.token_ids)
    alone = {**GREEDY, "max_tokens": 0}
    choice = ask.completions.create(prompt=PROMPT, echo=True, logprobs=2, **alone).choices[0]
    assert (choice.text, choice.finish_reason, choice.logprobs.tokens) == (PROMPT, "length", list(texts))
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.token_logprobs[1:] == pytest.approx(expected.logprobs, abs=1e-5)
    assert choice.logprobs.top_logprobs[0] is None
    assert all(choice.logprobs.top_logprobs[1:])
    ends = [
        end
        for end, text in zip(choice.logprobs.text_offset, texts, strict=True)
        if PROMPT[end:].startswith(text)
    ]
    assert len(ends) > len(texts) // 2  # all up to the first half of a character
    assert ask.completions.create(prompt=PROMPT, echo=True, **alone).choices[0].logprobs is None
    whole = ask.completions.create(prompt=PROMPT, echo=True, logprobs=1, **GREEDY).choices[0].logprobs
    assert whole.tokens[: len(texts)] == list(texts)
    assert whole.token_logprobs[len(texts) :] == [-1] * 9
    events = list(ask.completions.create(prompt=PROMPT, echo=True, logprobs=1, stream=True, **GREEDY))
    pieces = [event.choices[0].logprobs for event in events]
    assert [token for piece in pieces for token in piece.tokens] == whole.tokens
    assert [offset for piece in pieces for offset in piece.text_offset] == whole.text_offset
    with pytest.raises(openai.BadRequestError, match="n is 2; with max_tokens 0"):
        ask.completions.create(prompt=PROMPT, echo=True, logprobs=1, n=2, **alone)


def test_echo_of_token_ids_and_of_several_answers(ask, client):
    ids = client.tokenize(PROMPT)
    options = {"model": "toy", "max_tokens": 7, "temperature": 0.8, "seed": 3, "logprobs": 1}
    expected = client.samples(PROMPT, n=2, max_tokens=7, temperature=0.8, seed=3)
    for prompt in (PROMPT, list(ids)):
        answer = ask.completions.create(prompt=prompt, echo=True, n=2, **options)
        events = list(ask.completions.create(prompt=prompt, echo=True, n=2, stream=True, **options))
        for choice, result in zip(answer.choices, expected, strict=True):
            assert choice.text == PROMPT + result.text
            assert choice.logprobs.tokens == list(client.token_texts((*ids, *result.token_ids)))
            assert choice.logprobs.token_logprobs[0] is None
            parts = [event.choices[0] for event in events if event.choices[0].index == choice.index]
            assert "".join(part.text for part in parts) == choice.text
            assert [n for part in parts for n in part.logprobs.text_offset] == choice.logprobs.text_offset
        assert answer.usage.prompt_tokens == len(ids)


def alike(one, other):
    """How many characters both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


@pytest.mark.parametrize("kind", ["byte-level", "byte fallback"])
def test_a_token_is_where_its_character_begins(ask, toy, kind):
    """Of characters of several tokens, that is, not of U+FFFD: the offset is the end of what is whole before the token."""
    if kind == "byte fallback":
        toy.tokenizer = byte_fallback_tokenizer()
        toy.tokenizer_file = toy.tokenizer.to_str().encode()
        toy.vocab_size = toy.tokenizer.get_vocab_size()
    toy.max_length = 200
    for prompt in ("Grüße, 世界! 😀😀 𝄞", "😀世x世é\n\n𝄞😀"):
        ids = toy.tokenizer.encode(prompt).ids
        choice = ask.completions.create(
            prompt=prompt, echo=True, logprobs=0, model="toy", max_tokens=8, temperature=1, seed=5
        ).choices[0]
        offsets = choice.logprobs.text_offset
        assert offsets == sorted(offsets)
        assert offsets[len(ids)] == len(prompt)
        whole = [alike(prompt, toy.tokenizer.decode(ids[:end])) for end in range(len(ids))]
        assert offsets[: len(ids)] == list(accumulate(whole, max))


def test_logit_bias_and_penalties_reach_the_engine(ask, toy):
    ask.completions.create(prompt=PROMPT, logit_bias={"7": -5}, presence_penalty=1.5, **GREEDY)
    sent = {tensor.name for tensor in toy.requests[-1].inputs}
    assert {"logit_bias_ids", "logit_bias_values", "presence_penalty"} <= sent
    with pytest.raises(openai.BadRequestError, match="logit_bias is"):
        ask.completions.create(prompt=PROMPT, logit_bias={"x": 1}, **GREEDY)


@pytest.mark.parametrize("options", [{"model": "toy:pirate"}, {"extra_body": {"lora_name": "pirate"}}])
def test_an_adapter_is_named_behind_the_model_or_beside_it(ask, toy, options):
    ask.completions.create(prompt=PROMPT, **{**GREEDY, **options})
    assert read_inputs(toy.requests[-1])["lora_name"][0] == b"pirate"


@pytest.mark.parametrize(
    ("form", "schema"),
    [
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "null"}}}, {"type": "null"}),
    ],
)
def test_a_response_format_is_a_schema_for_the_engine(ask, toy, form, schema):
    ask.chat.completions.create(messages=MESSAGES, response_format=form, **GREEDY)
    sent = dict(
        zip(
            [tensor.name for tensor in toy.requests[-1].inputs],
            toy.requests[-1].raw_input_contents,
            strict=True,
        )
    )
    assert json.loads(sent["json_schema"][4:]) == schema
    with pytest.raises(openai.BadRequestError, match="response_format is"):
        ask.chat.completions.create(messages=MESSAGES, response_format={"type": "json_schema"}, **GREEDY)


def test_models(ask, toy):
    toy.files["adapters"] = '["parrot", "pirate"]'
    assert [model.id for model in ask.models.list()] == ["toy", "toy:parrot", "toy:pirate"]
    assert ask.models.retrieve("toy").owned_by == "gptport"
    assert ask.models.retrieve("toy:pirate").id == "toy:pirate"
    for name in ("toy_step", "toy:nobody"):
        with pytest.raises(openai.NotFoundError, match="there are: toy, toy:parrot, toy:pirate"):
            ask.models.retrieve(name)
    del toy.files["adapters"]  # the backend before it
    assert [model.id for model in ask.models.list()] == ["toy"]
    with pytest.raises(openai.NotFoundError):
        ask.completions.create(model="nix", prompt="a")


def test_what_asks_for_nothing_is_taken(ask):
    ask.chat.completions.create(
        messages=MESSAGES,
        **GREEDY,
        user="u",
        tools=[],
        presence_penalty=0,
        logprobs=False,
        logit_bias={},
        response_format={"type": "text"},
        metadata={"a": "b"},
    )
