"""Arguments that several subcommands share: the model, the sampler, the machine."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastpower.models.prompts import TODAY

if TYPE_CHECKING:
    from fastpower.chains.chain import Sampler
    from fastpower.language_model import LanguageModel


def add_model_arguments(parser: argparse.ArgumentParser, *, max_rows: int = 64) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="PATH_OR_NAME",
        help="local folder, .gguf file, hub id, or a packaged model: smollm2-135m-instruct (default), gemma3-270m",
    )
    group.add_argument(
        "--dtype",
        help="weights (K/V if those are quantised): float32 (default on the CPU), bfloat16 (on a GPU), float16, auto",
    )
    group.add_argument(
        "--weights",
        choices=["q8", "q4"],
        help="round the weights of a checkpoint to 8 or 4 bits, on the CPU (a GGUF file keeps its own); "
        "--dtype is then that of K/V",
    )
    group.add_argument(
        "--draft",
        metavar="PATH_OR_NAME",
        help="a smaller model of the same tokenizer that guesses the next tokens; answers stay the same",
    )
    group.add_argument(
        "--device",
        default="auto",
        help="auto (default): a GPU if there is one, else the CPU; or cpu, cuda:1, …",
    )
    group.add_argument(
        "--graphs",
        choices=["auto", "on", "off"],
        default="auto",
        help="decode steps as CUDA graphs: auto (default) on a GPU for the models that can; off runs them eagerly",
    )
    group.add_argument("--raw", action="store_true", help="take prompts as plain text, without the chat template")
    group.add_argument(
        "--today", metavar="DATE", default=TODAY, help=f"date that a chat template may write (default {TODAY}, any day)"
    )
    group.add_argument("--cache-tokens", type=int, metavar="N", help="tokens of K/V kept (default: by free memory)")
    group.add_argument(
        "--max-rows", type=int, default=max_rows, metavar="N", help=f"rows of one decode batch (default {max_rows})"
    )
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")


def add_sampler_arguments(
    parser: argparse.ArgumentParser,
    *,
    method: bool = True,
    task_defaults: bool = False,
    max_new_tokens: int = 512,
    stop: bool = True,
) -> None:
    """Flags of a sampler.

    Args:
        parser: Gets them.
        method: Whether there is --method.
        task_defaults: Alpha and the horizon are None unless given, and their help says that the task decides.
        max_new_tokens: The default otherwise.
        stop: Whether there is --stop.
    """
    group = parser.add_argument_group("sampler")
    if method:
        group.add_argument("--method", default="mh", help="mh (default), plain, …, or with settings: mh(moves=4)")
    alpha, horizon = (None, None) if task_defaults else (4.0, max_new_tokens)
    says = ["the task's" if value is None else f"{value:g}" for value in (alpha, horizon)]
    group.add_argument("--alpha", type=float, default=alpha, help=f"exponent of p^alpha (default {says[0]})")
    group.add_argument(
        "--max-new-tokens",
        type=int,
        default=horizon,
        metavar="T",
        help=f"horizon, part of the target (default {says[1]})",
    )
    group.add_argument("--block", type=int, metavar="B", help="tokens per stage (default T/16)")
    group.add_argument("--moves", type=int, metavar="N", help="moves per stage (default 10)")
    if stop:
        add_stop(group)
    group.add_argument("--seed", type=int, default=0, help="same seed, same answer (default 0)")


def add_stop(group: Any) -> None:
    """Give a group of arguments ``--stop``."""
    group.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        type=unescaped,
        help=r"end an answer at this text, which is not shown; may be given again; \n, \t and \\ are understood",
    )


def unescaped(text: str) -> str:
    r"""What a shell makes hard to type: ``\n`` is a new line, ``\t`` a tab, ``\\`` a backslash."""
    return re.sub(r"\\([nt\\])", lambda found: {"n": "\n", "t": "\t"}.get(found[1], found[1]), text)


def add_preset(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` a ``--preset`` flag: a paper's settings become the defaults, which other flags replace."""
    from fastpower.commands.presets import PRESETS, preset

    parser.add_argument(
        "--preset", choices=sorted(PRESETS), help="a paper's method and settings; other flags replace single ones"
    )
    parse = parser.parse_known_args

    def parse_known_args(args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        given = list(args or [])
        name = flag_value(given, "--preset")
        if name in PRESETS:
            chosen = preset(name)
            shared = {"method": chosen.method, "alpha": chosen.alpha, "max_new_tokens": chosen.max_new_tokens}
            parser.set_defaults(**shared, **{k: v for k, v in chosen.settings.items() if k in ("block", "moves")})
        return parse(args, namespace)

    parser.parse_known_args = parse_known_args  # type: ignore[method-assign, assignment]


def flag_value(args: Sequence[str], flag: str) -> str | None:
    """What is given for a flag, before anything is parsed."""
    for i, arg in enumerate(args):
        if arg == "--":
            return None
        if arg == flag and i + 1 < len(args):
            return args[i + 1]
        if arg.startswith(flag + "="):
            return arg.partition("=")[2]
    return None


def load_from(args: argparse.Namespace) -> LanguageModel:
    """The model that the arguments describe."""
    from fastpower.language_model import load
    from fastpower.measure.machine import set_threads

    set_threads(args.threads)
    return load(
        args.model,
        dtype=args.dtype,
        weights=args.weights,
        device=args.device,
        draft=args.draft,
        chat=False if args.raw else None,
        today=args.today,
        cache_tokens=args.cache_tokens,
        decoder_options=None if args.graphs == "auto" else {"graphs": args.graphs == "on"},
    )


def dtype_of(args: argparse.Namespace) -> str:
    """The numbers that the arguments mean."""
    from fastpower.language_model import placed

    return str(args.dtype or placed(args.model, None, args.device, weights=args.weights)[0])


def model_facts(args: argparse.Namespace) -> dict[str, Any]:
    """What identifies the model in a run folder: other numbers of it would be another model's."""
    facts = {"name": args.model or "default", "dtype": dtype_of(args), "raw": args.raw, "today": args.today}
    return facts | ({"weights": args.weights} if args.weights else {})


def sampler_from(args: argparse.Namespace, method: str | None = None) -> Sampler:
    """The sampler that the arguments describe."""
    from fastpower.commands.presets import PRESETS
    from fastpower.samplers.methods import parse_methods, sampler_named
    from fastpower.samplers.retarget import retargeted

    spec = method or args.method
    settings = {name: value for name in ("block", "moves") if (value := getattr(args, name)) is not None}
    if getattr(args, "preset", None) and PRESETS[args.preset].method == parse_methods(spec)[0].name:
        settings = {**PRESETS[args.preset].settings, **settings}
    sampler = sampler_named(spec, alpha=args.alpha, max_new_tokens=args.max_new_tokens, **settings)
    return retargeted(sampler, stop=args.stop) if args.stop else sampler
