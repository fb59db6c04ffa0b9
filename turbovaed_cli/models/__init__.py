"""The networks: teachers (stock diffusers classes, and Video DC-AE) and the student that learns from them."""

from turbovaed_cli.reporting import hushed

with hushed():  # with torchao beside it, which comes with some runtimes, this import says five lines of what it lacks
    from diffusers import ModelMixin as ModelMixin
