"""What runs inside Triton as the Python-based backend `gptport`: text in, text out, batched continuously."""
