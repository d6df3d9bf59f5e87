"""Loading a GGUF, decoding, sampling and scoring, over llama.cpp's C interface."""

from .generate import Completion, Generation, Timing
from .model import Model
from .sampling import Sampling

__all__ = ["Completion", "Generation", "Model", "Sampling", "Timing"]
