"""Checkpoints in integers: GPTQ and AWQ, packed here value by value as their formats say."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from gptport import cli
from gptport.checkpoint import open_checkpoint
from gptport.errors import CheckpointError, UnsupportedModel
from gptport.packed import Packing

GROUP = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def words(values, order, bits):
    """[rows, values] → int32 [rows, words], one value after the other."""
    count = 32 // bits
    packed = np.zeros((len(values), values.shape[1] // count), np.int64)
    for word in range(packed.shape[1]):
        for place in range(count):
            packed[:, word] |= values[:, word * count + order[place]].astype(np.int64) << (place * bits)
    return torch.from_numpy(packed.astype(np.uint32).view(np.int32))


def rounded(matrix, bits, group):
    """matrix [N, K] → values [K, N], zero points [groups, N], scales [groups, N] float16."""
    groups = matrix.T.reshape(-1, group, len(matrix))
    low, high = np.minimum(groups.min(1), 0), np.maximum(groups.max(1), 0)
    scales = ((high - low) / (2**bits - 1)).astype(np.float16)
    zeros = np.clip(np.round(-low / scales), 1, 2**bits - 1)
    values = np.clip(np.round(groups / scales[:, None]) + zeros[:, None], 0, 2**bits - 1)
    return values.reshape(-1, len(matrix)).astype(int), zeros.astype(int), scales


def packed_matrix(matrix, method, bits, group=GROUP):
    values, zeros, scales = rounded(matrix, bits, group)
    parts = {"scales": torch.from_numpy(np.ascontiguousarray(scales))}
    if method == "awq":
        parts |= {"qweight": words(values, AWQ_ORDER, bits), "qzeros": words(zeros, AWQ_ORDER, bits)}
    else:
        order = range(8)
        parts["qweight"] = words(values.T, order, bits).T.contiguous()
        parts["qzeros"] = words(zeros - (method == "gptq"), order, bits)
        parts["g_idx"] = torch.arange(len(values), dtype=torch.int32) // group
    dense = (values - zeros.repeat(group, 0)) * scales.astype(np.float32).repeat(group, 0)
    return parts, dense.T.astype(np.float32)


@pytest.fixture
def pack(llama, copy):
    """The Llama with its layers' matrices in integers, and the values that they stand for."""

    def write(method="gptq", bits=4, *, whole_rows=False):
        folder, stand_for = copy(llama), {}
        tensors = load_file(folder / "model.safetensors")
        for name in [name for name in tensors if ".layers." in name and "proj" in name]:
            matrix = tensors.pop(name).numpy()
            group = matrix.shape[1] if whole_rows else GROUP
            parts, stand_for[name] = packed_matrix(matrix, method, bits, group)
            tensors |= {f"{name.removesuffix('weight')}{part}": value for part, value in parts.items()}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        settings = {"quant_method": method[:4], "bits": bits, "group_size": -1 if whole_rows else GROUP}
        if method == "awq":
            settings |= {"quant_method": "awq", "version": "gemm", "zero_point": True}
        if method == "gptq_v2":
            settings["checkpoint_format"] = "gptq_v2"
        config = json.loads((folder / "config.json").read_text()) | {"quantization_config": settings}
        (folder / "config.json").write_text(json.dumps(config))
        return folder, stand_for

    return write


METHODS = [("gptq", 4), ("gptq_v2", 4), ("awq", 4)]


@pytest.mark.parametrize(("method", "bits"), METHODS)
def test_the_values_are_those_that_were_packed(pack, method, bits):
    folder, stand_for = pack(method, bits)
    checkpoint = open_checkpoint(str(folder))
    for name, values in stand_for.items():
        assert checkpoint.shape(name) == values.shape
        np.testing.assert_array_equal(checkpoint.tensor(name).numpy(), values)


