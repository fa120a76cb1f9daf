"""A step in a worker: vLLM's model runners, and the attention that they call."""
