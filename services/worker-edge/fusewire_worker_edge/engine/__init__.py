"""One loaded model in a process of its own, and the interface through which it is used.

The model lives in a child process because onnxruntime and the tokenizer hold the interpreter's lock,
because only a process that ends gives its memory back, and because a hung one can be killed.
"""