@pytest.mark.parametrize(("method", "bits"), METHODS)
def test_int4_takes_the_integers_as_they_are(pack, export_to, tmp_path, method, bits):
    folder, stand_for = pack(method, bits)
    exported = export_to(folder, tmp_path / "repository", precision="int4")
    graph = onnx.load(exported.folders["copy"] / "model.onnx").graph
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    name = "model.layers.0.mlp.down_proj.weight"
    packed, scales, zeros = (stored[f"{name}.4bit.{part}"] for part in ("packed", "scales", "zero_points"))
    values, zero_points = (
        np.stack([each & 15, each >> 4], -1).reshape(len(each), -1)[:, :count]
        for each, count in ((packed.reshape(len(packed), -1), 96), (zeros, 3))
    )
    dense = (values.astype(int) - zero_points.repeat(GROUP, 1)) * scales.repeat(GROUP, 1)
    np.testing.assert_array_equal(dense.astype(np.float32), stand_for[name])
    assert exported.parity.greedy_agreement > 0.85  # what differs is the rounding of activations to 8 bits


def test_fp32_computes_with_the_values_that_they_stand_for(pack, export_to, tmp_path):
    folder, _ = pack("awq")
    parity = export_to(folder, tmp_path / "repository").parity
    assert parity.max_abs_logit_difference < 1e-4 * parity.max_abs_logit


def test_one_group_a_row_that_no_blocks_divide_is_rounded_anew(pack, export_to, tmp_path):
    folder, _ = pack("gptq", 4, whole_rows=True)
    exported = export_to(folder, tmp_path / "repository", precision="int4")
    assert exported.parity.max_abs_logit_difference < exported.parity.max_abs_logit


def test_a_last_group_that_is_smaller_is_refused(pack, export_to, tmp_path, change_config):
    folder, _ = pack("gptq")
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 64}  # of down_proj's 96 features
    change_config(folder, quantization_config=settings)
    with pytest.raises(
        UnsupportedModel, match="has 96 input features in groups of 64, the last of them smaller"
    ):
        export_to(folder, tmp_path / "repository", precision="int4")


def test_groups_that_are_not_side_by_side_are_refused(pack, export_to, tmp_path):
    folder, _ = pack("gptq")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.g_idx"] = tensors["model.layers.0.mlp.up_proj.g_idx"].flip(0)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedModel, match=r"layers.0.mlp.up_proj was quantized with desc_act"):
        export_to(folder, tmp_path / "repository", precision="int4")
    assert not (tmp_path / "repository" / "copy").exists()


def test_a_missing_part_is_named(pack, export_to, tmp_path):
    folder, _ = pack("gptq")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.qzeros"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"no model.layers.1.mlp.up_proj.qzeros"):
        export_to(folder, tmp_path / "repository", precision="int4")


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "gptq", "bits": 3},
        {"quant_method": "awq", "bits": 4, "version": "gemv"},
        {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"},
        {"quant_method": "gptq", "bits": 4, "format": "bitblas"},
        {"quant_method": "gptq", "bits": 4, "is_marlin_format": True},
        {"quant_method": "awq", "bits": 4, "format": "gemv_fast"},
        {"quant_method": "fp8"},
    ],
)
def test_other_quantizations_are_refused_by_name(settings):
    with pytest.raises(UnsupportedModel, match=f"quantized by {settings['quant_method']}"):
        Packing.of(settings)


@pytest.mark.parametrize("name", ["group_size", "bits"])
def test_a_setting_that_is_no_number_is_refused_by_name(name):
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 128, name: None}
    with pytest.raises(UnsupportedModel, match=f"{name} = null, which is no whole number"):
        Packing.of(settings)


def test_numbers_may_be_strings_and_names_in_capitals():
    settings = {"quant_method": "gptq", "bits": "4", "group_size": "64", "checkpoint_format": "GPTQ_V2"}
    assert Packing.of(settings) == Packing("gptq", 4, 64, 0)


def test_the_newer_name_of_the_format_says_which_zero_points_are_stored():
    assert Packing.of({"quant_method": "gptq", "bits": 4, "format": "gptq_v2"}).zero_offset == 0


def test_the_command_says_in_a_line_what_it_does_not_read(llama, copy, change_config, tmp_path, capsys):
    folder = copy(llama)
    change_config(folder, quantization_config={"quant_method": "hqq"})
    assert cli.main(["export", str(folder), "--repository", str(tmp_path / "repository")]) == 1
    assert "quantized by hqq" in capsys.readouterr().err
