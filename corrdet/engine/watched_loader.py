"""Loaders that are not corrdet's."""

from collections.abc import Iterable, Iterator


class WatchedLoader:
    """Another loader than corrdet's, which remembers the batch that it gave last, for messages.

    Everything else of the loader is where it was.
    """

    def __init__(self, loader: Iterable):
        """
        Args:
            loader: gives batches, each usually a list of dicts.
        """
        self._loader = loader
        self.last_batch = None

    def __iter__(self) -> Iterator:
        # Not a generator, which would begin to read at the first batch: workers start here.
        return _WatchedIterator(self, iter(self._loader))

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str):
        return getattr(self.__dict__["_loader"], name)


class _WatchedIterator:
    def __init__(self, watched: WatchedLoader, iterator: Iterator):
        self._watched = watched
        self._iterator = iterator

    def __iter__(self) -> "_WatchedIterator":
        return self

    def __next__(self):
        self._watched.last_batch = next(self._iterator)
        return self._watched.last_batch
