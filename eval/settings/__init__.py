"""What a run is asked to do: settings, grids of arms, shipped files, published numbers."""
