"""How far a file is from its reference: perplexity, KL divergence, intervals."""
