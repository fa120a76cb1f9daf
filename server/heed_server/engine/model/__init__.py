"""What of a loaded model is read or widened: its layers, its image encoder, its rotary tables."""
