"""What every other folder stands on: errors, quant types, GGUF files, inputs and outputs, threads, the cache."""
