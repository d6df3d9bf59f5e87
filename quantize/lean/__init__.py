"""The recipe `lean`: the same formats as llama.cpp's, with a smaller error."""
