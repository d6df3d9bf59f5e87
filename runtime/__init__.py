"""Loading a GGUF, decoding, sampling and scoring, over llama.cpp's C interface."""

from .classifier import Classification, LabelScore, Span
from .completion import Completion, Event, Timing, TokenLogprob
from .decode_loop import Totals
from .generation import Batch, Generation
from .load_options import LoadOptions
from .model import Model
from .pipeline import TextGenerationPipeline, pipeline, set_seed
from .request import Options
from .request_handle import RequestHandle
from .sampling.settings import Sampling
from .scheduler import Scheduler, Stats
from .scoring import ContinuationScore

__all__ = [
    "Batch",
    "Classification",
    "Completion",
    "ContinuationScore",
    "Event",
    "Generation",
    "LabelScore",
    "LoadOptions",
    "Model",
    "Options",
    "RequestHandle",
    "Sampling",
    "Scheduler",
    "Span",
    "Stats",
    "TextGenerationPipeline",
    "Timing",
    "TokenLogprob",
    "Totals",
    "pipeline",
    "set_seed",
]
