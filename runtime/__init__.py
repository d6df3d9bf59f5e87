"""Loading a GGUF, decoding, sampling and scoring, over llama.cpp's C interface."""

from dgpt2_quant.runtime.sampling.settings import Sampling

from .generation import Batch, Generation
from .model import Model
from .pipeline import TextGenerationPipeline, pipeline, set_seed
from .request import Options
from .request_handle import Event, Ticket
from .scheduler import Scheduler, Stats
from .sequence import Completion, Timing, TokenLogprob

__all__ = [
    "Batch",
    "Completion",
    "Event",
    "Generation",
    "Model",
    "Options",
    "Sampling",
    "Scheduler",
    "Stats",
    "TextGenerationPipeline",
    "Ticket",
    "Timing",
    "TokenLogprob",
    "pipeline",
    "set_seed",
]
