"""What the edits mean, on dense tensors, written to be read. All else is compared with it."""
