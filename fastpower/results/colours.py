"""Colours of plots and reports: the same for the same thing in both."""

INK, MUTED, GRID = "#1f2733", "#667085", "#e6e9ef"
GOOD, BAD = "#12805c", "#c4402f"
#: Told apart also in print and by colour-blind readers: neighbours differ in lightness.
COLOURS = ("#2f5fd0", "#d9662b", "#128f76", "#8b48b8", "#a67c00", "#c0396b", "#3d8fb0", "#6b7280")
