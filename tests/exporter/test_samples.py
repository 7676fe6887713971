"""gpt2-tiny, the sample that needs no network; the others are fetched, and tested with the real server."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from gptport import cli, samples
from gptport.console import Steps
from gptport.errors import DownloadError, UsageError


def test_a_sample_is_a_hugging_face_directory(gpt2):
    assert {path.name for path in gpt2.iterdir()} >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    config = AutoModelForCausalLM.from_pretrained(gpt2).config
    assert (config.model_type, config.n_layer, config.vocab_size) == ("gpt2", 3, 384)


@pytest.mark.parametrize("text", ["Hello", "naïve café – 日本語 🦜", "\n\t  x\0"])
def test_its_tokenizer_loses_nothing(gpt2, text):
    tokenizer = Tokenizer.from_file(str(gpt2 / "tokenizer.json"))
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert 0 < max(ids) < 384


def test_it_is_the_same_each_time(gpt2, tmp_path):
    again = samples.sample("gpt2-tiny", tmp_path / "again", Steps())
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (again / file).read_bytes() == (gpt2 / file).read_bytes(), file


def test_the_command_prints_where_it_is(tmp_path, capsys):
    assert cli.main(["sample", "gpt2-tiny", "-o", str(tmp_path / "here")]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path}/here\n"
    assert "Making gpt2-tiny" in err
    assert "Writing model shards" not in err


def test_by_default_it_is_in_checkpoints(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sample", "gpt2-tiny"]) == 0
    assert capsys.readouterr().out == "checkpoints/gpt2-tiny\n"
    assert (tmp_path / "checkpoints" / "gpt2-tiny" / "config.json").is_file()


def test_a_second_run_keeps_what_is_there(tmp_path):
    target = samples.sample("gpt2-tiny", tmp_path / "gpt2", Steps())
    before = {path: path.stat().st_mtime_ns for path in target.iterdir()}
    samples.sample("gpt2-tiny", target, Steps())
    assert {path: path.stat().st_mtime_ns for path in target.iterdir()} == before


def test_an_empty_folder_is_filled(tmp_path):
    assert (samples.sample("gpt2-tiny", tmp_path, Steps()) / "config.json").is_file()


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists and is not this sample; choose another folder with -o"):
        samples.sample("gpt2-tiny", tmp_path, Steps())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_unknown_sample_is_answered_with_those_there_are(tmp_path):
    with pytest.raises(UsageError, match="no sample 'gpt5'; there are smollm2, stories15m, gpt2-tiny"):
        samples.sample("gpt5", tmp_path / "x", Steps())
    assert not any(tmp_path.iterdir())


def test_what_stops_on_the_way_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(samples.SAMPLES, "gpt2-tiny", interrupt)
    with pytest.raises(KeyboardInterrupt):
        samples.sample("gpt2-tiny", tmp_path / "gpt2", Steps())
    assert not any(tmp_path.iterdir())


def test_a_file_that_is_not_what_was_expected_is_not_used(tmp_path):
    (tmp_path / "model.whl").write_bytes(b"other")
    with pytest.raises(DownloadError, match=r"model\.whl has sha256 .*, expected 00; it was not used"):
        samples._check(tmp_path / "model.whl", "00")
