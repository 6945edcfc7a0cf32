"""The files that a run saves as its results: those that change in its folder between saving the model and the end."""

from __future__ import annotations

from pathlib import Path

Known = dict[str, tuple[int, int]]


class Results:
    """Tells the files of the results from a stranger's that lay in the folder before.

    Args:
        output_dir: The run's folder.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self._folder = Path(output_dir)
        self._before: Known | None = None

    def begin(self) -> None:
        """Notes what is there before the first of the results is written; later calls change nothing."""
        if self._before is None:
            self._before = self._standing()

    def written(self) -> Known:
        """Returns name -> (bytes, time of the last change in nanoseconds) of what was written since :meth:`begin`."""
        if self._before is None:
            return {}
        return {name: known for name, known in self._standing().items() if self._before.get(name) != known}

    def forget(self) -> None:
        """Begins anew: the next training has results of its own."""
        self._before = None

    def _standing(self) -> Known:
        paths = self._folder.iterdir() if self._folder.is_dir() else []
        files = [path for path in paths if path.is_file() and not path.is_symlink()]
        return {
            path.name: (path.stat().st_size, path.stat().st_mtime_ns)
            for path in files
            if not path.name.startswith(("dataflex_", "."))
        }
