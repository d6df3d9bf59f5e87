"""Loading a GGUF, decoding, sampling and scoring, over llama.cpp's C interface."""

from .draft import Completion, Timing, TokenLogprob
from .generation import Batch, Generation
from .model import Model
from .request import Options
from .sampling import Sampling

__all__ = ["Batch", "Completion", "Generation", "Model", "Options", "Sampling", "Timing", "TokenLogprob"]
