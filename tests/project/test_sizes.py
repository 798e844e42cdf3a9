"""Small, clear pieces: files, functions and folders that can be read in one sitting."""

from __future__ import annotations

import ast
import subprocess
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST_LINES, MOST_PARAMETERS, MOST_FILES = 400, 10, 12

#: more parameters than others, and why
PARAMETERS = {
    "fastpower/generation.py": "the door that everybody comes through: each is a keyword with a default",
    "fastpower/integrations/transformers.py": "generate's decoding loops are called with what transformers decides",
    "fastpower/integrations/lm_eval.py": "the harness passes its --model_args as parameters",
    "fastpower/decoders/transformers/attention.py": "the sizes that the plan of a step's attention depends on",
    "fastpower/decoders/transformers/compiled.py": "the arguments of a compiled graph are its static tensors",
}
#: more files than others, and why
FOLDERS = {
    "fastpower/kernels": "one file an operator, and what operators share",
    "fastpower/commands": "one file a subcommand, and what subcommands share",
    "fastpower/samplers": "one file a sampler, and what samplers share",
    "fastpower/scheduler": "one file a kind of request, and what a step is made of",
    "fastpower": "the face, the doors, and one file for each word that all wings use",
    "fastpower/decoders/transformers": "what it takes to run somebody else's model: one file a reason",
    "csrc/cpu": "one file an operator that needs no folder, and what all kernels share",
    "csrc/cpu/linear": "one file an instruction set and kind of weight",
    "csrc/cpu/attention": "one file an instruction set",
    "kernels/triton": "one file an operator",
    "kernels/reference": "one file an operator",
}


def tracked(*suffixes: str) -> list[Path]:
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    found = [ROOT / name for name in names.stdout.split("\n") if name.endswith(suffixes)]
    return [path for path in found if path.is_file() and path.parts[len(ROOT.parts)] != "tests"]


def test_no_file_is_longer_than_it_can_be_read():
    code = tracked(".py", ".cpp", ".h", ".inl", ".cu", ".cuh")
    assert code, "not a git checkout"
    long = {str(p.relative_to(ROOT)): n for p in code if (n := len(p.read_text().splitlines())) > MOST_LINES}
    assert not long, long


def test_no_function_takes_more_than_ten_parameters_outside_kernels():
    crowded = {}
    for path in tracked(".py"):
        name = str(path.relative_to(ROOT))
        if not name.startswith("fastpower/") or name.startswith("fastpower/kernels/") or name in PARAMETERS:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = node.args
                count = len(arguments.posonlyargs + arguments.args + arguments.kwonlyargs)
                names = [argument.arg for argument in arguments.posonlyargs + arguments.args][:1]
                if count - (names in (["self"], ["cls"])) > MOST_PARAMETERS:
                    crowded[f"{name}:{node.name}"] = count
    assert not crowded, crowded


def test_no_folder_holds_more_than_a_dozen_files_without_a_reason():
    code = tracked(".py", ".cpp", ".h", ".inl", ".cu", ".cuh")
    folders = Counter(str(path.parent.relative_to(ROOT)) for path in code if path.name != "__init__.py")
    full = {name: n for name, n in folders.items() if n > MOST_FILES and name not in FOLDERS}
    assert not {n: c for n, c in full.items() if n.split("/")[0] in ("fastpower", "csrc", "kernels")}, full
