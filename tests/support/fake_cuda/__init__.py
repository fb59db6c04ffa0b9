"""An accelerator of fake tensors on a machine without one, and the cases that run on it, each file of them in a process of its own."""
