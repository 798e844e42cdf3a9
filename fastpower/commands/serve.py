"""``fastpower serve``: an OpenAI-compatible server."""

from __future__ import annotations

import argparse
import os
import sys

from fastpower.commands.configuration import add_config
from fastpower.commands.options import add_model_arguments, load_from

EPILOG = """\
examples:
  fastpower serve                                         the packaged model on http://127.0.0.1:8000/v1
  fastpower serve --model model.gguf --dtype bfloat16 --max-rows 32
  FASTPOWER_API_KEY=secret fastpower serve --host 0.0.0.0

  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{"model": "mh", "messages": [{"role": "user", "content": "What is 17 * 24?"}], "max_tokens": 64, "seed": 0}'

A client's "model" names the sampler: mh, smc-32, "mh(moves=4)"; the served model's name stands for --method. The field
"fastpower" takes alpha, settings and a budget of moves, tokens or seconds. Same seed, same bytes as fastpower.generate.
Prompts are not logged. SIGTERM finishes what was taken and takes nothing more.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "serve",
        help="answer OpenAI-compatible requests over HTTP",
        description="Serve exact power sampling to every client of OpenAI's interface.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    server = parser.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1", help="address (default 127.0.0.1: this machine only)")
    server.add_argument("--port", type=int, default=8000, help="0 chooses a free one (default 8000)")
    server.add_argument("--api-key", metavar="KEY", help="clients must send it (default: $FASTPOWER_API_KEY)")
    server.add_argument("--max-waiting", type=int, default=256, metavar="N", help="answers in the queue (default 256)")
    server.add_argument("--max-n", type=int, default=64, metavar="N", help="answers of one request (default 64)")
    server.add_argument("--max-body", type=int, default=4 << 20, metavar="BYTES", help="of a request (default 4 MiB)")
    server.add_argument("--access-log", action="store_true", help="one line per request, without its content")
    group = parser.add_argument_group("sampler, where a client says nothing")
    group.add_argument("--method", default="mh", help="mh (default), smc-32, plain, …")
    group.add_argument("--alpha", type=float, default=4.0, help="exponent of p^alpha (default 4)")
    group.add_argument("--max-new-tokens", type=int, default=512, metavar="T", help="horizon (default 512)")
    add_model_arguments(parser)
    parser.set_defaults(run=run)
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    try:
        import uvicorn

        from fastpower.integrations.server.app import Settings, create_app
    except ModuleNotFoundError as missing:
        raise ValueError(f"the server needs {missing.name}: pip install '.[serve]'") from missing
    from fastpower.integrations.server.protocol import method_of

    method_of(args.method).sampler(args.alpha, args.max_new_tokens)  # bad settings should not wait for the model
    model = load_from(args)
    settings = Settings(
        method=args.method,
        alpha=args.alpha,
        max_new_tokens=args.max_new_tokens,
        max_n=args.max_n,
        max_rows=args.max_rows,
        max_waiting=args.max_waiting,
        max_body=args.max_body,
        api_key=args.api_key or os.environ.get("FASTPOWER_API_KEY"),
    )
    config = uvicorn.Config(
        create_app(model, settings),
        host=args.host,
        port=args.port,
        log_level="info",
        access_log=args.access_log,
        http="h11",
        h11_max_incomplete_event_size=64 << 10,
        timeout_keep_alive=15,
    )
    print(f"fastpower: {model.name} by {args.method}; SIGTERM or Ctrl-C finishes what was taken", file=sys.stderr)
    server = uvicorn.Server(config)
    server.run()
    return 0 if server.started else 3
