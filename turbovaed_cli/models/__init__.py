"""The networks: teachers, and the student that learns from them.

layers.py network.py   the student as published, and nothing else
kernels.py winograd.py scratch.py   its layers in their fastest form: fewer products, reused memory
stages.py spill.py tape.py streaming.py   the same decode, faster and piece by piece
gpu_form.py gpu_graphs.py gpu_kernels.py triton_kernels.py   the forms of the decode on a CUDA device, and the choice of one
decoder.py latent_space.py   what is asked of any decoder, and the latents that it takes
decoding.py            decode with any decoder, and the memory of its stream
student.py             the student as diffusers pipelines call it
student_vae.py         a student with the encoder of its teacher
self_contained.py stand_ins.py   the student in one file that needs torch alone, for those without turbovaed
loading.py             a student by its name, from a folder or a file
decoders.py others/    any decoder: a student, a diffusers VAE's own one, or one of another project
outline.py teacher_form.py   what a teacher's decoder is made of, for students that are cut from it, and for its fast form
teacher.py             stock diffusers VAEs, with the settings they need and feature taps
fast_encoder.py causal.py   the encoders of causal VAEs, faster and piece by piece
video_dc_ae.py         the one teacher that no diffusers class can load
encoding.py            videos of any length to the teacher's latents, piece by piece
tiles.py               overlapping tiles of a frame, encoded one by one
metering.py            the peak of what tensors take, in a rehearsal
memory.py              predicted memory of encoding and decoding, and pieces or tiles that fit
bounded.py             latents in memory to frames, within a memory limit
pair.py                a student and its teacher
design.py              a student for a budget
trainable.py           what `distill` asks of a student, and the families that it can train
"""
