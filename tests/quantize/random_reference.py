"""A random GPT-2 of any size as a NumPy `Reference`, without a file."""

import numpy as np
from dgpt2_quant.core.hyperparameters import Hyperparameters
from dgpt2_quant.quantize.calibration.numpy_gpt2 import Reference


def random_reference(
    *,
    layers: int = 2,
    width: int = 16,
    heads: int = 2,
    inner: int = 24,
    context: int = 12,
    vocabulary: int = 20,
    tied: bool = True,
    spread: float = 0.3,
    dtype: type[np.floating] = np.float64,
) -> Reference:
    """Equal arguments give equal weights, with standard deviation `spread`."""
    sizes = Hyperparameters(layers, width, heads, inner, context, vocabulary, 1e-5)
    random = np.random.default_rng(0)
    weights = {
        name: (random.normal(1.0 if name.endswith("norm.weight") else 0.0, spread, shape)).astype(dtype)
        for name, shape in sizes.shapes(tied=tied).items()
    }
    return Reference(sizes, weights)
