"""What every bench's numbers are held against; see ``fastpower.measure.machine``.

python -m bench.machine
"""

from __future__ import annotations

import json

from fastpower.measure.machine import copy, copy_bandwidth, cpu_name, facts, read, read_bandwidth, seconds

__all__ = ["copy", "copy_bandwidth", "cpu_name", "facts", "read", "read_bandwidth", "seconds"]

if __name__ == "__main__":
    print(json.dumps(facts(), indent=2))
