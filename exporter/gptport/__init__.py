"""gptport: from a GPT checkpoint to a Triton model repository, and the command `gptport`."""
