"""What is measured or changed beside the attention kernels, by the same code on every device."""
