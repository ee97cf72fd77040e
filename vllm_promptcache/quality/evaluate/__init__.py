"""What reuse costs and saves: policies answer the same questions, next to a plain prefill.

`python -m vllm_promptcache.quality.evaluate --help` tells how to run it.
"""
