"""fastpower inside other people's programs: transformers' ``generate``, Ray, the lm-evaluation-harness."""
