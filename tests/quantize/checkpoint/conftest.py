"""Transformers without PyTorch, as the oracle for tokens."""

import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def auto_tokenizer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "critical")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoTokenizer
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity(logging.CRITICAL)
        yield AutoTokenizer
