"""Times what a user waits for: `--help`, and `run` to its first token on a converted DistilGPT2-size Q4_0 file.

usage: time_startup.py [--rounds N]

Process start included. The two take turns; `run` is timed until stdout has more than the prompt, once with the model
named as a folder (found in the cache by its remembered hash) and once as a file. The last line is JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT = "Once upon a time"
TOOL = str(Path(sys.executable).with_name("dgpt2-quant"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["DGPT2_QUANT_CACHE"] = f"{scratch}/cache"
        folder, file = f"{scratch}/distilgpt2", f"{scratch}/distilgpt2.Q4_0.gguf"
        subprocess.run([sys.executable, Path(__file__).with_name("random_distilgpt2.py"), folder], check=True)
        subprocess.run([TOOL, "convert", folder, "-t", "q4_0", "-o", file], check=True, stdout=subprocess.DEVNULL)
        contestants = {
            "help": [TOOL, "--help"],
            "run_cached_checkpoint": [TOOL, "run", PROMPT, "-m", folder, "-t", "q4_0", "-n", "1", "--seed", "1"],
            "run_file": [TOOL, "run", PROMPT, "-m", file, "-n", "1", "--seed", "1"],
        }
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for number in range(rounds + 1):
            for name, command in contestants.items():
                seconds = first_output(command, 0 if name == "help" else len(PROMPT))
                if number:  # the first converts, and warms the page cache
                    times[name].append(seconds)
        result = {
            name: {"median": round(statistics.median(t), 3), "min": round(min(t), 3), "max": round(max(t), 3)}
            for name, t in times.items()
        }
        print(json.dumps({"seconds": result, "rounds": rounds, "loadavg": os.getloadavg()}))


def first_output(command: list[str], after: int) -> float:
    """Seconds from starting the process to its output's byte number `after`."""
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0) as child:
        assert child.stdout
        got = 0
        while got <= after:
            data = child.stdout.read(4096)
            if not data:
                raise SystemExit(f"{' '.join(command)} wrote only {got} bytes")
            got += len(data)
        seconds = time.monotonic() - started
        child.stdout.read()
    return seconds


if __name__ == "__main__":
    main()
