"""LoRA adapters: what the graph computes with one is what PEFT computes, and without one what it computed before."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoModelForCausalLM

from gptport import adapters, cli, export_adapter, manifest
from gptport.checkpoint import open_checkpoint
from gptport.console import Steps
from gptport.errors import CheckpointError, UnsupportedModel, UsageError
from gptport.lora import read, stretches

peft = pytest.importorskip("peft")

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = [5, 17, 200, 3, 99, 42, 7]


@pytest.fixture(scope="session")
def adapter_of(tmp_path_factory):
    """An adapter that PEFT made and saved, with random matrices."""

    def make(checkpoint, name, **settings):
        torch.manual_seed(len(name))
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        adapted = peft.get_peft_model(
            model, peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ALL, **settings})
        )
        for parameter_name, parameter in adapted.named_parameters():
            if "lora_" in parameter_name:
                torch.nn.init.normal_(parameter, 0, 0.1)
        folder = tmp_path_factory.mktemp("adapters") / name
        adapted.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def lora_export(tmp_path_factory, export_to):
    """The version folder of an export with --lora, made once."""
    known = {}

    def get(checkpoint, precision="fp32"):
        if (checkpoint, precision) not in known:
            repository = tmp_path_factory.mktemp("lora")
            exported = export_to(checkpoint, repository, precision=precision, adapters=True)
            known[checkpoint, precision] = next(iter(exported.folders.values()))
        return known[checkpoint, precision]

    return get


def peft_logits(checkpoint, adapter):
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        return (
            peft.PeftModel.from_pretrained(model, adapter).eval()(torch.tensor([IDS])).logits[0, -1].numpy()
        )


def with_adapter(run, folder):
    """Let a sequence on the graph use an adapter, by onnxruntime's own support."""
    adapter, options = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
    adapter.Load(str(folder / adapters.WEIGHTS))
    options.add_active_adapter(adapter)
    session = run.session
    run.session = type("Adapted", (), {"run": lambda _, names, feed: session.run(names, feed, options)})()
    run.adapter = adapter  # which the options do not keep
    return run


def compared(checkpoint, version, source, name):
    return export_adapter.export(source, version, name, Steps(), open_checkpoint(str(checkpoint)))


@pytest.mark.parametrize(
    ("shape", "name", "settings"),
    [
        ("llama", "all", {}),
        ("llama", "some", {"target_modules": ["v_proj", "up_proj"], "layers_to_transform": [1]}),
        (
            "llama",
            "patterns",
            {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}, "use_rslora": True},
        ),
        ("gpt2", "conv1d", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    ],
)
def test_the_graph_with_an_adapter_computes_what_peft_computes(
    request, adapter_of, lora_export, start, shape, name, settings
):
    checkpoint = request.getfixturevalue(shape)
    source, version = adapter_of(checkpoint, name, **settings), lora_export(checkpoint)
    folder, parity = compared(checkpoint, version, source, name)
    expected = peft_logits(checkpoint, source)
    np.testing.assert_allclose(with_adapter(start(version), folder).append(IDS), expected, atol=1e-4)
    assert parity is not None
    assert parity.max_abs_logit_difference < 1e-4
    assert np.abs(start(version).append(IDS) - expected).max() > 0.01  # it makes a difference


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_over_integers_the_adapter_stays_as_exact_as_the_base(
    llama, adapter_of, lora_export, start, precision
):
    source, version = adapter_of(llama, "all"), lora_export(llama, precision)
    folder, parity = compared(llama, version, source, "all")
    known = manifest.read(version).verification
    assert parity is not None
    assert parity.max_abs_logit_difference < 2 * known["max_abs_logit_difference"]
    assert np.abs(with_adapter(start(version), folder).append(IDS) - start(version).append(IDS)).max() > 0.01


