"""An endpoint as OpenAI's, in front of a Triton that serves what gptport exported."""

from gptport_gateway.app import application
from gptport_gateway.keys import Keys
from gptport_gateway.serve import serve

__all__ = ["Keys", "application", "serve"]
