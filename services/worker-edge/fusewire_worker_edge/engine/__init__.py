"""The engine: one loaded model in a process of its own, and the interface to it.

The model runs in a child process because onnxruntime and the tokenizer hold the interpreter's lock,
because only the end of a process surely frees its memory, and because a hung process can be killed.
"""
