"""Where the characters of a prompt lie among its tokens, for each kind of tokenizer."""
