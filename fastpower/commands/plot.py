"""``fastpower plot``: a run folder as an HTML report and, with matplotlib, as image files."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "plot",
        help="draw a run folder",
        description="Write RUN/report.html and, where matplotlib is installed, image files into RUN/plots.",
    )
    parser.add_argument("path", metavar="RUN", help="run folder of fastpower eval")
    parser.add_argument("--folder", metavar="PATH", help="where the images go (default RUN/plots)")
    parser.add_argument("--format", default="png", help="png (default), svg, pdf; several with commas")
    parser.add_argument("--skip-bad-lines", action="store_true", help="leave damaged lines of the run out")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from fastpower.evaluate.report import write_report
    from fastpower.evaluate.runs import check_writable, read_config, read_records
    from fastpower.evaluate.summary import summarise

    formats = [name.strip() for name in args.format.split(",")]
    for name in formats:
        if name not in ("png", "svg", "pdf"):
            raise ValueError(f"--format {name!r} is not one of png, svg, pdf")
    config = read_config(args.path)["config"]
    records = read_records(args.path, timings=True, answers=True, skip_bad_lines=args.skip_bad_lines)
    if not records:
        raise ValueError(f"{args.path!r} holds no finished record yet")
    check_writable(args.path)
    rows = summarise(records, chains=config.get("chains"), match_best_of_n=bool(config.get("match_best_of_n")))
    print(write_report(args.path, records, rows))
    if importlib.util.find_spec("matplotlib") is None:
        print("no images: matplotlib is not installed (pip install '.[plots]' in fastpower's checkout)")
        return 0
    from fastpower.evaluate.report.plots import plot_run

    for file in plot_run(Path(args.path), args.folder, formats):
        print(file)
    return 0
