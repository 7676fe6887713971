"""The client library: generate text on a Triton that serves a model which gptport exported."""
