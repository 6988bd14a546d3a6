"""Vision-language models whose number of visual tokens is a dial: configuration, reducers, projectors, model, task.

Importing this package imports neither torch nor transformers; import the module you need.
"""
