"""Judge calls: their prompts, the ballot over them, and the parsing of what they return. Pure."""
