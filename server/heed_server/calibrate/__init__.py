"""`heed calibrate`: sweep heads over a running server, choose, measure on held-out items, write a profile."""
