"""`heed verify`: whether Heed keeps its promises on a model and a machine."""
