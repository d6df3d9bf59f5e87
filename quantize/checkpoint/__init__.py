"""Reads model sources: Hub names, checkpoint folders, GGUF files, their tensors, tokenizers and metadata."""
