"""Tiny real checkpoints, what transformers says of them, and the graphs that the exporter makes of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from gptport import cli
from gptport import manifest as manifests
from gptport.checkpoint import open_checkpoint
from gptport.console import Steps
from gptport.export import export
from gptport.onnx_directory import opened
from gptport.package import package
from gptport.precision import by_name
from gptport.samples import sample
from graphs import Traced

if TYPE_CHECKING:
    from collections.abc import Callable

    from gptport.export import Exported
    from gptport.package import Packaged
    from gptport.triton_config import Serving

VOCAB = 384
GPT2_CONTEXT, LLAMA_CONTEXT = 256, 4096


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoints, each made when it is first asked for; they are not to be changed."""
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="session")
def gpt2(checkpoints: Path) -> Path:
    """The sample gpt2-tiny: three layers, biases everywhere, positions from a table, a tied head."""
    return sample("gpt2-tiny", checkpoints / "gpt2", Steps())


@pytest.fixture(scope="session")
def save(checkpoints: Path, gpt2: Path) -> Callable[..., Path]:
    """Write a model with the tokenizer of gpt2-tiny; keywords are those of `save_pretrained`."""

    def write(model: Any, name: str, **options: Any) -> Path:
        folder = checkpoints / name
        model.save_pretrained(folder, **options)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(gpt2 / file, folder)
        return folder

    return write


def random_llama(**changes: Any) -> LlamaForCausalLM:
    """Three layers, four query heads on two key and value heads; random weights, large enough to tell tokens apart."""
    shape = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB,
        "max_position_embeddings": LLAMA_CONTEXT,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(1)
    return randomized(LlamaForCausalLM(LlamaConfig(**{**shape, **changes})))


def randomized(model: Any) -> Any:
    """Give a model random weights, norms of about 1."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.0 if parameter.ndim > 1 else 1.0, 0.2)
    return model


@pytest.fixture(scope="session")
def llama(save: Callable[..., Path]) -> Path:
    """A Llama with grouped heads and a tied head, in one safetensors file."""
    return save(random_llama(), "llama")


@pytest.fixture(scope="session")
def llama_sharded(save: Callable[..., Path]) -> Path:
    """The same Llama in several safetensors files."""
    folder = save(random_llama(), "llama_sharded", max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture(scope="session")
def llama_untied(save: Callable[..., Path]) -> Path:
    """A Llama whose head has a weight of its own."""
    return save(random_llama(tie_word_embeddings=False), "llama_untied")


@pytest.fixture(scope="session")
def llama_of_one_layer(save: Callable[..., Path]) -> Path:
    """A Llama with nothing to stamp out."""
    return save(random_llama(num_hidden_layers=1), "llama_of_one_layer")


@pytest.fixture(scope="session")
def gpt2_by_layer(save: Callable[..., Path]) -> Path:
    """A GPT-2 in which every layer scales its attention differently."""
    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=GPT2_CONTEXT,
        n_embd=64,
        n_layer=4,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
        scale_attn_by_inverse_layer_idx=True,
    )
    torch.manual_seed(2)
    return save(randomized(GPT2LMHeadModel(config)), "gpt2_by_layer")


@pytest.fixture(params=["gpt2", "llama"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    """Both shapes, one after the other."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


@pytest.fixture(scope="session")
def export_to() -> Callable[..., Exported]:
    """Export as `gptport export` does."""

    def run(
        checkpoint: Path,
        repository: Path,
        *,
        precision: Any = "fp32",
        max_length: int | None = None,
        keep: int | None = None,
        adapters: bool = False,
        serving: Serving | None = None,
    ) -> Exported:
        chosen = by_name(precision) if isinstance(precision, str) else precision
        source = open_checkpoint(str(checkpoint))
        return export(
            source,
            repository,
            source.name,
            chosen,
            max_length,
            Steps(),
            keep=keep,
            serving=serving,
            adapters=adapters,
        )

    return run


