"""What fails, for processes of Ray's, which must be able to import it."""

import os


class OutOfMemoryError(RuntimeError):
    """torch's, as it arrives."""


class Inner:
    def fail(self, error: Exception) -> None:
        raise error


class Outer:
    """Made with an error, it raises it; else it lets another process fail."""

    def __init__(self, error: Exception | None = None) -> None:
        import ray

        if error:
            raise error
        self._inner = ray.remote(num_cpus=0)(Inner).remote()

    def fail(self, error: Exception) -> None:
        import ray

        ray.get(self._inner.fail.remote(error))

    def process(self) -> int:
        return os.getpid()
