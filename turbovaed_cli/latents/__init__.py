"""`cache-latents`: encode clips once, and read them many times.

caching.py       the command: one process's share of the work
planning.py      which clips are cut from a video
pixels.py        the pixels of a clip, and which clips are drawn
parts.py         which process works on which part of the videos
status.py        `--status`: the progress of a job
estimate.py      `--dry-run`: the time, disk and memory that a job would take
merge.py         `--merge`: several caches made into one
cache.py         the format, and its reader
writer.py        its writer
batch.py         batches of clips, and crops
latent_files.py  latents in a file written by a pipeline, ComfyUI or turbovaed
"""
