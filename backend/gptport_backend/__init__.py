"""What runs inside Triton as the Python-based backend `gptport`: text in, text out, batched continuously."""

import os

# Since 1.29, onnxruntime's wheels for Linux report each session to their maker, with name and hash of the model.
# A value that is set already stays: 0 lets them.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
