"""Students where people run them: diffusers pipelines, and the hub.

attach.py   a student decodes in place of the pipeline's own decoder, until it is taken out again
space.py    the latents of a pipeline's VAE, and whether a decoder takes them
within.py   one decode within a limit of memory, on the device of the latents
save.py     a pipeline's folder that loads without turbovaed
push.py     upload a student to the hub
package.py  the folder that is uploaded
private.py  paths, names of people and tokens in the files of a folder
"""
