"""The public API is typed for its users: mypy --strict accepts a right program and refuses a wrong one."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """\
import fastpower
from fastpower.kernels import backends
from fastpower.samplers import PowerSMC

model: fastpower.LanguageModel = fastpower.load()
sampler = fastpower.MetropolisHastings(fastpower.PowerTarget(alpha=4, horizon=256), block=32)
results = fastpower.generate(model, ["What is 7 * 8?", [1, 2, 3]], sampler, seed=1, chains=2)
text: str = max(results, key=lambda result: result.logp).text
rates: list[float | None] = [result.acceptance for result in fastpower.stream(model, "Hello", PowerSMC())]
missing: dict[str, str | None] = backends()
"""


#: Dependencies are left out: only this package's own types are in question, and reading torch's takes a minute.
CONFIG = """\
[mypy]
strict = True
python_version = 3.11
ignore_missing_imports = True
follow_imports = silent
[mypy-torch.*,numpy.*,transformers.*,rich.*,pandas.*,ray.*]
follow_imports = skip
"""


def mypy(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(program)
    (folder / "mypy.ini").write_text(CONFIG)
    command = [sys.executable, "-m", "mypy", f"--config-file={folder}/mypy.ini", f"--cache-dir={folder}/cache"]
    command += ["--no-error-summary", str(folder / "program.py")]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_a_users_program_passes_and_its_mistakes_do_not(tmp_path):
    wrong = PROGRAM + "number: int = results[0].logp\nfastpower.MetropolisHastings(blocks=3)\nfastpower.sample\n"
    done = mypy(wrong, tmp_path)
    found = [line.split(": ", 1)[0].rsplit(":", 1)[1] for line in done.stdout.splitlines() if ": error: " in line]
    assert found == ["11", "12", "13"], done.stdout + done.stderr
