"""The names of the steps of `lean`."""

import pytest
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.quantize.recipes.lean_steps import STEPS, Steps, steps_without


def test_all_steps_are_on_until_left_out() -> None:
    assert Steps().left_out == ()
    assert steps_without(["sweeps", "padding", "sweeps"]).left_out == ("padding", "sweeps")
    assert steps_without(STEPS).left_out == STEPS


@pytest.mark.parametrize("name", ["", "Sweeps", "left_out", "sweeps "])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"`without` must be padding, centring, scaling, .*, not {name!r}"):
        steps_without(["sweeps", name])
