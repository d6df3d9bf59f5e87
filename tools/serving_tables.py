"""Tables of the documents on serving and batch jobs, from `docs/bench/*.json`, which the measuring scripts wrote."""

from dgpt2_quant.bench.report.markdown import markdown_table
from doc_tables import Document, tps


def servers_table(document: Document) -> list[str]:
    """HTTP servers under 1 to 16 streams, by tools/compare_servers.py."""
    rows = [
        [
            count,
            name,
            tps(found["tps"]),
            f"{found['ratio_of_serve']:.2f}",
            "{p50:.0f} / {p99:.0f}".format_map(found["first_token_ms"]),
            "{p50:.1f} / {p99:.1f}".format_map(found["between_tokens_ms"]),
            f"{found['driver_cpu_seconds']:.2f}",
        ]
        for count, contestants in document["streams"].items()
        for name, found in contestants.items()
    ]
    columns = [
        "streams",
        "contestant",
        "tokens/s",
        "`serve` / it",
        "first token, ms",
        "between tokens, ms",
        "driver CPU, s",
    ]
    return markdown_table(columns, rows)


def models_table(document: Document) -> list[str]:
    """Several quant types that stream at once, by tools/time_models.py."""
    ratios = document["ratio"]
    rows = [
        [
            name,
            tps(speed),
            f"{1 / ratios.get(name, 1):.2f}",
            f"{document['between_ms_p99'][name]:.0f}",
        ]
        for name, speed in document["tps"].items()
    ]
    return markdown_table(["served", "tokens/s of all", "ratio to one model", "between tokens, 99 %, ms"], rows)


def disturb_table(document: Document) -> list[str]:
    """Four streams next to one client of each kind, by tools/disturb_server.py."""
    rows = [
        [
            name,
            *(f"{found[key]:.0f}" for key in ("p50", "p99", "max")),
            f"{found['ratio']:.1f}",
            f"{found['requests_per_second']:.3g}",
            f"{found['client_cpu']:.2f}",
        ]
        for name, found in document["between_ms"].items()
    ]
    return markdown_table(["the other client", "50 %", "99 %", "max", "ratio", "requests/s", "clients' CPU"], rows)


def batch_table(*documents: Document) -> list[str]:
    """Batch jobs and other ways to answer the same prompts, by tools/time_batch.py."""
    rows = [
        [f"{document['model']}, {document['lines']} lines", name, tps(speed), f"{document['ratio'].get(name, 1):.2f}"]
        for document in documents
        for name, speed in document["tps"].items()
    ]
    return markdown_table(["model", "contestant", "tokens/s", "`batch` / it"], rows)
