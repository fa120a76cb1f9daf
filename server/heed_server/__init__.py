"""Heed: a vLLM server on which every request can edit the model's attention while it runs."""
