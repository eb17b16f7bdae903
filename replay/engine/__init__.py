"""A real serving system for a machine without a GPU: llama.cpp's own server on a model made on the spot."""
