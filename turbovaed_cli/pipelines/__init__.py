"""Students where people run them: diffusers pipelines, and the hub.

push.py      upload a student to the hub
package.py   the folder that is uploaded
private.py   paths, names of people and tokens in the files of a folder
"""
