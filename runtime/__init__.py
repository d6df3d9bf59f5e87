"""Loading a GGUF, decoding, sampling and scoring, over llama.cpp's C interface."""

from .draft import Completion, Timing, TokenLogprob
from .generation import Batch, Generation
from .model import Model
from .pipeline import TextGenerationPipeline, pipeline, set_seed
from .request import Options
from .sampling import Sampling
from .scheduler import Scheduler, Stats
from .ticket import Event, Ticket

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
