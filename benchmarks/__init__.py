import os

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the worker does, before torch is imported
