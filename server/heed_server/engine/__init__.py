"""The seams in vLLM. Each file owns one and names it in its first line; nothing else imports vLLM's internals."""
