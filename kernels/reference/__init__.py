"""The specification: every operator in plain PyTorch, obviously right, float64 inside where it matters."""
