"""config.pbtxt, read back through Triton's own schema: what stock Triton and its onnxruntime backend insist on.

Each rule for the step model was found on a real server; without it tokens are wrong, the cache is copied, or nothing loads.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from gptport import cli, triton_config
from gptport_client._model import read_config
from gptport_client._step_wire import kv_request, with_cache

PROTOCOL = Path(__file__).parents[2] / "docs" / "protocol.md"


@pytest.fixture
def result(checkpoint, exported):
    return exported(checkpoint)


@pytest.fixture
def text(result):
    return configuration(result, 0)


@pytest.fixture
def step(result):
    return configuration(result, 1)


@pytest.fixture
def kv(result):
    content = triton_config.kv_model(result.manifest, f"{result.manifest.name}_kv", 1, None)
    return text_format.Parse(content.decode(), pb.ModelConfig())


def configuration(result, index):
    folder = list(result.folders.values())[index].parent
    return text_format.Parse((folder / "config.pbtxt").read_text(), pb.ModelConfig())


def documented(heading):
    """Name → (type, shape) of a table in docs/protocol.md."""
    section = PROTOCOL.read_text().split(f"## {heading}")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([A-Z0-9]+) \| \[(.*?)\] \|", section, re.MULTILINE)
    return {name: (dtype, shape) for name, dtype, shape in rows}


def described(tensors):
    names = {pb.TYPE_STRING: "BYTES"}
    return {
        tensor.name: (
            names.get(tensor.data_type, pb.DataType.Name(tensor.data_type).removeprefix("TYPE_")),
            ", ".join(map(str, tensor.dims)),
        )
        for tensor in tensors
    }


class TestTextModel:
    def test_it_is_one_decoupled_instance_of_our_backend(self, text, checkpoint):
        assert (text.name, text.backend, text.max_batch_size) == (checkpoint.name, "gptport", 0)
        assert text.model_transaction_policy.decoupled
        assert [(group.kind, group.count) for group in text.instance_group] == [
            (pb.ModelInstanceGroup.KIND_CPU, 1)
        ]

    def test_inputs_and_outputs_are_left_to_the_backend(self, text):
        assert not text.input
        assert not text.output

    def test_it_computes_a_token_before_it_is_ready(self, text, result):
        (warmup,) = text.model_warmup
        assert warmup.batch_size == 1
        assert list(warmup.inputs["input_ids"].dims) == [1]
        assert warmup.inputs["input_ids"].zero_data
        folder = result.folders[text.name].parent / "warmup"
        content = (folder / warmup.inputs["max_tokens"].input_data_file).read_bytes()
        assert int.from_bytes(content, "little") == 1


class TestStepModel:
    def test_it_runs_on_the_stock_backend(self, step, checkpoint):
        assert (step.name, step.backend) == (f"{checkpoint.name}_step", "onnxruntime")
        assert step.default_model_filename == "model.onnx"

    def test_only_ids_and_logits_travel(self, step):
        assert [each.name for each in step.input] == ["input_ids", "position_ids", "seqlens_k"]
        assert [each.name for each in step.output] == ["logits"]

    def test_inputs_and_outputs_are_those_of_the_documentation(self, step):
        expected = {
            name: (dtype, shape.removeprefix("1, ").replace("sequence", "-1").replace("vocab", "384"))
            for name, (dtype, shape) in documented("NAME_step: ids in, logits out").items()
        }
        assert {**described(step.input), **described(step.output)} == expected

    def test_dims_that_vary_in_the_graph_are_minus_one_here(self, step, result):
        graph = {tensor.name: tensor.shape for tensor in (*result.manifest.inputs, *result.manifest.outputs)}
        for tensor in (*step.input, *step.output):
            inner = [dim if isinstance(dim, int) else -1 for dim in graph[tensor.name][1:]]
            assert list(tensor.dims) == (inner or [1])

    def test_every_tensor_of_the_graph_has_the_batch_first(self, result):
        for tensor in (*result.manifest.inputs, *result.manifest.outputs):
            assert tensor.shape[0] == "batch"

    def test_the_total_length_is_computed_in_the_graph(self, result):
        names = {tensor.name for tensor in result.manifest.inputs}
        assert "total_sequence_length" not in names

    def test_a_number_for_each_row_is_reshaped_to_what_the_graph_takes(self, step, result):
        seqlens_k = step.input[2]
        assert list(seqlens_k.dims) == [1]
        assert seqlens_k.HasField("reshape")
        assert list(seqlens_k.reshape.shape) == []
        assert result.manifest.inputs[2].shape == ("batch",)

    def test_every_past_is_a_state_paired_with_its_present(self, step, result):
        pairs = [(state.input_name, state.output_name) for state in step.sequence_batching.state]
        tensors = result.manifest.kv_cache.tensors
        assert pairs == [(tensor.past, tensor.present) for tensor in tensors]
        assert len(pairs) == 2 * 3

    def test_sorting_the_names_keeps_the_pairs(self, step):
        """Triton pairs states by sorted names, whatever the configuration says."""
        states = step.sequence_batching.state
        by_name = zip(
            sorted(state.input_name for state in states),
            sorted(state.output_name for state in states),
            strict=True,
        )
        assert set(by_name) == {(state.input_name, state.output_name) for state in states}

    def test_states_are_no_inputs_or_outputs_as_well(self, step):
        listed = {tensor.name for tensor in (*step.input, *step.output)}
        for state in step.sequence_batching.state:
            assert listed.isdisjoint({state.input_name, state.output_name})

    def test_states_have_a_fixed_size(self, step, result):
        cache = result.manifest.kv_cache
        for state in step.sequence_batching.state:
            assert list(state.dims) == [cache.kv_heads, result.manifest.max_length, cache.head_dim]
            assert min(state.dims) > 0

    def test_states_begin_with_zeros(self, step):
        for state in step.sequence_batching.state:
            (initial,) = state.initial_state
            assert initial.zero_data
            assert (list(initial.dims), initial.data_type) == (list(state.dims), state.data_type)

    def test_states_are_updated_in_place(self, step):
        for state in step.sequence_batching.state:
            assert state.use_same_buffer_for_input_output
            assert not state.use_growable_memory

    def test_states_have_the_caches_type(self, step, result):
        assert result.manifest.kv_cache.dtype == "float32"
        assert {state.data_type for state in step.sequence_batching.state} == {pb.TYPE_FP32}

    def test_one_instance_not_the_two_that_triton_makes_of_no_count(self, step):
        assert [(group.kind, group.count) for group in step.instance_group] == [
            (pb.ModelInstanceGroup.KIND_CPU, 1)
        ]

    def test_operators_run_one_after_the_other_on_all_cores(self, step):
        """The parameters of Triton's onnxruntime backend; 0 threads are one a core."""
        assert step.parameters["execution_mode"].string_value == "0"
        assert step.parameters["intra_op_thread_count"].string_value == "0"
        assert step.parameters["inter_op_thread_count"].string_value == "1"

    def test_it_has_no_warm_up_which_triton_runs_outside_of_any_sequence(self, step):
        assert not step.model_warmup

    def test_sequences_are_batched_by_age_one_at_a_time(self, step):
        assert step.sequence_batching.HasField("oldest")
        assert step.max_batch_size == 1
        assert step.sequence_batching.oldest.max_candidate_sequences > 1
        assert step.sequence_batching.max_sequence_idle_microseconds > 0


