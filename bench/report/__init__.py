"""What a benchmark shows: Markdown, HTML, plots and advice."""
