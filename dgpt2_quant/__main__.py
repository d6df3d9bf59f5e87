"""The program: `dgpt2-quant`, and `python -m dgpt2_quant`."""

from dgpt2_quant.cli.signals import exit_on_signals


def main() -> None:
    """Runs the command line; Ctrl-C ends it with status 130 from here on, also while the rest is imported."""
    exit_on_signals()
    from dgpt2_quant.cli.main import main

    main()


if __name__ == "__main__":
    main()
