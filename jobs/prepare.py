"""Ingests the catalogue of a recipe and its variants, fetches their weights and fills the caches of frozen layers.

ray job submit --working-dir . -- python jobs/prepare.py smgr-pictograms training.workers=2
"""

ROLES = ("catalogue", "text-weights", "image-weights", "text-cache", "image-cache")

if __name__ == "__main__":
    import sys

    sys.path.pop(0)  # this folder: its tokenize.py would hide the standard library's
    from sidray.jobs import compute, main

    main(__doc__, compute(ROLES))
