"""Tensors, their compression and the model's mathematics. No network, no trio."""
