"""Process groups and their collectives as plain objects. One process is the plain path."""

from cogvideox.parallel.groups import SINGLE, Group, Groups, current, install

__all__ = ["SINGLE", "Group", "Groups", "current", "install"]
