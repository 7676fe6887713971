"""LoRA adapters on the real Triton: a request names one, others run beside it, and one more comes while the model is served."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gptport.server import running
from gptport_client import Client, InvalidRequest
from in_torch import PROMPTS

peft = pytest.importorskip("peft")

NAME = "gpt2-tiny"
TOKENS = 24
MODULES = {"first": ["c_attn", "c_fc"], "second": ["c_proj"], "late": ["c_attn"]}


def gptport(*arguments):
    subprocess.run([sys.executable, "-m", "gptport", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def adapters(checkpoints, tmp_path_factory):
    """Adapters as PEFT saves them, and the greedy tokens of its models: (prompt, adapter) → ids."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoints[NAME])
    folders, tokens = {}, {}
    for name, modules in MODULES.items():
        torch.manual_seed(len(name))
        model = AutoModelForCausalLM.from_pretrained(checkpoints[NAME], dtype=torch.float32)
        config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=modules, fan_in_fan_out=True)
        model = peft.get_peft_model(model, config).eval()
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name:
                torch.nn.init.normal_(parameter, 0, 0.3)
        folders[name] = tmp_path_factory.mktemp("peft") / name
        model.save_pretrained(folders[name])
        for prompt in PROMPTS[:4]:
            inputs = tokenizer(prompt, return_tensors="pt")
            output = model.generate(
                **inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, pad_token_id=0
            )
            tokens[prompt, name] = tuple(output[0, inputs["input_ids"].shape[1] :].tolist())
    return folders, tokens


@pytest.fixture(scope="module")
def served(checkpoints, adapters, tmp_path_factory):
    """A server with two adapters; the folder of its model."""
    repository = tmp_path_factory.mktemp("models")
    gptport("export", checkpoints[NAME], "--name", NAME, "--repository", repository, "--lora")
    model = repository / NAME
    for name in ("first", "second"):
        gptport("export-adapter", adapters[0][name], "--model", model, "--checkpoint", checkpoints[NAME])
    with running(repository) as server:
        yield server, model


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_every_request_gets_its_own_adapter(served, adapters, protocol):
    address = served[0].address
    url = address.grpc_url if protocol == "grpc" else address.http_url
    with Client(url, model=NAME) as client, ThreadPoolExecutor(12) as threads:

        def ask(prompt, name):
            options = {"max_tokens": TOKENS, "min_tokens": TOKENS, "lora_name": name}
            return client.generate(prompt, **options).token_ids

        asked = [(prompt, name) for name in ("first", "second", None) for prompt in PROMPTS[:4]]
        found = dict(zip(asked, threads.map(lambda pair: ask(*pair), asked), strict=True))
        expected = {pair: ids for pair, ids in adapters[1].items() if pair[1] != "late"}
        assert {pair: found[pair] for pair in expected} == expected
        assert all(found[prompt, None] == ask(prompt, None) for prompt in PROMPTS[:4])
        assert found[PROMPTS[0], None] != found[PROMPTS[0], "first"] != found[PROMPTS[0], "second"]


def test_an_adapter_that_comes_while_the_model_is_served(served, adapters):
    server, model = served
    with Client(server.address.grpc_url, model=NAME) as client:
        with pytest.raises(
            InvalidRequest, match=r"lora_name is 'late'; gpt2-tiny has the adapters first, second"
        ):
            client.generate(PROMPTS[0], lora_name="late")
        assert client.adapters() == ("first", "second")
        gptport("export-adapter", adapters[0]["late"], "--model", model)
        assert client.adapters() == ("first", "late", "second")
        found = client.generate(PROMPTS[0], lora_name="late", max_tokens=TOKENS, min_tokens=TOKENS)
        assert found.token_ids == adapters[1][PROMPTS[0], "late"]


def test_the_step_model_of_the_same_graph_goes_on_without_one(served):
    with Client(served[0].address.grpc_url, model=NAME) as client:
        server, own = (client.generate(PROMPTS[0], max_tokens=8, loop=loop) for loop in ("server", "client"))
        assert server.token_ids == own.token_ids
        with pytest.raises(InvalidRequest, match="lora_name is for the server's loop"):
            client.generate(PROMPTS[0], loop="client", lora_name="first")
