"""Evaluation on labelled prompts: is the fusion right more often than its members?"""
