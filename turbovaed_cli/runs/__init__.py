"""Run folders.

rundir.py      the folder of one distillation: its files, checkpoints and lock
listing.py     `turbovaed runs`: a summary of every run under a folder
"""
