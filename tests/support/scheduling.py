"""Tests by group over xdist's workers. Its own groups (--dist loadgroup) are lost with pytest 9, and each worker makes all anew."""

from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

from support.groups import group_of


class ByGroup(LoadScopeScheduling):
    """Each group is work for one worker."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(Path(nodeid.partition("::")[0]).name)
