"""The engine on an exported checkpoint gives what transformers' `generate` gives of it: tokens, texts, log-probabilities."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import Served
from gptport.checkpoint import open_checkpoint
from gptport.console import Steps
from gptport.export import export
from gptport.precision import by_name
from gptport.samples import sample
from gptport_backend.engine import EngineOptions

PROMPTS = ["The quick brown fox", "a", "Grüße, 世界 🙂", "one two one two one two"]
NEW = 40
ENDS = list(range(3, 384, 17))
MOST = [token for token in range(1, 384) if token % 4]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A GPT-2 of three layers with random weights and a tokenizer of 384 tokens, some of several bytes."""
    return sample("gpt2-tiny", tmp_path_factory.mktemp("checkpoint") / "gpt2", Steps())


@pytest.fixture(scope="module")
def served(checkpoint, tmp_path_factory):
    repository = tmp_path_factory.mktemp("repository")
    source = open_checkpoint(str(checkpoint))
    exported = export(source, repository, "tiny", by_name("fp32"), None, Steps())
    made = Served(exported.folders["tiny"], EngineOptions(max_batch_size=8))
    yield made
    made.engine.close(0)


@pytest.fixture(scope="module")
def theirs(checkpoint):
    """transformers' `generate` with a prompt: the new tokens of each sequence, and all that it tells."""
    torch.set_num_threads(1)  # more only wait for each other, so small is the model
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    def generate(prompt, **options):
        inputs = tokenizer(prompt, return_tensors="pt")
        options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, **options}
        with torch.inference_mode():
            told = model.generate(
                **inputs, **options, tokenizer=tokenizer, return_dict_in_generate=True, output_logits=True
            )
        return told.sequences[:, inputs.input_ids.shape[1] :].tolist(), told

    generate.model, generate.tokenizer = model, tokenizer
    return generate


def words(tokenizer, *texts):
    """Of `bad_words`, as the ids that transformers asks for: each text as it is, and behind a space."""
    both = [form for text in texts for form in (text, f" {text}")]
    return [tokenizer(form, add_special_tokens=False).input_ids for form in both]


GREEDY = {
    "nothing": ({}, {}),
    "repetition_penalty": ({"repetition_penalty": 1.7}, {"repetition_penalty": 1.7}),
    "a repetition_penalty below 1": ({"repetition_penalty": 0.8}, {"repetition_penalty": 0.8}),
    "logit_bias": (
        {"logit_bias_ids": [70, 301, 302], "logit_bias_values": [3.0, -100.0, 2.5]},
        {"sequence_bias": [[[70], 3.0], [[301], -100.0], [[302], 2.5]]},
    ),
    "ignore_eos": (
        {"ignore_eos": True, "logit_bias_ids": [0], "logit_bias_values": [9.0], "repetition_penalty": 2.5},
        {"eos_token_id": 383, "sequence_bias": [[[0], 9.0]], "repetition_penalty": 2.5},
    ),
    "stop_token_ids": ({"stop_token_ids": ENDS}, {"eos_token_id": [0, *ENDS]}),
    "min_tokens": (
        {"stop_token_ids": ENDS, "min_tokens": 25},
        {"eos_token_id": [0, *ENDS], "min_new_tokens": 25},
    ),
    "all": (
        {
            "repetition_penalty": 1.3,
            "logit_bias_ids": [70, 90],
            "logit_bias_values": [4.0, 3.0],
            "stop_token_ids": ENDS,
            "min_tokens": 20,
        },
        {
            "repetition_penalty": 1.3,
            "sequence_bias": [[[70], 4.0], [[90], 3.0]],
            "eos_token_id": [0, *ENDS],
            "min_new_tokens": 20,
        },
    ),
}


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("case", GREEDY)
def test_greedy_tokens(served, theirs, case, prompt):
    ours, options = GREEDY[case]
    ((expected), *_), _ = theirs(prompt, **options)
    answer = served.ask(text_input=prompt, max_tokens=NEW, **ours).wait()
    assert (answer.error, answer.token_ids) == ("", expected)
    assert answer.finish_reason == ("length" if len(expected) == NEW else "stop")


