"""`dgpt2-quant types`: lists the quant types. (Not types.py, which is a module of the standard library.)"""

from .options import JsonOption
from .output import print_json, print_table


def types(json: JsonOption = False) -> None:
    """List the quant types.

    Bits per weight are nominal: those of a large model.
    """
    from dgpt2_quant.core.quant_types import QUANT_TYPES

    if json:
        print_json(
            [
                {
                    "type": t.name,
                    "aliases": list(t.aliases),
                    "bits_per_weight": t.bits_per_weight,
                    "needs_imatrix": t.needs_imatrix,
                    "description": t.description,
                    "ci": t.ci,
                }
                for t in QUANT_TYPES.values()
            ]
        )
        return
    rows = [
        [
            t.name.lower(),
            " ".join(t.aliases),
            f"{t.bits_per_weight:g}",
            "needed" if t.needs_imatrix else "",
            t.description,
        ]
        for t in QUANT_TYPES.values()
    ]
    print_table(["type", "alias", "bits/weight", "imatrix", "description"], rows)
