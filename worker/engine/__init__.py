"""CSM as an engine: text in, codes and audio out. It can be lifted out of this repository."""
