"""`gptport verify` finds what has changed in an exported model and names it."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace

import pytest

from gptport import cli, recheck


@pytest.fixture
def model(gpt2, exported, tmp_path):
    """A model whose files may be damaged."""
    return shutil.copytree(exported(gpt2).folders["gpt2"].parent, tmp_path / "gpt2")


def verify(capsys, *arguments):
    code = cli.main(["verify", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def flip(path, seed):
    content = bytearray(path.read_bytes())
    content[random.Random(seed).randrange(len(content))] ^= 1
    path.write_bytes(content)


def test_a_whole_model(model, capsys):
    assert verify(capsys, model) == (0, f"{model / '1'}: 9 files are as they were written\n", "")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json"])
def test_a_flipped_bit_is_found_and_named(model, capsys, name, seed):
    flip(model / "1" / name, seed)
    code, out, _ = verify(capsys, model)
    assert code == 1
    assert out.startswith(f"{model / '1' / name} is damaged: its sha256 is ")
    assert len(out.splitlines()) == 1


def test_every_damage_has_its_line(model, capsys):
    (model / "1" / "model.onnx.data").unlink()
    (model / "1" / "tokenizer.json").write_text("{}")
    (model / "1" / "foreign").write_text("")
    code, out, _ = verify(capsys, model)
    assert code == 1
    assert [line.split("/")[-1].split(", the")[0] for line in out.splitlines()] == [
        "model.onnx.data is missing",
        "tokenizer.json has 2 bytes",
        "foreign is not in the manifest",
    ]


def test_a_configuration_may_be_changed(model, capsys):
    (model / "1" / "gpt2.pbtxt").write_text("")
    assert verify(capsys, model)[0] == 0


def test_with_the_checkpoint_the_logits_are_compared_again(model, gpt2, capsys):
    code, out, _ = verify(capsys, model, "--checkpoint", gpt2)
    assert code == 0
    assert "logits differ by at most" in out
    assert "the same token at 100.0% of" in out


def test_an_export_that_was_allowed_a_worse_perplexity_is_allowed_it_again(gpt2, exported):
    known = exported(gpt2).manifest
    worse = replace(
        known, verification={**known.verification, "perplexity": 20.0, "checkpoint_perplexity": 10.0}
    )
    assert recheck.allowed(worse).max_perplexity_increase == pytest.approx(1.001)
    assert recheck.allowed(known).max_perplexity_increase == pytest.approx(0.001, abs=1e-3)


def test_another_checkpoint_is_not_the_one(model, gpt2, copy, change_config, capsys):
    other = copy(gpt2)
    change_config(other, layer_norm_epsilon=1e-3)
    code, _, err = verify(capsys, model, "--checkpoint", other)
    assert code == 1
    assert "is not the checkpoint that" in err
