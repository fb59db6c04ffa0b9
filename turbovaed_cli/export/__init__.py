"""`export`: write a student for other runtimes, and check the written files.

export.py       the command
plan.py         which artefacts are written, and their names
checked_on.py   the latents they are checked on
compare.py      run the written artefacts and compare them with the student
record.py       export.json
readme.py       the README and the page next to the artefacts
format.py       the types that describe a format
formats/        one file per format, and their table
export_form.py  the student with tensors of rank 4 and no 3-D convolutions
chunks.py       graphs of fixed size that decode any length
fp16_range.py   keep every value within fp16's range
cost.py         multiply-accumulates and memory of a graph
"""
