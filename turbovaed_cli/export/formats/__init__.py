"""The formats that a student can be written in. A new one is one file here and its row in table.py.

table.py            every format, by name
onnx.py coreml.py executorch.py litert.py coreai.py torch_files.py comfyui.py
tracing.py          the traced program that converters start from
sensitivity.py      which convolutions must not be quantised to few bits
mil_interpreter.py  run a Core ML program in torch
"""
