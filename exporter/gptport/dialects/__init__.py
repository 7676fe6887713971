"""Dialects: which operators a traced GPT becomes. A dialect is a tuple of passes that leaves nothing of domain `gptport`."""
