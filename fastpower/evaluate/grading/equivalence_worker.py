"""The process that runs math-verify: ``ready``, then JSON lines: ``[answer, reference]`` in, ``[equal, note]`` out.

Started as a script by ``fastpower.evaluate.grading.equivalence``; imports nothing of fastpower.
"""

import contextlib
import json
import logging
import resource
import sys
import warnings


def main() -> None:
    memory = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))  # sympy can expand 9^9^9^9 without end
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    reply, sys.stdout = sys.stdout, sys.stderr
    reply.write("ready\n")
    reply.flush()
    for line in sys.stdin:
        answer, reference = json.loads(line)
        try:
            with contextlib.redirect_stderr(None):
                gold, given = (parse(f"\\boxed{{{text}}}") for text in (reference, answer))
                # verify is not symmetric: the reference comes first
                result = [bool(gold and given and verify(gold, given)), "" if given else "the answer cannot be parsed"]
        except MemoryError:
            result = [False, "comparison ran out of memory"]
        except Exception as error:  # an answer can be anything: whatever breaks the parser is not the expected answer
            result = [False, f"comparison failed: {type(error).__name__}"]
        reply.write(json.dumps(result) + "\n")
        reply.flush()


if __name__ == "__main__":
    main()
