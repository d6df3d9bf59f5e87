"""Quality of a file compared with its reference: perplexity, KL divergence, intervals."""
