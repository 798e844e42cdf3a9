"""How many registers a thread may use.

Left alone, ptxas aims at an occupancy of its own choice and spills a few bytes to reach it. ``ALL_REGISTERS``, given to
a launch, lets it use what the kernel needs. AMD's compiler has no such option.
"""

import torch

ALL_REGISTERS = {} if torch.version.hip else dict(maxnreg=255)