class TestKvModel:
    """The step model whose caches lie in a region that the client shares: each past and its present in the same place."""

    def test_it_runs_on_the_stock_backend_and_knows_no_sequences(self, kv, checkpoint):
        assert (kv.name, kv.backend, kv.max_batch_size) == (f"{checkpoint.name}_kv", "onnxruntime", 1)
        assert not kv.HasField("sequence_batching")
        assert kv.parameters["gptport_kind"].string_value == "kv"

    def test_ids_and_logits_are_those_of_the_other_step_model(self, kv, step):
        assert list(kv.input[:3]) == list(step.input)
        assert list(kv.output[:1]) == list(step.output)

    def test_every_past_is_an_input_in_the_order_of_the_outputs(self, kv, result):
        pairs = [(past.name, present.name) for past, present in zip(kv.input[3:], kv.output[1:], strict=True)]
        assert pairs == [(tensor.past, tensor.present) for tensor in result.manifest.kv_cache.tensors]

    def test_the_length_of_a_cache_is_free_as_in_the_graph(self, kv, result):
        cache = result.manifest.kv_cache
        for tensor in (*kv.input[3:], *kv.output[1:]):
            assert list(tensor.dims) == [cache.kv_heads, -1, cache.head_dim]
            assert tensor.data_type == pb.TYPE_FP32

    def test_a_request_has_each_past_and_its_present_in_one_place_of_their_own(self, kv):
        layout = read_config(kv).cache
        template = with_cache(kv.name, "id", layout, "region", 64)
        request = kv_request(template, [7, 8], 3)
        assert {each.name for each in request.inputs} == {each.name for each in kv.input}
        assert {each.name for each in request.outputs} == {each.name for each in kv.output}
        assert len(request.raw_input_contents) == 3  # of the ids alone
        places = {}
        for tensor in (*request.inputs, *request.outputs):
            if tensor.parameters:
                parameters = tensor.parameters
                assert parameters["shared_memory_region"].string_param == "region"
                offset = parameters["shared_memory_offset"].int64_param
                places[tensor.name] = (offset, offset + parameters["shared_memory_byte_size"].int64_param)
        assert all(places[past] == places[present] for past, present in layout.tensors)
        in_order = sorted(set(places.values()))
        assert [begin for begin, _ in in_order] == [0, *(end for _, end in in_order[:-1])]
        assert in_order[-1][1] == layout.bytes(64)
        assert len(in_order) == len(layout.tensors)


