"""Formats a student can be written in: a new one is one file here and its row in table.py.

table.py            every format, by its name
onnx.py coreml.py executorch.py litert.py coreai.py torch_files.py
tracing.py          what converters start from
sensitivity.py      which convolutions must not be rounded to few bits
mil_interpreter.py  run a Core ML program in torch
"""
