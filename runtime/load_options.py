"""Options of `Model.load`, checked before a model is downloaded, converted or read."""

from typing import Any, Literal, TypedDict

import numpy as np
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.runtime.native.context import KV_TYPES

from .request import check_count, check_flag
from .threads import check_threads


class LoadOptions(TypedDict, total=False):
    """Keyword arguments of `Model.load`, which describes them."""

    ctx_size: int | None
    threads: int | Literal["auto"]
    flash_attention: bool | Literal["auto"]
    kv_type: str
    huge_pages: bool


def check_load_options(
    ctx_size: object = None,
    threads: object = "auto",
    flash_attention: object = "auto",
    kv_type: object = "f16",
    huge_pages: object = True,
) -> dict[str, Any]:
    """The options as Python values. Raises `UsageError` for a value out of range."""
    if ctx_size is not None:
        ctx_size = check_count("ctx_size", ctx_size, 1)
    if not isinstance(kv_type, str) or kv_type not in KV_TYPES:
        raise UsageError(f"`kv_type` must be one of {', '.join(KV_TYPES)}, not {kv_type!r}")
    if isinstance(flash_attention, bool | np.bool_):
        flash_attention = bool(flash_attention)
    elif not (isinstance(flash_attention, str) and flash_attention == "auto"):
        raise UsageError(f'`flash_attention` must be True, False or "auto", not {flash_attention!r}')
    if kv_type == "q8_0" and not flash_attention:
        raise UsageError("`kv_type` q8_0 needs `flash_attention`", "Leave it on, or take f16.")
    return {
        "ctx_size": ctx_size,
        "threads": check_threads(threads),
        "flash_attention": flash_attention,
        "kv_type": kv_type,
        "huge_pages": check_flag("huge_pages", huge_pages),
    }
