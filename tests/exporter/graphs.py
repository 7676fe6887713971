"""Graphs to rewrite: of tiny checkpoints, and made by hand."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir
import torch

from gptport import passes
from gptport.checkpoint import open_checkpoint
from gptport.dialects import onnxruntime as dialect
from gptport.operators import DOMAIN
from gptport.trace import rotary_tables, trace
from gptport.unroll import unroll

LAYERS, MAX_LENGTH = 3, 64
FLOAT = ir.DataType.FLOAT


class Traced:
    """A tiny checkpoint's graph, lowered step by step."""

    def __init__(self, folder):
        checkpoint = open_checkpoint(str(folder))
        config, spec = checkpoint.config, checkpoint.spec
        self.model = unroll(trace(config, spec, 2, torch.float32), spec.layers)
        self.graph = self.model.graph
        self.context = passes.Context(spec, MAX_LENGTH, lambda path: rotary_tables(config, path, MAX_LENGTH))

    def run_before(self, rewrite):
        """The passes of the dialect up to the first call of `rewrite`."""
        before = dialect.PASSES[: dialect.PASSES.index(rewrite)]
        passes.run(self.model, before, self.context)
        return self

    def run(self, rewrite):
        """How many places were changed, and by how much the number of each operator changed."""
        before = counted(self.graph)
        changed = rewrite(self.graph, self.context)
        passes.tidy(self.model)
        after = counted(self.graph)
        return changed, {op: after[op] - before[op] for op in before | after if after[op] != before[op]}

    def nodes(self, op_type):
        return [node for node in self.graph if node.op_type == op_type]


def counted(graph):
    return Counter(f"{node.domain}.{node.op_type}".lstrip(".") for node in graph)


def value(name, *shape, dtype=FLOAT):
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def ours(op_type, inputs, attributes, *shape):
    """A node of domain `gptport` with one output."""
    return shaped(ir.node(op_type, inputs, attributes, domain=DOMAIN), *shape)


def plain(op_type, inputs, *shape, **attributes):
    return shaped(ir.node(op_type, inputs, attributes), *shape)


def shaped(node, *shape):
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(FLOAT), ir.Shape(shape)
    return node


def model_of(inputs, nodes, outputs):
    graph = ir.Graph(inputs, outputs, nodes=nodes, opset_imports={"": 21, DOMAIN: 1})
    return ir.Model(graph, ir_version=10)


def assert_left_alone(rewrite, model):
    before = [(node.op_type, list(node.inputs)) for node in model.graph]
    assert rewrite(model.graph, None) == 0
    assert [(node.op_type, list(node.inputs)) for node in model.graph] == before


class Tensors(dict):
    """A source of weights in memory."""

    def shape(self, name):
        return tuple(self[name].shape)

    def tensor(self, name):
        return self[name]
