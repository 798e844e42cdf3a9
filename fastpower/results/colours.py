"""Colours of plots and reports: the same for the same thing in both."""

INK, MUTED, GRID, FAINT, PAPER = "#1f2733", "#667085", "#e6e9ef", "#b8c0cc", "#ffffff"
GOOD, BAD = "#12805c", "#c4402f"
#: Told apart also in print and by colour-blind readers: neighbours differ in lightness.
COLOURS = ("#2f5fd0", "#d9662b", "#128f76", "#8b48b8", "#a67c00", "#c0396b", "#3d8fb0", "#6b7280")
#: What stands for each on a dark page. A colour of its own for every one: the report's style maps them one by one.
DARK = {
    INK: "#e4e8ef", MUTED: "#98a2b3", GRID: "#2c3440", FAINT: "#4a5568", PAPER: "#171c24",
    GOOD: "#3fc190", BAD: "#f2836f",
} | dict(
    zip(COLOURS, ("#7ea2ff", "#f59a63", "#45c9ac", "#c592ea", "#d9b13a", "#f07ba3", "#74c3e3", "#a3abb8"), strict=True)
)  # fmt: skip
