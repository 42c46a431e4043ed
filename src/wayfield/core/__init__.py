"""Floor 0: paths, predictions, grids, noise, exact answers. Imports torch and the standard library only."""
