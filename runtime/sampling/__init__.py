"""Sampling of the next token: settings, candidates, grammars, and the chain of llama.cpp's samplers."""
