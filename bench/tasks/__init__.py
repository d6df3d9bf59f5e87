"""What a model is good for: LAMBADA, CBT, CrowS-Pairs, texts and prompts."""
