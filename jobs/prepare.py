"""Ingests the catalogue of a recipe and its variants, fetches their weights and fills the caches of frozen layers.

ray job submit --working-dir . -- python jobs/prepare.py smgr-pictograms training.workers=2
"""

_NOTES = [f"note-cache-{style}" for style in ("micl", "basic", "text", "image")]
ROLES = ("catalogue", "text-weights", "image-weights", "text-cache", "image-cache", "grid-cache", *_NOTES)

if __name__ == "__main__":
    import sys

    sys.path.pop(0)  # this folder: its tokenize.py would hide the standard library's
    from sidray.jobs import compute, main

    main(__doc__, compute(ROLES))
