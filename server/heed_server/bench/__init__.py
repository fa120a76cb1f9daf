"""`heed bench`: what edited traffic costs on a model and a machine."""
