"""The report's colours as rules of its style, light and dark."""

from __future__ import annotations

from markupsafe import Markup

from fastpower.results.colours import BAD, DARK, GOOD, INK, MUTED, PAPER

_LIGHT_NAMES = {
    "ink": INK,
    "muted": MUTED,
    "rule": "#e3e7ee",
    "paper": PAPER,
    "soft": "#f6f7fa",
    "good": GOOD,
    "bad": BAD,
}
_DARK_NAMES = {name: DARK.get(colour, "") for name, colour in _LIGHT_NAMES.items()} | {
    "rule": "#2c3440",
    "soft": "#0f131a",
}


def _names(colours: dict[str, str]) -> str:
    return "".join(f"--{name}:{colour};" for name, colour in colours.items())


#: Ten steps from paper to deep orange; step i stands for i/3 … (i+1)/3 nats.
HEAT = (
    "#ffffff", "#fff4e2", "#ffe8c4", "#ffdaa3", "#ffc980", "#ffb45f", "#fb9b45", "#f17f33", "#e2632a", "#cf4a26",
)  # fmt: skip

#: The same on a dark page: from its paper to a bright orange that carries dark text.
HEAT_DARK = (
    "#171c24", "#2c2520", "#412e1d", "#57371c", "#6f411d", "#894d20", "#a65b26", "#c46b2d", "#e07f3a", "#f6984f",
)  # fmt: skip


def _heat(colours: tuple[str, ...], strong: str) -> str:
    return "".join(
        f".by-entropy .e{i},.by-surprise .s{i},.l{i}{{background:{colour}{f';color:{strong}' if i > 7 else ''}}}"
        for i, colour in enumerate(colours)
    )


#: Charts and keys name their colours in attributes, which any rule of the style outranks.
_DARK_MARKS = "".join(
    f'[fill="{light}"]{{fill:{dark}}}[stroke="{light}"]{{stroke:{dark}}}.key[style*="{light}"]{{background:{dark}!important}}'
    for light, dark in DARK.items()
)


def light() -> Markup:
    """Names and heat map of a light page, which are those of a printed one."""
    return Markup(f":root{{color-scheme:light dark;{_names(_LIGHT_NAMES)}}}{_heat(HEAT, '#fff')}")


def dark() -> Markup:
    """The same for a dark page, and another colour for every one that charts and keys use."""
    return Markup(f":root{{{_names(_DARK_NAMES)}}}{_DARK_MARKS}{_heat(HEAT_DARK, '#171c24')}")
