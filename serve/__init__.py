"""The HTTP server: OpenAI's, llama.cpp's and Azure ML's shapes over the continuous-batching scheduler."""

from .settings import Limits, Settings

__all__ = ["Limits", "Settings"]
