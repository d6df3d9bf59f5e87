"""The target of a search: the size of the file, bits per weight, or the loss."""

from dataclasses import dataclass

from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.sizes import parse_bytes
from dgpt2_quant.quantize.recipes.tensor_types import Prefer, find_preference


@dataclass(frozen=True)
class Target:
    """One of the bytes of the file, bits per weight, and a mean KL divergence in nats."""

    bytes: int | None = None
    bits_per_weight: float | None = None
    max_kld: float | None = None
    prefer: Prefer | None = None

    @property
    def label(self) -> str:
        """The part after the model's name in the names of its files; it is known before the search."""
        if self.bytes is not None:
            return f"search-{self.bytes / 1e6:g}MB"
        if self.bits_per_weight is not None:
            return f"search-{self.bits_per_weight:g}bpw"
        return f"search-kld{self.max_kld:g}"


def find_target(
    target_size: int | str | None, target_bpw: float | None, max_kld: float | None, prefer: str | None
) -> Target | None:
    """The target that was asked for, or None. Raises `UsageError` for two targets, and for one that is not above 0."""
    size = parse_bytes(target_size) if isinstance(target_size, str) else target_size
    values = {"target_size": size, "target_bpw": target_bpw, "max_kld": max_kld}
    given = {name: value for name, value in values.items() if value is not None}
    if not given:
        return None
    if len(given) > 1:
        names = " and ".join(f"`{name}`" for name in given)
        raise UsageError(f"{names} cannot be combined", "Choose one target.")
    for name, value in given.items():
        if not 0 < value < float("inf"):
            raise UsageError(f"`{name}` must be above 0, not {value}")
    return Target(size, target_bpw, max_kld, find_preference(prefer))