@pytest.fixture(scope="module")
def readable(theirs):
    """What makes the random model write letters only: of the engine, and of transformers."""
    tokens = [token for token in range(1, 384) if theirs.tokenizer.decode([token]).strip().isalpha()]
    ours = {"logit_bias_ids": tokens, "logit_bias_values": [40.0] * len(tokens)}
    return ours, {"sequence_bias": [[[token], 40.0] for token in tokens]}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_bad_words(served, theirs, readable, prompt):
    ours, options = readable
    (plain,), _ = theirs(prompt, **options)
    text = theirs.tokenizer.decode
    one, two = (
        next(text(ids) for ids in windows(plain, count) if words(theirs.tokenizer, text(ids))[0] == ids)
        for count in (1, 2)
    )
    for bad in ([one], [two], [one, two]):
        (expected,), _ = theirs(prompt, bad_words_ids=words(theirs.tokenizer, *bad), **options)
        assert (
            served.ask(text_input=prompt, max_tokens=NEW, bad_words=bad, **ours).wait().token_ids == expected
        )
        assert expected != plain


def windows(ids, count):
    return (ids[place : place + count] for place in range(len(ids) - count))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_stop_words_end_with_the_same_token(served, theirs, readable, prompt):
    ours, options = readable
    (plain,), _ = theirs(prompt, **options)
    text = theirs.tokenizer.decode(plain)
    for place in range(0, len(text) - 8, 8):
        stop = text[place + 3 : place + 8]
        (expected,), _ = theirs(prompt, stop_strings=[stop], **options)
        answer = served.ask(text_input=prompt, max_tokens=NEW, stop_words=[stop], stream=True, **ours).wait()
        assert (answer.token_ids, answer.finish_reason) == (expected, "stop")
        assert answer.text == text.partition(stop)[0]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_logprobs(served, theirs, prompt):
    (expected,), told = theirs(prompt)
    answer = served.ask(text_input=prompt, max_tokens=NEW, logprobs=4).wait()
    found = answer.pieces[0].logprobs
    assert len(found) == len(expected)
    for each, token, logits in zip(found, expected, told.logits, strict=True):
        logprobs = logits[0].double().log_softmax(-1)
        top = logprobs.topk(4)
        assert each.token == pytest.approx(float(logprobs[token]), abs=1e-4)
        assert each.top == pytest.approx(top.values.tolist(), abs=1e-4)
        assert logprobs[list(each.top_ids)].tolist() == pytest.approx(each.top, abs=1e-4)


@pytest.mark.parametrize("prompt", [*PROMPTS, "a long one, in chunks. " * 8])
def test_prompt_logprobs(served, theirs, prompt):
    if len(prompt) == 1:
        prompt += prompt
    ids = theirs.tokenizer(prompt, return_tensors="pt").input_ids
    with torch.inference_mode():
        logprobs = theirs.model(ids).logits[0].double().log_softmax(-1)
    scored = (
        served.ask(text_input=prompt, max_tokens=0, prompt_logprobs=2, exclude_input_in_output=False)
        .wait()
        .pieces[0]
    )
    assert scored.text == prompt  # what is called echo elsewhere
    assert list(scored.prompt.token_ids) == ids[0].tolist()
    expected = logprobs[:-1].gather(1, ids[0, 1:, None])[:, 0].tolist()
    assert [each.token for each in scored.prompt.logprobs] == pytest.approx(expected, abs=1e-4)
    for each, row in zip(scored.prompt.logprobs, logprobs, strict=False):
        assert each.top == pytest.approx(row.topk(2).values.tolist(), abs=1e-4)


@pytest.mark.parametrize("prompt", PROMPTS[:2])
@pytest.mark.parametrize("ends", [[], ENDS, MOST], ids=["to the limit", "ending", "ending mostly"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.5])
@pytest.mark.parametrize("beams", [2, 5])
def test_beam_search(served, theirs, beams, length_penalty, ends, prompt):
    options = {"num_beams": beams, "num_return_sequences": beams, "length_penalty": length_penalty}
    expected, told = theirs(prompt, **options, eos_token_id=[0, *ends], output_scores=True, max_new_tokens=12)
    asked = {"beam_width": beams, "n": beams, "length_penalty": length_penalty, "stop_token_ids": ends}
    answer = served.ask(text_input=prompt, max_tokens=12, **asked).wait()
    assert answer.error == ""
    found = [list(piece.token_ids) for piece in answer.pieces]
    assert found == [unpadded(ids, {0, *ends}) for ids in expected]
    values = [piece.logprob / len(piece.token_ids) ** length_penalty for piece in answer.pieces]
    assert values == pytest.approx(told.sequences_scores.tolist(), abs=1e-3)


def unpadded(ids, ends):
    """Up to the token that ends the text: behind it there is padding."""
    end = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return ids[: end + 1]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_guesses_from_the_prompt(served, theirs, prompt):
    (expected,), _ = theirs(prompt, prompt_lookup_num_tokens=5)
    assert served.ask(text_input=prompt, max_tokens=NEW, prompt_lookup=5).wait().token_ids == expected
