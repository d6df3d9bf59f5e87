"""How far two importance matrices of one model and text are apart, ours and llama-imatrix's for example.

usage: compare_imatrix.py OURS.gguf THEIRS.gguf

Prints one JSON document: the relative difference of E[x^2], a column at a time, over the matrices that both have. The
same tokens are seen when llama-imatrix is called with `-c 512 -b 512`: with larger batches it leaves out a few.
"""

import argparse
import json

import numpy as np
from dgpt2_quant.quantize.calibration.imatrix_file import read_importance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours")
    parser.add_argument("theirs")
    arguments = parser.parse_args()
    ours, theirs = read_importance(arguments.ours), read_importance(arguments.theirs)
    both = sorted(ours.entries.keys() & theirs.entries.keys())
    differences = np.concatenate(
        [np.abs(ours.entries[n].mean_squares / theirs.entries[n].mean_squares.clip(1e-20) - 1) for n in both]
    )
    document = {
        "matrices": {"both": len(both), "ours": len(ours.entries), "theirs": len(theirs.entries)},
        "tokens": [sorted({entry.count for entry in matrix.entries.values()}) for matrix in (ours, theirs)],
        "columns": differences.size,
        "median": float(np.median(differences)),
        "p99": float(np.percentile(differences, 99)),
        "max": float(differences.max()),
    }
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