@pytest.mark.parametrize("index", [0, 1], ids=["text", "step"])
def test_parameters_tell_a_client_what_tensors_do_not(result, index):
    config, manifest = configuration(result, index), result.manifest
    of_onnxruntime = {"execution_mode", "intra_op_thread_count", "inter_op_thread_count"}
    ours = {
        name: value.string_value for name, value in config.parameters.items() if name not in of_onnxruntime
    }
    assert ours == {
        "gptport_schema": "1",
        "gptport_kind": ["text", "step"][index],
        "max_length": str(manifest.max_length),
        "vocab_size": "384",
        "bos_token_id": "0",
        "eos_token_ids": "0",
        "tokenizer_sha256": manifest.files["tokenizer.json"].sha256,
    }
    for name in ours:
        assert f"`{name}`" in PROTOCOL.read_text()


@pytest.mark.parametrize("index", [0, 1], ids=["text", "step"])
def test_the_new_version_is_the_one_that_is_served(gpt2, export_to, tmp_path, index):
    for expected in (1, 2):
        policy = configuration(export_to(gpt2, tmp_path), index).version_policy
        assert list(policy.specific.versions) == [expected]


def test_half_precision_states_are_half_precision(gpt2, export_to, tmp_path):
    step = configuration(export_to(gpt2, tmp_path, precision="fp16"), 1)
    assert {state.data_type for state in step.sequence_batching.state} == {pb.TYPE_FP16}
    assert step.output[0].data_type == pb.TYPE_FP32


@pytest.mark.parametrize("index", [0, 1], ids=["text", "step"])
def test_no_answer_is_kept_for_another_request(result, index):
    config = configuration(result, index)
    assert config.HasField("response_cache")
    assert not config.response_cache.enable


class TestServing:
    """`--instances`, `--gpus` and `--threads`."""

    @pytest.fixture
    def both(self, result):
        def configurations(**serving):
            chosen = triton_config.Serving(**serving)
            texts = (
                triton_config.text_model(result.manifest, 1, None, chosen),
                triton_config.step_model(result.manifest, "step", 1, None, chosen),
            )
            return [text_format.Parse(text.decode(), pb.ModelConfig()) for text in texts]

        return configurations

    def test_instances_on_the_cpu(self, both):
        for config in both(instances=3):
            (group,) = config.instance_group
            assert (group.kind, group.count) == (pb.ModelInstanceGroup.KIND_CPU, 3)

    def test_each_gpu_has_its_instances(self, both):
        for config in both(instances=2, gpus=(0, 3)):
            (group,) = config.instance_group
            assert (group.kind, group.count, list(group.gpus)) == (pb.ModelInstanceGroup.KIND_GPU, 2, [0, 3])

    def test_threads_are_the_parameters_of_each_backend(self, both):
        text, step = both(threads=5)
        assert text.parameters["threads"].string_value == "5"
        assert step.parameters["intra_op_thread_count"].string_value == "5"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--gpus", "0"], "--gpus goes with fp16, bf16, or --compute fp16"),
            (["--precision", "int4", "--gpus", "0"], "--gpus goes with fp16"),
            (["--gpus", "0,0"], "'0,0' does not name GPUs"),
            (["--gpus", "all"], "'all' does not name GPUs"),
            (["--instances", "0"], "'0' is not a whole number of 1 or more"),
        ],
    )
    def test_what_cannot_be_is_said_at_once(self, arguments, message, capsys):
        try:
            code = cli.main(["export", "nowhere", *arguments])
        except SystemExit as exit_:
            code = exit_.code
        assert code == 2
        assert message in capsys.readouterr().err
