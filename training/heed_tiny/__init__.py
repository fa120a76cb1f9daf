"""How the bundled text model `heed-tiny` is made: corpus, tasks, tokenizer, training, export."""
