"""Finds the cheapest policy of reuse that costs a model no more answers than one allows.

`python -m vllm_promptcache.quality.calibrate --help` tells how to run it.
"""
