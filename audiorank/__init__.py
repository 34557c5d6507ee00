"""Scaling laws for audio representations, by the rank of embeddings."""
