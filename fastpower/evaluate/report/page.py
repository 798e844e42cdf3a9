"""Style and script of the report."""

from __future__ import annotations

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

STYLE = (
    f"\n:root{{color-scheme:light dark;{_names(_LIGHT_NAMES)}}}"
    """
*{box-sizing:border-box}
body{margin:0;background:var(--soft);color:var(--ink);font:15px/1.55 system-ui,"Segoe UI",Roboto,"Helvetica Neue",
"DejaVu Sans",sans-serif}
main{max-width:1240px;margin:0 auto;padding:28px 22px 64px}
h1{margin:0 0 6px;font-size:27px;letter-spacing:-.01em}
h2{margin:0 0 12px;font-size:18px}
section{background:var(--paper);border:1px solid var(--rule);border-radius:10px;padding:18px 20px;margin-top:18px}
.facts{margin:0;color:var(--muted)}
.facts span{display:inline-block;margin-right:18px}
.facts b{font-weight:500;color:var(--ink)}
.note,small{color:var(--muted);font-size:13px}
.note{margin:10px 0 0}
td small{display:block;font-weight:400;white-space:normal;max-width:250px;line-height:1.35}
.scroll{overflow-x:auto}
.scroll+.scroll{margin-top:18px}
.scroll+.scroll table{width:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:13.5px}
th{font-weight:500;color:var(--muted);text-align:right;padding:6px 9px;border-bottom:1px solid var(--rule);
white-space:nowrap}
td{text-align:right;padding:7px 9px;border-bottom:1px solid var(--rule);white-space:nowrap}
th:first-child,td:first-child{text-align:left;padding-left:2px;font-weight:600}
tbody tr:last-child td{border-bottom:0}
.key{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:7px}
.figures,div.figures{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:14px 26px}
figure{margin:0;min-width:0}
figcaption{font-weight:600;font-size:14px;margin-bottom:4px}
.legend{grid-column:1/-1;margin:0;color:var(--muted);font-size:13px}
.legend span{display:inline-block;margin-right:18px}
article>figure{margin:16px 0}
svg{display:block;width:100%;height:auto}
svg text{font-family:inherit;font-size:12px}
svg .tick{fill:var(--muted);font-size:11px;font-variant-numeric:tabular-nums}
svg .axis{fill:var(--muted)}
svg .label{font-weight:600;paint-order:stroke;stroke:var(--paper);stroke-width:3px}
.picker{display:flex;flex-wrap:wrap;gap:10px 24px;align-items:center;margin-bottom:14px;color:var(--muted)}
.picker label{display:inline-flex;align-items:center;gap:7px;min-width:0}
select{font:inherit;padding:4px 8px;border:1px solid var(--rule);border-radius:7px;background:var(--paper);
color:var(--ink);max-width:min(440px,100%);min-width:0}
.scale i{display:inline-block;width:18px;height:12px;border:1px solid var(--rule);border-width:1px 0}
.question{white-space:pre-wrap;margin:0 0 8px;padding:10px 14px;background:var(--soft);border-radius:8px}
.reference{margin:0 0 10px}
code{font:13px/1.5 ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace;background:var(--soft);padding:1px 5px;
border-radius:4px;white-space:pre-wrap;overflow-wrap:anywhere}
nav{display:flex;flex-wrap:wrap;gap:6px;margin-bottom:14px;border-bottom:1px solid var(--rule)}
button{font:inherit;background:none;border:0;border-bottom:2px solid transparent;padding:6px 10px;color:var(--muted);
cursor:pointer}
button.on{color:var(--ink);border-color:var(--ink);font-weight:600}
.verdict{margin:0 0 10px}
.verdict span{color:var(--muted);margin-left:12px;font-size:14px}
.right{color:var(--good)}.wrong{color:var(--bad)}
.answer{white-space:pre-wrap;overflow-wrap:anywhere;font:13.5px/1.75 ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,
monospace;border:1px solid var(--rule);border-radius:8px;padding:10px 14px;max-height:420px;overflow-y:auto}
.answer span{border-radius:2px;padding:1px 0}
.answer span:hover{outline:1.5px solid var(--ink)}
.answer em{color:var(--muted);font-size:12px}
.dot{display:inline-block;width:9px;height:9px;border-radius:50%}
.yes{background:var(--good)}.no{border:1.6px solid var(--bad)}
figcaption{color:var(--ink)}
[hidden]{display:none}
.warning{margin:0 0 12px;padding:8px 12px;border-left:3px solid var(--bad);background:var(--soft);font-size:14px}
@media(max-width:820px){.figures,div.figures{grid-template-columns:minmax(0,1fr)}}
@media(max-width:560px){main{padding:14px 8px 40px}section{padding:12px 10px}h1{font-size:22px}
td:first-child{white-space:normal;overflow-wrap:anywhere;min-width:120px}
figure{overflow-x:auto}figure svg{min-width:430px}article>figure svg{min-width:640px}
.verdict span{display:block;margin:4px 0 0}.picker label{flex-wrap:wrap}}
@media print{body{background:#fff}section{break-inside:avoid}}
"""
    + _heat(HEAT, "#fff")
    + f"@media screen and (prefers-color-scheme:dark){{:root{{{_names(_DARK_NAMES)}}}"
    + _DARK_MARKS
    + _heat(HEAT_DARK, "#171c24")
    + "}"
)

# No ampersand and no less-than sign: the page stays well-formed XML.
SCRIPT = """
document.body.classList.add("by-entropy");
const each = (what, act) => document.querySelectorAll(what).forEach(act);
const show = (problem, tab) => {
  each(".problem", p => { p.hidden = p.dataset.problem !== String(problem); });
  each("article", a => { a.hidden = a.dataset.card !== problem + "-" + tab; });
  each("nav button", b => b.classList.toggle("on", b.dataset.tab === problem + "-" + tab));
};
each("nav button", b => b.addEventListener("click", () => show(...b.dataset.tab.split("-"))));
const picker = document.getElementById("problem");
if (picker) {
  const methods = () => document.querySelectorAll('[data-problem="' + picker.value + '"] nav button').length;
  picker.addEventListener("change", () => show(picker.value, methods() - 1));
  document.getElementById("colour").addEventListener("change", e => {
    document.body.className = "by-" + e.target.value;
  });
  show(0, methods() - 1);
}
"""
