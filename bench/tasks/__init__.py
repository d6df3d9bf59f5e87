"""Tasks: LAMBADA, CBT, CrowS-Pairs, texts and prompts."""
