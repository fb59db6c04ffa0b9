"""What `bench` can time: a new target is one file here and its row in table.py.

table.py   every target, by its name
torch.py onnx.py coreml.py mobile.py
"""
