"""The profiles that a server offers: read at start, and again when it is told to."""

import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm.logger import init_logger

from heed_interventions.errors import InterventionError
from heed_interventions.method import Method
from heed_interventions.parse import parse
from heed_interventions.views import ModelView
from heed_server.profiles.fit import check_fit
from heed_server.profiles.identity import ModelIdentity
from heed_server.profiles.merge import merged
from heed_server.profiles.profile import Profile, ProfileError, is_profile_name, read_profile

logger = init_logger("vllm.heed.profiles")


@dataclass(frozen=True)
class Loaded:
    """What one reading of the directory found.

    profiles: usable ones by name. refused: why the others are not, by name.
    complete: names of those that a request can ask for without writing anything beside them.
    defaults: the interventions of requests that say nothing, with their profiles put in.
    """

    profiles: Mapping[str, Profile]
    refused: Mapping[str, str]
    complete: frozenset[str]
    defaults: tuple[Method, ...]


class ProfileStore:
    """The directory of profiles of one server.

    directory: None where the server has none. served: None where the model's files are not known.
    defaults: the server's default interventions, as a request would write them.

    Raises:
        InterventionError: a default asks for a profile that cannot be had.
    """

    def __init__(
        self,
        directory: Path | None,
        served: ModelIdentity | None,
        view: ModelView,
        defaults: Sequence[Any] = (),
    ) -> None:
        self.directory = directory
        self.served = served
        self._view = view
        self._defaults = list(defaults)
        self.loaded = self._read()

    def reload(self) -> None:
        """Read the directory again.

        Where it is gone, or the defaults no longer hold, everything stays as it was.
        """
        try:
            self.loaded = self._read()
        except InterventionError as error:
            logger.error("Heed: profiles are not reloaded: %s: %s", error.param, error)
        except OSError as error:
            logger.error("Heed: profiles are not reloaded: %s", error)

    def _read(self) -> Loaded:
        profiles: dict[str, Profile] = {}
        refused: dict[str, str] = {}
        complete: set[str] = set()
        for name in profile_names(self.directory):
            try:
                profiles[name] = self._usable(name, complete)
            except (ProfileError, OSError, RuntimeError) as error:
                # A folder that cannot be entered, or a ring of links, is that profile's trouble.
                refused[name] = str(error)
                logger.warning("Heed: profile %s is refused: %s", name, error)
        if self.directory is not None:
            logger.info("Heed: profiles: %s", ", ".join(profiles) or "none")
        defaults = tuple(parse(merged(self._defaults, profiles, refused)))
        return Loaded(profiles, refused, frozenset(complete), defaults)

    def _usable(self, name: str, complete: set[str]) -> Profile:
        assert self.directory is not None
        profile = read_profile(self.directory, name)
        if self.served is None:
            raise ProfileError("the files of the model being served are not known")
        if check_fit(profile, self.served, self._view):
            complete.add(name)
        return profile


def profile_names(directory: Path | None) -> list[str]:
    """Names of the profiles in a directory, usable or not; other files and folders are passed over.

    A folder whose name begins with a dot is one that is being written.
    """
    if directory is None:
        return []
    return sorted(
        path.name for path in directory.iterdir() if is_profile_name(path.name) and _is_folder(path)
    )


def _is_folder(path: Path) -> bool:
    """Whether it is one, or a link that leads nowhere: such a profile is refused, not passed over."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError:
        return path.is_symlink()
