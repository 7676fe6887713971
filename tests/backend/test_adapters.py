"""LoRA adapters in the engine: a real export, adapters that PEFT made, in any mixture."""

from __future__ import annotations

import shutil

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from conftest import Served
from gptport import export_adapter
from gptport.checkpoint import open_checkpoint
from gptport.console import Steps
from gptport.errors import GptportError
from gptport.export import export
from gptport.precision import by_name
from gptport.samples import sample
from gptport_backend.engine import EngineOptions
from gptport_backend.errors import RequestError

peft = pytest.importorskip("peft")

# Of different ranks and modules, so that they have different columns of the graph's inputs.
ADAPTERS = {
    "one": {"r": 4, "target_modules": ["c_attn", "c_proj", "c_fc"]},
    "two": {"r": 2, "target_modules": ["c_attn"]},
    "three": {"r": 3, "target_modules": ["c_fc"]},
}
PROMPTS = ["Once upon a time there was", "The sea", "A long, long story that begins like others: "]
ALONE = [(prompt, name) for prompt in PROMPTS for name in (None, *ADAPTERS)]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return sample("gpt2-tiny", tmp_path_factory.mktemp("checkpoint") / "gpt2", Steps())


@pytest.fixture(scope="session")
def adapted(checkpoint, tmp_path_factory):
    """A version folder with adapters beside it; not to be changed."""
    source = open_checkpoint(str(checkpoint))
    exported = export(
        source, tmp_path_factory.mktemp("repository"), "tiny", by_name("fp32"), None, Steps(), adapters=True
    )
    version = exported.folders["tiny"]
    for name, settings in ADAPTERS.items():
        export_adapter.export(
            adapter(checkpoint, tmp_path_factory.mktemp(name), settings), version, name, Steps()
        )
    return version


def adapter(checkpoint, folder, settings):
    torch.manual_seed(settings["r"])
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    model = peft.get_peft_model(model, peft.LoraConfig(lora_alpha=8, fan_in_fan_out=True, **settings))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, 0, 0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def serve_adapted(adapted):
    started = []

    def start(version_dir=adapted, **options):
        started.append(Served(version_dir, EngineOptions(**options)))
        return started[-1]

    yield start
    for served in started:
        served.engine.close(0)


def ask(served, prompt, name, tokens=24):
    named = {} if name is None else {"lora_name": name}
    return served.ask(text_input=prompt, max_tokens=tokens, ignore_eos=True, **named)


@pytest.fixture
def alone(serve_adapted):
    """What each prompt gives with each adapter when nothing else runs."""
    served = serve_adapted(prefix_cache_bytes=0)
    return {pair: ask(served, *pair).wait().token_ids for pair in ALONE}


def test_greedy_text_with_an_adapter_is_that_of_peft(alone, checkpoint, tmp_path):
    served_tokens = alone[PROMPTS[0], "one"]
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, adapter(checkpoint, tmp_path, ADAPTERS["one"])).eval()
    ids = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(PROMPTS[0]).ids
    with torch.no_grad():
        for _ in range(len(served_tokens)):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert ids[-len(served_tokens) :] == served_tokens


def test_the_adapters_make_different_texts(alone):
    assert len({tuple(alone[PROMPTS[0], name]) for name in (None, *ADAPTERS)}) == 4


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_batch_size": 3},
        {"max_prefill_tokens": 8},
        {"prefix_cache_bytes": 0},
    ],
)
def test_text_is_the_same_in_any_mixture(serve_adapted, alone, options):
    served = serve_adapted(**options)
    asked = [(pair, ask(served, *pair)) for pair in ALONE * 2]
    for pair, answer in asked:
        assert not answer.wait().error
        assert answer.token_ids == alone[pair], pair


def test_a_sequence_that_gave_its_row_up_goes_on_with_its_adapter(serve_adapted, alone, monkeypatch):
    monkeypatch.setattr(
        "gptport_backend.kv_cache.FIRST_LENGTH", 16
    )  # so that rows grow, and memory gets short
    spec = serve_adapted().manifest.cache
    token = spec.token_bytes
    served = serve_adapted(kv_cache_bytes=256 * token, prefix_cache_bytes=0)
    asked = [(pair, ask(served, *pair)) for pair in ALONE]
    for pair, answer in asked:
        assert not answer.wait().error
        assert answer.token_ids == alone[pair], pair
    assert served.engine._tally.preemptions


def test_keys_and_values_of_another_adapter_are_not_reused(serve_adapted):
    served = serve_adapted()
    prompt = "word " * 40
    first = {name: ask(served, prompt, name).wait().token_ids for name in (None, "one", "two")}
    again = {name: ask(served, prompt, name).wait().token_ids for name in ("two", None, "one")}
    assert again == first
    assert len(set(map(tuple, first.values()))) == 3


def test_an_adapter_that_is_not_there_is_refused_with_the_list_of_those_that_are(serve_adapted, serve):
    with pytest.raises(RequestError, match=r"lora_name is 'four'; tiny has the adapters one, three, two"):
        ask(serve_adapted(), PROMPTS[0], "four")
    for name in ("../one", "..", "one/../two", ""):
        with pytest.raises(RequestError, match="lora_name"):
            ask(serve_adapted(), PROMPTS[0], name)
    with pytest.raises(RequestError, match="without --lora"):
        ask(serve(), PROMPTS[0], "one")


def test_one_that_comes_while_the_model_is_served_is_there_at_once_and_a_damaged_one_is_refused(
    serve_adapted, adapted, tmp_path
):
    version = shutil.copytree(adapted, tmp_path / "1")
    shutil.move(version / "adapters" / "two", tmp_path / "two")
    served = serve_adapted(version)
    with pytest.raises(RequestError, match="one, three"):
        ask(served, PROMPTS[0], "two")
    shutil.move(tmp_path / "two", version / "adapters" / "two")
    assert ask(served, PROMPTS[0], "two").wait().token_ids
    path = version / "adapters" / "three" / "adapter.onnx_adapter"
    path.write_bytes(path.read_bytes()[:-4] + b"\1\2\3\4")
    with pytest.raises(RequestError, match="damaged"):
        ask(served, PROMPTS[0], "three")


def test_a_foreign_adapter_does_not_reach_the_graph(checkpoint, adapted, tmp_path):
    source = adapter(checkpoint, tmp_path, {"r": 2, "target_modules": ["lm_head"]})
    with pytest.raises(GptportError, match="lm_head"):
        export_adapter.export(source, adapted, "foreign", Steps())


def test_several_answers_and_the_likelihood_of_a_prompt_are_by_the_adapter(serve_adapted):
    served = serve_adapted()
    options = {"max_tokens": 12, "temperature": 0.9, "lora_name": "one", "ignore_eos": True}
    several = served.ask(text_input=PROMPTS[2], n=2, seed=5, **options)
    asked = [
        served.ask(text_input=PROMPTS[2], max_tokens=0, prompt_logprobs=0, lora_name=name)
        for name in ("one", "two")
    ]
    single = [served.ask(text_input=PROMPTS[2], seed=5 + index, **options).wait() for index in range(2)]
    assert [several.wait().of(index).token_ids for index in range(2)] == [each.token_ids for each in single]
    again = served.ask(text_input=PROMPTS[2], max_tokens=0, prompt_logprobs=0, lora_name="one")
    one, two, alone = (
        [each.token for each in answer.wait().pieces[0].prompt.logprobs] for answer in (*asked, again)
    )
    assert one == pytest.approx(alone, abs=1e-5)
    assert one != pytest.approx(two, abs=1e-2)
