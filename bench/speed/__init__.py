"""How fast a file runs: rounds of timings, memory, energy, peers."""
