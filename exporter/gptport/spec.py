"""ModelSpec: what we need to know of a model, read once from its configuration, Hugging Face's, or onnxruntime-genai's."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PretrainedConfig


_BLOOM_LENGTH = 2048
"""What BLOOM was trained on (BigScience, arXiv:2211.05100); its configuration does not say."""


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only transformer, in the field's words.

    Attributes:
        model_type: transformers' name of the architecture.
        layers: decoder layers.
        heads: query heads of a layer.
        kv_heads: key and value heads of a layer; `heads` is a multiple of it.
        head_dim: width of one head.
        vocab_size: rows of the embedding, which is the width of the logits.
        context_length: positions the checkpoint was made for, in tokens.
        bos_token_id: the id that begins a text, if there is one.
        eos_token_ids: every id that ends a text, of those that the model can give.
        pad_token_id: the id for padding, if there is one.
    """

    model_type: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None

    @classmethod
    def from_config(cls, config: PretrainedConfig, generation: Mapping[str, Any]) -> ModelSpec:
        """Read a configuration, and what generation_config.json has, if there is one.

        Raises:
            UnsupportedModel: the configuration is not that of a decoder-only transformer.
        """
        if getattr(config, "is_encoder_decoder", False):
            raise UnsupportedModel(f"{config.model_type} has an encoder; gptport exports decoder-only models")
        # Where layers have configurations of their own, the whole one does not tell what differs.
        layer = config.per_layer_config[0] if config.is_heterogeneous else config
        heads = _number(config, _of_decoder(config, "num_attention_heads"))
        hidden = _number(config, "hidden_size")
        eos = generation.get("eos_token_id")
        eos = getattr(config, "eos_token_id", None) if eos is None else eos
        return cls(
            model_type=config.model_type,
            layers=_number(config, _of_decoder(config, "num_hidden_layers")),
            heads=heads,
            kv_heads=_kv_heads(layer, heads),
            head_dim=_head_dim(layer) or hidden // heads,
            vocab_size=_number(config, "vocab_size"),
            context_length=_context_length(config),
            bos_token_id=getattr(config, "bos_token_id", None),
            eos_token_ids=_ids(eos, config.vocab_size),
            pad_token_id=getattr(config, "pad_token_id", None),
        )

    @classmethod
    def from_genai(cls, document: Any) -> ModelSpec:
        """Read a genai_config.json of onnxruntime-genai.

        Raises:
            UnsupportedModel: it is none, or not that of a decoder-only transformer.
        """
        try:
            model, decoder = document["model"], document["model"]["decoder"]
            return cls(
                model_type=str(model["type"]),
                layers=int(decoder["num_hidden_layers"]),
                heads=int(decoder["num_attention_heads"]),
                kv_heads=int(decoder["num_key_value_heads"]),
                head_dim=int(decoder["head_size"]),
                vocab_size=int(model["vocab_size"]),
                context_length=int(model["context_length"]),
                bos_token_id=model.get("bos_token_id"),
                eos_token_ids=_ids(model.get("eos_token_id"), int(model["vocab_size"])),
                pad_token_id=model.get("pad_token_id"),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UnsupportedModel(
                f"genai_config.json lacks or misstates {error}; expected that of a decoder-only model"
            ) from error


_OF_DECODERS = {"num_hidden_layers": "decoder_layers", "num_attention_heads": "decoder_attention_heads"}


def _of_decoder(config: PretrainedConfig, name: str) -> str:
    """What a configuration calls that of its decoder: where it tells it from an encoder's, `name` is the encoder's."""
    return _OF_DECODERS[name] if hasattr(config, _OF_DECODERS[name]) else name


def with_layers(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """A copy of a configuration for that many decoder layers. UnsupportedModel if their number is none of one stack."""
    copied = copy.deepcopy(config)
    try:
        setattr(copied, _of_decoder(config, "num_hidden_layers"), layers)
    except NotImplementedError as error:
        raise UnsupportedModel(
            f"{config.model_type} is no single stack of decoder layers, whose number can be set"
        ) from error
    return copied


def _ids(eos: Any, vocab_size: int) -> tuple[int, ...]:
    """Those that there are logits for: tokenizers may have more tokens, and -1 stands for none."""
    listed = list(eos) if isinstance(eos, list | tuple) else [] if eos is None else [eos]
    if any(type(each) is not int for each in listed):
        raise UnsupportedModel(
            f"the model has eos_token_id = {eos!r}; expected the id of the token that ends a text, or a list of such ids"
        )
    return tuple(each for each in listed if 0 <= each < vocab_size)


def _head_dim(config: PretrainedConfig) -> int | None:
    if _is_latent(config):
        return int(config.qk_nope_head_dim + config.qk_rope_head_dim)
    return getattr(config, "head_dim", None)


def _is_latent(config: PretrainedConfig) -> bool:
    """Whether keys and values are made of latents, for every head its own."""
    return bool(getattr(config, "kv_lora_rank", None) and getattr(config, "qk_nope_head_dim", None))


def _kv_heads(config: PretrainedConfig, heads: int) -> int:
    if _is_latent(config):
        return heads
    if getattr(
        config, "new_decoder_architecture", False
    ):  # a Falcon that repeats its keys before it caches them
        return heads
    if getattr(config, "multi_query", False):
        return 1
    return getattr(config, "num_key_value_heads", None) or heads


def _context_length(config: PretrainedConfig) -> int:
    """Models with ALiBi have other names for it, or none: they have no table that ends anywhere."""
    for name in ("max_seq_len", "seq_length"):
        if not hasattr(config, "max_position_embeddings") and isinstance(getattr(config, name, None), int):
            return _number(config, name)
    if config.model_type == "bloom":
        return _BLOOM_LENGTH
    return _number(config, "max_position_embeddings")


def _number(config: PretrainedConfig, name: str) -> int:
    value = getattr(config, name, None)
    if not isinstance(value, int) or value < 1:
        raise UnsupportedModel(
            f"the configuration of {config.model_type!r} has {name} = {value!r}; a GPT has a positive number there"
        )
    return value
