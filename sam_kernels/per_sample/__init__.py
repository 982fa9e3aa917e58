"""Norms of the gradient of every sample, in the ordinary backward pass."""
