"""Data that an HDF5 file from elsewhere holds itself, and not in another file to which it leads."""

from __future__ import annotations

import h5py


def own_part(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset | None:
    """The group or dataset of a name; None for one that lies in another file.

    Links to files, and datasets made of them, may lead anywhere, also to a pipe, whose reading does not end.
    """
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        return None
    part = group[name]
    elsewhere = isinstance(part, h5py.Dataset) and (part.external or part.is_virtual)
    return part if isinstance(part, h5py.Group | h5py.Dataset) and not elsewhere else None
