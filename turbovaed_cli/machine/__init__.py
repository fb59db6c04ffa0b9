"""The machine: its devices, threads, signals and processes.

devices.py     devices, precisions, peak memory, out of memory
gpus.py        checks of a GPU: driver, cuDNN, Apple's convolutions
threads.py     read ahead and write in threads, and spread work over them
signals.py     handlers of SIGINT and SIGTERM
streams.py     stdin, stdout and stderr, open and lasting
launch.py      `--nproc`: one command as several processes
imports.py     the executable imports less of diffusers and torch
ranks.py       processes that train one student together
"""
