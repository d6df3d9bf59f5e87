"""Checkpoints in, GGUF files out: quant types, recipes, and llama.cpp's block quantizers."""
