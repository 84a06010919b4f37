"""Runs tasks on local ONNX models."""

import os

# onnxruntime's and onnxruntime-genai's packages report to their maker unless this is set before
# they are imported: names and hashes of models, and an id of the machine, which they store. See
# https://github.com/microsoft/onnxruntime/pull/27379.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
