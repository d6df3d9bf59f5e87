"""llama.cpp's C interface: the only folder that calls it."""
