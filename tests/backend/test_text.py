"""Text comes in pieces that add up, with no half characters and nothing of a stop string."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from gptport_backend.text import Detokenizer, StopFilter, unsettled_tokens

WORDS = ["▁", "▁the", "▁a", "e", "x", ".", "▁▁", "\n", "ü", "�"]


def byte_level() -> Tokenizer:
    """As GPT-2's: a token a byte, and some of several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("Ġt", "h"), ("ð", "Ł"), ("Ã", "¼")]  # the third is half an emoji
    vocabulary = alphabet + ["".join(merge) for merge in merges]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(vocabulary)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama's: pieces with ▁ for a space, and `<0x..>` for what has no piece."""
    vocabulary = ["<unk>", *WORDS, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(
        models.BPE({token: index for index, token in enumerate(vocabulary)}, [], byte_fallback=True)
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    return tokenizer


def metaspace() -> Tokenizer:
    """As T5's: ▁ for a space, and no bytes."""
    vocabulary = ["<unk>", *WORDS]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(vocabulary)}, []))
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


TOKENIZERS = {"byte-level": byte_level(), "byte fallback": byte_fallback(), "metaspace": metaspace()}
UNSETTLED = {name: unsettled_tokens(tokenizer) for name, tokenizer in TOKENIZERS.items()}


def pieces(name: str, ids: list[int], prompt: list[int] | None = None) -> list[str]:
    detokenizer = Detokenizer(TOKENIZERS[name], UNSETTLED[name], prompt or [])
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_the_pieces_are_what_decoding_all_at_once_gives(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=30))
    assert "".join(pieces(name, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_an_answer_continues_its_prompt(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    token = st.integers(0, tokenizer.get_vocab_size() - 1)
    prompt = [
        *data.draw(st.lists(token, max_size=20)),
        tokenizer.token_to_id("x"),
    ]  # ends in a whole character
    ids = data.draw(st.lists(token, max_size=20))
    assert tokenizer.decode(prompt) + "".join(pieces(name, ids, prompt)) == tokenizer.decode(prompt + ids)


@given(st.text(max_size=20))
@example("🧑‍🚀 naïve ü 東京")
def test_a_character_is_never_split(text: str) -> None:
    ids = TOKENIZERS["byte-level"].encode(text).ids
    shown = pieces("byte-level", ids)
    assert "".join(shown) == text
    assert not any("�" in piece for piece in shown) or "�" in text


def test_text_comes_as_soon_as_a_character_is_whole() -> None:
    ids = TOKENIZERS["byte-level"].encode("a🙂b").ids
    assert [piece for piece in pieces("byte-level", ids) if piece] == ["a", "🙂", "b"]


def test_half_a_character_at_the_end_is_shown_as_such() -> None:
    ids = TOKENIZERS["byte-level"].encode("a🙂").ids[:-1]
    assert pieces("byte-level", ids)[-1] == "�"


def test_bytes_that_are_no_character_do_not_stop_the_text() -> None:
    tokenizer = TOKENIZERS["byte fallback"]
    ids = [tokenizer.token_to_id(token) for token in ("<0xC3>", "<0x28>", "x", "<0xC3>", "<0xBC>", "e")]
    assert "".join(pieces("byte fallback", ids)) == "��xüe"


@given(
    st.text("abc", max_size=20),
    st.lists(st.integers(1, 4), max_size=20),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
)
def test_a_stop_string_is_found_across_pieces_and_not_shown(
    text: str, sizes: list[int], stop_words: list[str]
) -> None:
    filter_ = StopFilter(stop_words)
    shown, rest = "", text
    for size in sizes:
        shown += filter_.push(rest[:size])
        rest = rest[size:]
    shown += filter_.push(rest)
    assert text.startswith(shown)
    shown += filter_.flush()
    ends = [(text.index(word) + len(word), text.index(word)) for word in stop_words if word in text]
    assert filter_.stopped == bool(ends)
    assert shown == (text[: min(ends)[1]] if ends else text)


def test_text_that_cannot_become_a_stop_string_is_not_held_back() -> None:
    filter_ = StopFilter(["\n\nUser:"])
    assert [filter_.push(piece) for piece in ("Hi", ".\n", "\nNo", "\n\nUs", "er: x")] == [
        "Hi",
        ".",
        "\n\nNo",
        "",
        "",
    ]
    assert filter_.stopped
