"""Embeds the whole catalogue with the final towers of a recipe and its variants, and computes whatever that needs.

ray job submit --working-dir . -- python jobs/embed.py smgr-pictograms training.workers=2
"""

ROLES = ("embed",)

if __name__ == "__main__":
    import sys

    sys.path.pop(0)  # this folder: its tokenize.py would hide the standard library's
    from sidray.jobs import compute, main

    main(__doc__, compute(ROLES))
