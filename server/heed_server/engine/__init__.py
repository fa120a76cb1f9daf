"""The seams in vLLM's engine, each named in the first line of its file, and the books that they share."""
