"""The targets that `bench` can time. A new one is one file here and its row in table.py.

table.py   every target, by name
torch.py onnx.py coreml.py mobile.py
"""
