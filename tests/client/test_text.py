"""Text in pieces: no half characters, nothing of a stop string, and together what decoding all at once gives."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models

from gptport_client._text import Detokenizer, StopFilter
from gptport_client._tokenizer import Tokenizer, read_tokenizer
from toy_model import byte_fallback_tokenizer, byte_level_tokenizer

TEXTS = [
    "The quick 世界 😀 don't  stop\n\n naïve 𝄞",
    "he he\u200d👩\u200d👧 tab\tend",
    " leading",
    "日本語" * 30,
]
TOKENIZERS = {"byte level": byte_level_tokenizer(), "byte fallback": byte_fallback_tokenizer()}


def metaspace_tokenizer():
    """Whole words behind `▁`, as T5 and some Llamas have."""
    words = ["<unk>", "▁", "▁the", "▁cat", "s", "▁世界", "!"]
    tokenizer = RawTokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, "<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def pieces(tokenizer, ids, prompt=()):
    """What a detokenizer returns for each id, and at the end."""
    detokenizer = Detokenizer(Tokenizer(tokenizer), prompt)
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_pieces_of_a_text_have_whole_characters_only(kind, text):
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text).ids
    found = pieces(tokenizer, ids)
    assert not any("\ufffd" in piece for piece in found)
    assert "".join(found) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_pieces_of_any_ids_are_what_decoding_at_once_gives(kind):
    tokenizer = TOKENIZERS[kind]
    token = st.integers(0, tokenizer.get_vocab_size() - 1)

    @settings(max_examples=300)
    @given(ids=st.lists(token, max_size=60))
    def check(ids):
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)

    check()


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_text_goes_on_where_its_prompt_ended(kind):
    tokenizer = TOKENIZERS[kind]
    prompt, ids = tokenizer.encode("the quick fox").ids, tokenizer.encode(" jumps 世界 over").ids
    assert (
        "".join(pieces(tokenizer, ids, prompt))
        == tokenizer.decode(prompt + ids)[len(tokenizer.decode(prompt)) :]
    )


def test_a_prompt_may_end_in_half_a_character(byte_level):
    ids = byte_level.encode("a𝄞b").ids
    assert byte_level.decode(ids[:2]) == "a\ufffd"
    assert "".join(pieces(byte_level, ids[2:], ids[:2])) == "𝄞b"


def test_a_run_of_bytes_is_held_until_it_ends(byte_fallback):
    ids = [byte_fallback.token_to_id(token) for token in ("a", "<0xE6>", "<0x97>", "<0xA5>", "b")]
    assert pieces(byte_fallback, ids) == ["a", "", "", "", "日b", ""]
    assert pieces(byte_fallback, ids[:4]) == ["a", "", "", "", "日"]
    assert pieces(byte_fallback, ids[:3]) == ["a", "", "", "\ufffd\ufffd"]


def test_metaspace_keeps_the_spaces_between_words():
    tokenizer = metaspace_tokenizer()
    assert pieces(tokenizer, [2, 3, 4, 5, 6]) == ["the", " cat", "s", " 世界", "!", ""]
    assert pieces(tokenizer, [3] * 40, [2]) == [" cat"] * 40 + [""]


def test_special_tokens_are_not_text(byte_level):
    ids = byte_level.encode("don't").ids
    assert "".join(pieces(byte_level, [0, *ids, 0])) == "don't"


def test_a_tokenizer_never_truncates_or_pads(byte_level):
    raw = RawTokenizer.from_str(byte_level.to_str())
    raw.enable_truncation(2)
    raw.enable_padding(length=50)
    assert read_tokenizer(raw).encode("The quick brown fox") == tuple(
        byte_level.encode("The quick brown fox").ids
    )
    assert len(raw.encode("The quick brown fox").ids) == 50


def filtered(stops, parts):
    """What a filter shows of `parts`, all together, and whether it stopped."""
    stop = StopFilter(stops)
    shown = "".join(stop.push(part) for part in parts)
    return shown + ("" if stop.stopped else stop.flush()), stop.stopped


@pytest.mark.parametrize(
    ("stops", "text", "shown", "stopped"),
    [
        (["END"], "one END two", "one ", True),
        (["END"], "one EN", "one EN", False),
        (["aab"], "aaaab", "aa", True),
        (["\n\n", "Q:"], "yes Q: no\n\n", "yes ", True),
        (["abc", "b"], "xabc", "xa", True),
        (["😀"], "a😀b", "a", True),
        ([], "anything", "anything", False),
        (["x"], "", "", False),
        (["ab", "cab"], "cab", "", True),
    ],
)
def test_a_stop_string_ends_the_text_wherever_it_is_cut(stops, text, shown, stopped):
    for size in range(1, len(text) + 2):
        parts = [text[start : start + size] for start in range(0, len(text), size)]
        assert filtered(stops, parts) == (shown, stopped)


def test_only_what_may_become_a_stop_string_is_held_back():
    stop = StopFilter(["END", "\n"])
    assert [stop.push(part) for part in ("one E", "N", "!E", "ND")] == ["one ", "", "EN!", ""]
    assert stop.stopped


@given(
    text=st.text("ab", max_size=12),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    data=st.data(),
)
def test_the_cuts_make_no_difference(text, stops, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    parts = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert filtered(stops, parts) == filtered(stops, [text])
