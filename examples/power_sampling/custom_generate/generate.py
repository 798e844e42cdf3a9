"""A folder (or hub repository) that transformers takes as ``custom_generate``.

model.generate(**inputs, custom_generate="examples/power_sampling", trust_remote_code=True, alpha=4.0, seed=1)
"""

import fastpower


def generate(model, **arguments):
    """``model.generate`` with fastpower's samplers; arguments are those of ``fastpower.custom_generate``."""
    return model.generate(custom_generate=fastpower.custom_generate, **arguments)
