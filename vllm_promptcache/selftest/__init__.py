"""`promptcache-selftest`: whether prompt modules are right on this machine.

For those who have hardware that the tests have not seen. Kernels are compared with plain torch;
prompts of all policies with plain prefills and among runs of an engine in each way it can run.
"""
