"""What Heed's schedulers do: which rows are in one step, which blocks are shared, freed and found."""
