"""What a worker keeps of the requests in its batch, and what a device has to give for it."""
