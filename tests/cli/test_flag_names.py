"""Messages name what the reader typed: flags on the command line, keyword arguments in the library."""

import pytest
from dgpt2_quant.cli.flag_names import in_flags, use_flags_of
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.quantize.convert import convert

from .program import run_text as dgpt2


def test_the_library_names_keywords_and_the_command_line_flags() -> None:
    with pytest.raises(UsageError) as refused:
        convert("storybook", type="q8_0", prefer="speed")
    assert "`prefer`" in refused.value.message
    done = dgpt2("convert", "storybook", "-t", "q8_0", "--prefer", "speed")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--prefer" in done.stderr
    assert "`" not in done.stderr


def test_other_names_are_unchanged() -> None:
    use_flags_of([])
    assert in_flags("`target_size` and `dgpt2-quant imatrix`") == "`target_size` and `dgpt2-quant imatrix`"
