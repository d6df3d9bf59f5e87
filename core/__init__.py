"""Shared foundation: errors, quant types, GGUF files, inputs and outputs, threads, the cache."""
