"""Requests and replies of OpenAI's API, and of the APIs that are translated into it. Pure."""
