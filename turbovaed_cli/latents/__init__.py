"""`cache-latents`: encode clips once, and read them again and again.

caching.py       the verb: one process's share of the work
planning.py      which clips a video gives
parts.py         who works on which part of the videos
status.py        `--status`: how far a job is
estimate.py      `--dry-run`: what a job would take
merge.py         `--merge`: one cache of several
cache.py         the format, and its reader
writer.py        its writer
batch.py         batches of clips, and crops
latent_files.py  latents in a file of a pipeline, ComfyUI or turbovaed
"""