@pytest.fixture(scope="session")
def exported(
    tmp_path_factory: pytest.TempPathFactory, export_to: Callable[..., Exported]
) -> Callable[[Path], Exported]:
    """The export of a checkpoint into a shared repository, made once; it is not to be changed."""
    repository, known = tmp_path_factory.mktemp("repository"), {}

    def get(checkpoint: Path) -> Exported:
        if checkpoint not in known:
            known[checkpoint] = export_to(checkpoint, repository)
        return known[checkpoint]

    return get


class Run:
    """A sequence on an exported graph: every call appends tokens and gives the logits of the last one."""

    def __init__(self, version: Path) -> None:
        self.manifest = manifests.read(version)
        self.session = onnxruntime.InferenceSession(
            str(version / self.manifest.graph), providers=["CPUExecutionProvider"]
        )
        cache, length = self.manifest.kv_cache, self.manifest.max_length
        self.cache = {
            tensor.past: np.zeros((1, heads, length, head_dim), cache.dtype)
            for tensor, (heads, head_dim) in zip(cache.tensors, self.manifest.cache_shapes, strict=True)
        }
        self.length = 0

    def append(self, ids: list[int]) -> np.ndarray[Any, Any]:
        """Float32 [vocab], for what follows the last of `ids`."""
        positions = np.arange(self.length, self.length + len(ids), dtype=np.int64)
        self.length += len(ids)
        feed = {
            "input_ids": np.array([ids], np.int64),
            "position_ids": positions[np.newaxis],
            "seqlens_k": np.array([self.length - 1], np.int32),
            **self.cache,
        }
        logits, *present = self.session.run(None, feed)
        self.cache = dict(zip(self.cache, present, strict=True))
        row: np.ndarray[Any, Any] = logits[0]
        return row


@pytest.fixture(scope="session")
def start() -> Callable[[Path], Run]:
    """Start a sequence on the graph of a version folder."""
    return Run


@pytest.fixture(scope="session")
def in_torch() -> Callable[[Path, list[int]], np.ndarray[Any, Any]]:
    """Float32 [tokens, vocab]: what transformers gives for every position."""

    def run(checkpoint: Path, ids: list[int]) -> np.ndarray[Any, Any]:
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
        with torch.no_grad():
            logits: np.ndarray[Any, Any] = model(torch.tensor([ids]), use_cache=False).logits[0].numpy()
        return logits

    return run


@pytest.fixture
def change_config() -> Callable[..., None]:
    """Change entries of a checkpoint's config.json."""

    def change(folder: Path, **entries: Any) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))

    return change


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    """A checkpoint's copy, which a test may change."""
    return lambda checkpoint: shutil.copytree(checkpoint, tmp_path / "copy")


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Export through the command; its one line of complaint."""

    def run(source: Path, *options: str, code: int = 1) -> str:
        repository = tmp_path / "repository"
        found = cli.main(["export", str(source), "--repository", str(repository), "--name", "any", *options])
        out, err = capsys.readouterr()
        (line,) = [line for line in err.splitlines() if line.startswith("gptport: ")]
        assert (found, out) == (code, "")
        assert "Traceback" not in err
        assert not repository.exists() or not any(repository.iterdir())
        return line

    return run


@pytest.fixture
def traced_gpt2(gpt2: Path) -> Traced:
    """The graph of the tiny GPT-2, unrolled, before any rewrite."""
    return Traced(gpt2)


@pytest.fixture
def traced_llama(llama: Path) -> Traced:
    """The graph of the tiny Llama, unrolled, before any rewrite."""
    return Traced(llama)


FOREIGN = Path(__file__).parent / "foreign"


@pytest.fixture
def copied(gpt2: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of a directory that another exporter wrote, with a tokenizer, that may be changed."""

    def copy(name: str = "optimum-llama") -> Path:
        folder = shutil.copytree(FOREIGN / name, tmp_path / name)
        shutil.copy(gpt2 / "tokenizer.json", folder)
        return folder

    return copy


@pytest.fixture
def packaged(tmp_path: Path) -> Callable[..., Packaged]:
    """Package a directory into a repository of this test; keywords are those of `package`."""

    def run(source: Path, name: str = "tiny", max_length: int | None = None, **options: Any) -> Packaged:
        return package(opened(source), tmp_path / "repository", name, max_length, Steps(), **options)

    return run