def test_in_half_precision_the_adapter_is_as_exact_as_the_base(llama, adapter_of, lora_export):
    source, version = adapter_of(llama, "all"), lora_export(llama, "fp16")
    _, parity = compared(llama, version, source, "all")
    known = manifest.read(version).verification
    assert parity is not None
    assert parity.max_abs_logit_difference < 2 * known["max_abs_logit_difference"]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_without_an_adapter_the_logits_are_those_of_an_export_without_lora(
    llama, export_to, lora_export, start, tmp_path, precision
):
    plain = next(iter(export_to(llama, tmp_path, precision=precision).folders.values()))
    version = lora_export(llama, precision)
    assert np.array_equal(start(plain).append(IDS), start(version).append(IDS))
    assert "lora" not in json.loads((plain / "manifest.json").read_text())


def test_a_projection_that_goes_head_by_head_is_rearranged_for_the_adapter_too(
    save, adapter_of, lora_export, start
):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(3)
    shape = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "rotary_pct": 1.0,
    }
    checkpoint = save(
        GPTNeoXForCausalLM(GPTNeoXConfig(**shape, vocab_size=384, bos_token_id=0, eos_token_id=0)), "gpt_neox"
    )
    source = adapter_of(checkpoint, "neox", target_modules=["query_key_value", "dense"])
    version = lora_export(checkpoint)
    folder, _ = compared(checkpoint, version, source, "neox")
    got = with_adapter(start(version), folder).append(IDS)
    np.testing.assert_allclose(got, peft_logits(checkpoint, source), atol=1e-4)


def test_the_command(llama, adapter_of, lora_export, capsys):
    source, version = adapter_of(llama, "all"), lora_export(llama)
    command = ["export-adapter", str(source), "--model", str(version)]
    assert cli.main([*command, "--name", "one"]) == 0
    assert "not compared" in capsys.readouterr().out
    assert cli.main([*command, "--name", "two", "--checkpoint", str(llama)]) == 0
    assert "the same token at 100.0%" in capsys.readouterr().out
    assert cli.main([*command, "--name", "one"]) == 2
    assert "already" in capsys.readouterr().err


def test_verify_finds_a_damaged_adapter(llama, adapter_of, lora_export, tmp_path, capsys):
    version = shutil.copytree(lora_export(llama), tmp_path / "1")
    folder, _ = export_adapter.export(adapter_of(llama, "all"), version, "damaged", Steps())
    assert cli.main(["verify", str(version)]) == 0
    assert "damaged" in capsys.readouterr().out.partition("adapters: ")[2]
    path = folder / adapters.WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"\0\0")
    capsys.readouterr()
    assert cli.main(["verify", str(version)]) == 1
    assert str(path) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias 'all'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"peft_type": "IA3"}, "IA3"),
    ],
)
def test_what_a_graph_has_no_place_for_is_refused_by_name(llama, adapter_of, tmp_path, changes, named):
    source = shutil.copytree(adapter_of(llama, "all"), tmp_path / "adapter")
    path = source / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UnsupportedModel, match=named):
        read(source)


def test_modules_that_the_graph_does_not_have_are_refused_by_name(
    llama, llama_of_one_layer, adapter_of, lora_export
):
    version = lora_export(llama_of_one_layer)
    with pytest.raises(UnsupportedModel, match=r"model\.layers\.1\.mlp\.down_proj"):
        export_adapter.export(adapter_of(llama, "all"), version, "deeper", Steps())
    head = adapter_of(llama_of_one_layer, "head", target_modules=["lm_head"])
    with pytest.raises(UnsupportedModel, match="lm_head"):
        export_adapter.export(head, version, "head", Steps())
    assert not adapters.there(version)


def test_a_model_without_lora_a_foreign_folder_and_a_bad_name_are_refused(
    llama, adapter_of, exported, tmp_path
):
    source = adapter_of(llama, "all")
    plain = exported(llama).folders["llama"]
    with pytest.raises(UnsupportedModel, match="--lora"):
        export_adapter.export(source, plain, "all", Steps())
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        export_adapter.export(tmp_path, plain, "all", Steps())
    with pytest.raises(UsageError, match="not allowed"):
        export_adapter.export(source, plain, "../x", Steps())


def test_stretches():
    assert stretches((0, 1, 2, 6, 7, 3)) == ((0, 3), (6, 8), (3, 4))
    assert stretches(()) == ()
