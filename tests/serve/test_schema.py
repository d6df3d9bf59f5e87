"""The OpenAPI document is true: what schemathesis makes of it is answered as it says, and never with a 5xx."""

import subprocess
import sys
from pathlib import Path

import pytest
from dgpt2_quant.serve.calls.models import file_to_serve
from dgpt2_quant.serve.calls.settings import Limits, Settings

from .conftest import running

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,unsupported_method"
)


@pytest.mark.slow
def test_schemathesis_finds_nothing(storybook_files: dict[str, Path], tmp_path: Path) -> None:
    settings = Settings(port=0, limits=Limits(tokens=8, request_seconds=1))  # a measurement takes longer
    with running([file_to_serve(storybook_files["Q4_0"])], settings, queue=64) as served:
        command = [Path(sys.executable).with_name("schemathesis"), "run"]
        options = ["--checks", CHECKS, "-n", "25", "--request-timeout", "30", "--seed", "1"]
        address = f"http://127.0.0.1:{served.port}/openapi.json"
        result = subprocess.run(
            [*command, address, *options], cwd=tmp_path, capture_output=True, text=True, check=False
        )
    assert result.returncode == 0, result.stdout[-5000:]
