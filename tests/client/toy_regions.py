"""Triton's shared memory extensions for the toy, and its step model whose caches are inputs and outputs.

A position of each row of its cache is the token there, so that a row that was not carried along gives other logits.
"""

# ruff: noqa: ARG002, N802 - the methods are those of Triton's service
from __future__ import annotations

import grpc
import numpy as np
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.grpc import service_pb2

TENSORS = (("past_key_values.0.key", "present.0.key"), ("past_key_values.0.value", "present.0.value"))
HEADS, HEAD_DIM = 2, 3


class ToyRegions:
    """The regions that were registered, by name."""

    def __init__(self) -> None:
        self.mapped: dict[str, np.ndarray] = {}
        self.refusal = ""  # of what is registered
        self.in_use = 0  # so often, unregistering is refused
        self.gpu: int | None = None  # the number of the one that toy_kv runs on
        self.cuda = None  # the ToyCuda of this machine

    def SystemSharedMemoryRegister(self, request, context):
        if self.refusal:
            context.abort(grpc.StatusCode.INTERNAL, self.refusal)
        assert request.name not in self.mapped
        self.mapped[request.name] = np.memmap(f"/dev/shm{request.key}", np.uint8, "r+")
        assert self.mapped[request.name].nbytes == request.byte_size
        return service_pb2.SystemSharedMemoryRegisterResponse()

    def SystemSharedMemoryStatus(self, request, context):
        response = service_pb2.SystemSharedMemoryStatusResponse()
        for name in self.mapped:
            response.regions[name].name = name
        return response

    def SystemSharedMemoryUnregister(self, request, context):
        if self.in_use:
            self.in_use -= 1
            context.abort(
                grpc.StatusCode.INTERNAL, f"Cannot unregister '{request.name}', it is currently in use."
            )
        self.mapped.pop(request.name, None)
        return service_pb2.SystemSharedMemoryUnregisterResponse()

    def CudaSharedMemoryRegister(self, request, context):
        if self.refusal:
            context.abort(grpc.StatusCode.INTERNAL, self.refusal)
        assert request.device_id == self.gpu
        self.mapped[request.name] = self.cuda.opened(request.raw_handle)
        assert self.mapped[request.name].nbytes == request.byte_size
        return service_pb2.CudaSharedMemoryRegisterResponse()

    def CudaSharedMemoryStatus(self, request, context):
        response = service_pb2.CudaSharedMemoryStatusResponse()
        for name in self.mapped:
            response.regions[name].name = name
        return response

    def CudaSharedMemoryUnregister(self, request, context):
        memory = self.mapped.get(request.name)
        self.SystemSharedMemoryUnregister(request, context)
        if memory is not None:
            self.cuda.closed(memory)
        return service_pb2.CudaSharedMemoryUnregisterResponse()

    def describe(self, config) -> None:
        """Add the caches to the configuration of the model."""
        if self.gpu is not None:
            config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_GPU, gpus=[self.gpu], count=1)
        for past, present in TENSORS:
            for tensors, name in ((config.input, past), (config.output, present)):
                tensors.add(name=name, data_type=pb.TYPE_FP32, dims=[HEADS, -1, HEAD_DIM])

    def append(self, request, context, ids: list[int], past: int) -> list[int]:
        """Write the tokens into the request's cache, behind `past` others; all of them."""
        whole: set[tuple[int, ...]] = set()
        outputs = {tensor.name: place(tensor) for tensor in request.outputs if tensor.parameters}
        for tensor in request.inputs:
            if not tensor.parameters:
                continue
            region, offset, size = place(tensor)
            assert outputs.pop(dict(TENSORS)[tensor.name]) == (region, offset, size)
            if region not in self.mapped:
                text = f"Unable to find shared memory region: '{region}'"
                context.abort(grpc.StatusCode.NOT_FOUND, text)
            assert list(tensor.shape)[:2] == [1, HEADS]
            cache = self.mapped[region][offset : offset + size].view(np.float32).reshape(tensor.shape)
            cache[:, :, past : past + len(ids)] = np.array(ids)[:, None]
            rows = cache[0, :, : past + len(ids)].transpose(0, 2, 1).reshape(-1, past + len(ids))
            whole |= set(map(tuple, rows.astype(int).tolist()))
        assert not outputs
        assert len(whole) == 1, whole
        return list(whole.pop())


def place(tensor) -> tuple[str, int, int]:
    """Where a tensor is: region, offset, bytes."""
    parameters = tensor.parameters
    return (
        parameters["shared_memory_region"].string_param,
        parameters["shared_memory_offset"].int64_param,
        parameters["shared_memory_byte_size"].int64_param,
    )
