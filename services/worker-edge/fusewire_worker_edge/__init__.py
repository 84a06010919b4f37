"""Runs tasks on local ONNX models."""
