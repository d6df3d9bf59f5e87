"""The report of a benchmark: Markdown, HTML, plots and advice."""
