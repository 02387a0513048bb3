"""Where the contract tables come from: the user's own, the embedded pictograms, or H&M's competition data.

tables_of(settings, "work")  # {"items": URI, "clicks": URI, ...}
"""

from __future__ import annotations

from sidray import storage
from sidray.data.settings import CONTRACT, DataSettings


def tables_of(settings: DataSettings, work_folder: str) -> dict[str, str]:
    """Table name -> URI. Sources that make tables write them below `work_folder`."""
    if settings.source == "pictograms":
        from sidray.data.sources import pictograms

        return pictograms.build(settings, work_folder)
    if settings.source == "hm":
        from sidray.data.sources import hm

        return hm.build(settings, work_folder)
    uris = {name: getattr(settings, name) for name in CONTRACT}
    return {name: storage.absolute(uri) for name, uri in uris.items() if uri}
