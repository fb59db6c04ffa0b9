"""The networks: teachers, and the student that learns from them.

layers.py network.py   the student as published, and nothing else
kernels.py stages.py spill.py streaming.py   the same numbers faster, and piece by piece
student.py             what a pipeline calls
loading.py             a student by its name, from a folder or a file
teacher.py             stock diffusers VAEs, with the settings they need and feature taps
video_dc_ae.py         the one teacher that no diffusers class can load
pair.py                which teacher goes with which student
design.py              a student for a budget
"""
