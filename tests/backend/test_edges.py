"""Requests at the edges of what is allowed: each gets the answer that its parameters say, or is refused by name."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from tokenizers import normalizers

import tiny_gpt
from conftest import Served
from gptport_backend.engine import EngineOptions
from gptport_backend.errors import LoadError, RequestError
from test_engine import PROMPTS, slots_in_use, wait_until

LARGEST = float(np.finfo(np.float32).max)
SMALLEST = float(np.finfo(np.float32).smallest_subnormal)
ALL = list(range(tiny_gpt.VOCAB))


@pytest.fixture(scope="module")
def served(version_dir):
    made = Served(version_dir, EngineOptions())
    yield made
    made.engine.close(0)


def asked(served, text="hello", max_tokens=20, **inputs):
    prompt = {} if "input_ids" in inputs else {"text_input": text}
    answer = served.ask(**prompt, max_tokens=max_tokens, **inputs).wait()
    assert answer.error == ""
    return answer


@pytest.fixture
def as_ever(served, continuation):
    """In the end, the engine still answers, and no row is taken."""
    yield
    assert asked(served).token_ids == continuation("hello", 20)
    wait_until(lambda: slots_in_use(served) == 0)


pytestmark = pytest.mark.usefixtures("as_ever")


def test_the_longest_prompt_leaves_room_for_one_token(served, continuation):
    prompt = "x" * (tiny_gpt.MAX_LENGTH - 1)
    answer = asked(served, prompt, 2**31 - 1)
    assert answer.token_ids == continuation(prompt, 1)
    assert answer.finish_reason == "length"


@pytest.mark.parametrize(
    "inputs",
    [{"text_input": ""}, {"input_ids": []}, {"messages": ""}, {"messages": "[]"}],
    ids=["text", "ids", "no messages", "an empty list"],
)
def test_an_empty_prompt_is_refused(served, inputs):
    (field,) = inputs
    with pytest.raises(RequestError, match=f"^{field} is "):
        served.ask(**inputs)


def test_a_prompt_of_special_tokens_alone_is_one(served, continuation):
    text = "<|end|>" * 3
    ids = [tiny_gpt.EOS] * 3
    assert served.tokenizer.encode(text).ids == ids
    expected = continuation(text, 8)
    assert asked(served, text, 8).token_ids == expected
    answer = asked(served, "", 8, input_ids=ids, exclude_input_in_output=False)
    assert answer.token_ids == expected
    assert answer.text == served.tokenizer.decode(expected)  # special tokens are not shown


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("shown", [False, True])
def test_a_stop_string_that_begins_in_the_prompt_does_not_count(served, shown, stream):
    text = asked(served).text
    stop = "lo" + text[:2]
    answer = asked(served, stop_words=[stop], exclude_input_in_output=not shown, stream=stream)
    assert (answer.text, answer.finish_reason) == (("hello" if shown else "") + text, "length")


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_may_be_the_whole_text(served, stream):
    text = asked(served).text
    answer = asked(served, stop_words=[text], stream=stream)
    assert (answer.text, answer.finish_reason, len(answer.token_ids)) == ("", "stop", 20)
    answer = asked(served, stop_words=[text + "x"], stream=stream)
    assert (answer.text, answer.finish_reason) == (text, "length")


@pytest.mark.parametrize("seed", [0, 2**63 - 1, 2**63, 2**64 - 1])
def test_seeds_at_the_limits(served, seed):
    first, second = (asked(served, seed=seed, temperature=1.0, n=2) for _ in range(2))
    assert first.token_ids == second.token_ids
    other = asked(served, seed=(seed + 1) % 2**64, temperature=1.0)
    assert first.of(1).token_ids == other.token_ids


@pytest.mark.parametrize("temperature", [SMALLEST, 1e-38, 1e-6])
@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.5}, {"typical_p": 0.5}])
def test_a_tiny_temperature_is_greedy(served, temperature, options):
    answer = asked(served, temperature=temperature, seed=1, **options)
    assert answer.token_ids == asked(served).token_ids


@pytest.mark.parametrize("options", [{}, {"top_p": 0.999}, {"min_p": 0.5}, {"typical_p": 0.9}])
def test_a_huge_temperature_chooses_among_all(served, options):
    answer = asked(served, max_tokens=300, ignore_eos=True, temperature=LARGEST, seed=1, **options)
    assert len(set(answer.token_ids)) > 100


@pytest.mark.parametrize("top_k", [tiny_gpt.VOCAB, tiny_gpt.VOCAB + 1, 2**31 - 1])
def test_top_k_beyond_the_vocabulary_keeps_all(served, top_k):
    options = {"temperature": 1.5, "seed": 3, "max_tokens": 60}
    assert asked(served, top_k=top_k, **options).token_ids == asked(served, **options).token_ids


@pytest.mark.parametrize("sampled", [{}, {"temperature": 1.0, "seed": 1}])
@pytest.mark.parametrize("bias", [-LARGEST, LARGEST])
def test_the_largest_bias_on_all_tokens_leaves_one_to_choose(served, bias, sampled):
    answer = asked(
        served, logit_bias_ids=ALL, logit_bias_values=[bias] * len(ALL), ignore_eos=True, **sampled
    )
    assert len(answer.token_ids) == 20


@pytest.mark.parametrize("value", [float("-inf"), float("inf"), float("nan")])
def test_a_bias_that_is_no_number_is_refused(served, value):
    with pytest.raises(RequestError, match=r"^logit_bias_values is .*a list of finite numbers"):
        served.ask(text_input="hello", logit_bias_ids=ALL, logit_bias_values=[value] * len(ALL))


@pytest.mark.parametrize("penalty", [SMALLEST, 1e-38, 1e38, LARGEST])
@pytest.mark.parametrize("sampled", [{}, {"temperature": 1.0, "seed": 1}])
def test_an_absurd_repetition_penalty_is_answered_or_says_why_not(served, penalty, sampled, recwarn):
    answer = served.ask(text_input="hello", repetition_penalty=penalty, max_tokens=5, **sampled).wait()
    assert "repetition_penalty" in answer.error or len(answer.token_ids) == 5
    assert not recwarn.list


@pytest.mark.parametrize("choice", [[""], ["a", ""]])
def test_an_empty_choice_is_refused(served, choice):
    with pytest.raises(RequestError, match=r"^choice is .*none of them empty"):
        served.ask(text_input="hello", choice=choice)


SPLIT = "ab👩‍👩‍👧c e\u0301x🇩🇪z"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "stop",
    [
        "👩‍👩‍👧",
        "👩",
        "\u200d👧",
        "👧c",
        "e\u0301",
        "\u0301",
        "\u0301x🇩",
        "🇪",
        "🇩🇪z",
        "ab👩\u200d👩\u200d👧c e",
        "é",
    ],
)
def test_stop_strings_in_characters_of_many_tokens(served, stop, stream):
    answer = asked(served, max_tokens=100, choice=[SPLIT], stop_words=[stop], stream=stream)
    assert answer.text == SPLIT.partition(stop)[0]
    assert answer.finish_reason == "stop"
    assert all("\ufffd" not in piece.text for piece in answer.pieces)


def test_a_choice_of_text_in_many_tokens_comes_whole(served):
    answer = asked(served, max_tokens=100, choice=[SPLIT], stream=True)
    assert answer.text == SPLIT
    assert len(answer.pieces) > 10


@pytest.mark.parametrize(
    "options",
    [
        {"max_batch_size": 1},
        {"max_prefill_tokens": 1},
        {"max_batch_size": 1, "max_prefill_tokens": 1},
        {"max_prefill_tokens": 1, "prefix_cache_bytes": 0},
        {"max_batch_size": 3, "max_prefill_tokens": 1, "max_waiting": 20},
    ],
    ids=str,
)
def test_the_narrowest_engines_give_right_answers(serve, continuation, options):
    narrow = serve(**options)
    plain = [narrow.ask(text_input=prompt, max_tokens=12, stream=True) for prompt in PROMPTS]
    several = narrow.ask(text_input=PROMPTS[3], max_tokens=6, n=3)
    scored = narrow.ask(text_input=PROMPTS[3], max_tokens=0, prompt_logprobs=1)
    for prompt, answer in zip(PROMPTS, plain, strict=True):
        assert answer.wait().token_ids == continuation(prompt, 12)
    assert several.wait().token_ids == continuation(PROMPTS[3], 6) * 3
    assert len(scored.wait().pieces[0].prompt.logprobs) == len(PROMPTS[3]) - 1
    wait_until(lambda: slots_in_use(narrow) == 0)


@pytest.fixture(scope="module")
def stripping(version_dir, tmp_path_factory):
    """A model whose tokenizer drops white space at both ends, and with a chat template that writes what it is told."""
    folder = shutil.copytree(version_dir, tmp_path_factory.mktemp("stripping") / "1")
    tokenizer = tiny_gpt.tokenizer()
    tokenizer.normalizer = normalizers.Strip()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    made = Served(folder, EngineOptions())
    yield made
    made.engine.close(0)


@pytest.mark.parametrize(
    "inputs",
    [{"text_input": " \n "}, {"messages": '[{"role": "user", "content": ""}]'}],
    ids=["text", "chat"],
)
@pytest.mark.parametrize("options", [{}, {"beam_width": 2}, {"n": 2}, {"prompt_logprobs": 1}], ids=str)
def test_a_prompt_of_no_tokens_is_refused_and_hurts_nobody(stripping, inputs, options):
    other = stripping.ask(text_input="hello", max_tokens=50, stream=True)
    with pytest.raises(RequestError, match="the prompt has no tokens"):
        stripping.ask(**inputs, **options)
    assert other.wait().error == ""


@pytest.fixture(scope="module")
def wordy(version_dir, tmp_path_factory):
    """A model whose tokenizer has two tokens more than there are logits."""
    folder = shutil.copytree(version_dir, tmp_path_factory.mktemp("wordy") / "1")
    tokenizer = tiny_gpt.tokenizer()
    tokenizer.add_tokens(["extra"])
    tokenizer.add_special_tokens(["<image>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    made = Served(folder, EngineOptions())
    yield made
    made.engine.close(0)


@pytest.mark.parametrize("word", ["extra", "<image>"])
def test_a_token_that_the_model_has_not_need_not_be_forbidden(wordy, continuation, word):
    answer = asked(wordy, bad_words=[word])
    assert answer.token_ids == continuation("hello", 20)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ({"choice": ["extra"]}, "extra"),
        ({"regex": "(extra){2}"}, "extraextra"),
        ({"regex": "<image>"}, "<image>"),
    ],
    ids=str,
)
def test_a_form_is_written_in_the_tokens_that_the_model_has(wordy, form, text):
    assert asked(wordy, **form).text == text


def test_a_prompt_with_a_token_that_the_model_has_not_is_refused(wordy):
    with pytest.raises(RequestError, match="the vocabulary ends at 256"):
        wordy.ask(text_input="an extra")


def test_a_conversation_that_is_too_long_is_named_as_one(stripping):
    text = '[{"role": "user", "content": "' + "x" * 100_000 + '"}]'
    with pytest.raises(RequestError, match=r"^messages has 100000 characters"):
        stripping.ask(messages=text)


def test_memory_for_less_than_one_sequence_is_an_error_of_loading(version_dir):
    with pytest.raises(LoadError, match=r"set kv_cache_bytes in config\.pbtxt"):
        Served(version_dir, EngineOptions(kv_cache_bytes=1000))
