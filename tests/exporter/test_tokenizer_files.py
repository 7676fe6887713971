"""The tokenizer of a checkpoint is beside its export, in whichever files it was stored, or the export is refused."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from gptport.checkpoint import open_checkpoint


def test_a_tokenizer_of_sentencepiece(gpt2, copy):
    folder, model = copy(gpt2), io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(Path(__file__).read_text().splitlines() * 9),
        model_writer=model,
        vocab_size=380,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    written = open_checkpoint(str(folder)).tokenizer_files()["tokenizer.json"].decode()
    text = "A test  of the tokenizer, that is é"
    ids = Tokenizer.from_str(written).encode(text, add_special_tokens=False).ids
    own = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    assert (
        ids
        == AutoTokenizer.from_pretrained(folder).encode(text, add_special_tokens=False)
        == own.encode(text)
    )


def test_no_tokenizer(refused, gpt2, copy):
    folder = copy(gpt2)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert refused(folder) == f"gptport: {folder} has no tokenizer; put its tokenizer.json there"


def test_a_tokenizer_of_sentencepiece_without_its_reader(refused, gpt2, copy, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    folder = copy(gpt2)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")
    wanted = (
        "has no tokenizer.json, and sentencepiece, which reads tokenizer.model, is not installed: pip install"
    )
    assert wanted in refused(folder)


def test_a_damaged_tokenizer(refused, gpt2, copy):
    folder = copy(gpt2)
    (folder / "tokenizer.json").write_text("{}")
    assert "tokenizer" in refused(folder)


def test_a_chat_template_that_is_no_text(refused, gpt2, copy):
    folder = copy(gpt2)
    (folder / "chat_template.jinja").write_bytes("{{ 'é' }}".encode("latin-1"))
    assert "chat_template.jinja is no UTF-8: " in refused(folder)
