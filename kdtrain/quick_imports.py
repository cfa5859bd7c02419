"""Imported before anything large: Python's garbage collector rests while a process imports torch and Ray.

Modules are no garbage, and going over them again and again takes a fifth of that time (0.5 of 2.6 CPU s, 1 of 4 with
torchvision). `environment.keep_imports` wakes the collector; whoever imports this calls it in the end.
"""

import gc

gc.disable()
