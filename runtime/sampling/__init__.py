"""Which token comes next: settings, candidates, grammars, and the chain of llama.cpp's samplers."""
