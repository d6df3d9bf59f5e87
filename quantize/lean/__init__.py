"""The recipe `lean`: llama.cpp's tensor types with smaller quantization errors."""
