"""``bench/studies/results/*.json`` → tables and pictures of the documentation.

python -m bench.studies.draw            write them
python -m bench.studies.draw --check    exit with 1 where the documentation says something else

A table stands in a page between ``<!-- study: NAME TABLE -->`` and ``<!-- end of study -->``; what stands there is
replaced. Pictures are ``docs/images/study_*.svg``.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from bench.studies import pictures, tables
from bench.studies.findings import findings, mixing
from bench.studies.study import RESULTS, Study

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/results.md")
BLOCK = re.compile(r"(<!-- study: (\w+) (\w+) -->\n).*?(<!-- end of study -->)", re.DOTALL)

TABLES: dict[str, Callable[[Study], str]] = {
    "findings": findings,
    "mixing": mixing,
    "facts": tables.facts_line,
    "methods": tables.methods_table,
    "short": tables.short_table,
    "passes": tables.pass_table,
    "alphas": tables.alpha_table,
    "pairs": tables.right_and_wrong_table,
    "entropy": tables.entropy_table,
    "moves": tables.moves_table,
    "horizons": tables.horizon_table,
    "seconds": tables.seconds_table,
}


def page(text: str) -> str:
    """A page with its tables drawn anew. Raises KeyError for an unknown table, FileNotFoundError for a study."""
    return BLOCK.sub(lambda m: f"{m[1]}\n{TABLES[m[3]](Study.load(m[2]))}\n\n{m[4]}", text)


def images() -> dict[str, str]:
    """Name of the file → SVG, of every study that is there."""
    found = {}
    for file in sorted(RESULTS.glob("*.json")):
        study = Study.load(file.stem)
        if len(study.methods) >= 2:
            study = study.common()
            cost, logp = pictures.cost_chart(study), pictures.logp_chart(study)
            found[f"study_{file.stem}.svg"] = pictures.frame(
                [("Accuracy against cost", cost), ("Accuracy against log p", logp)]
            )
        if study.extra.get("long"):
            found[f"study_{file.stem}.svg"] = pictures.frame(pictures.long_charts(study))
        for i, example in enumerate(study.extra.get("examples", []), 1):
            found[f"study_{file.stem}_answer{i}.svg"] = pictures.heat_map(example)
    return found


def drawn() -> dict[Path, str]:
    """Every file that this makes, and what has to be in it."""
    pages = {ROOT / name: page((ROOT / name).read_text(encoding="utf-8")) for name in PAGES}
    return pages | {ROOT / "docs/images" / name: svg for name, svg in images().items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    stale = [p for p, text in drawn().items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    for path in stale:
        print(path.relative_to(ROOT))
        if not args.check:
            path.write_text(drawn()[path], encoding="utf-8")
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
