"""One request: its body, prompts and limits, the texts that it generates, and how they are sent."""
