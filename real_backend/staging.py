"""Host memory that rows go up through: allocated once, and used again only when what was copied from it has arrived."""

from __future__ import annotations

import torch

BUFFERS = 2  # one is filled while the other is on its way


class Staging:
    """A ring of buffers (rows, width), pinned where the device is a GPU.

    Args:
        rows: that one buffer holds.
    """

    def __init__(self, rows: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.rows = rows
        self._buffers = [
            torch.empty((rows, width), dtype=dtype, pin_memory=self._cuda) for _ in range(BUFFERS if self._cuda else 1)
        ]
        self._arrived: list[torch.cuda.Event | None] = [None] * len(self._buffers)
        self._next = 0

    def take(self) -> torch.Tensor:
        """The next buffer, once the copy that was made from it last has arrived; ``sent`` follows."""
        event = self._arrived[self._next]
        if event is not None:
            event.synchronize()
        return self._buffers[self._next]

    def sent(self) -> None:
        """The copy from the buffer taken last has been given to the present stream."""
        if self._cuda:
            event = self._arrived[self._next] or torch.cuda.Event()
            event.record()
            self._arrived[self._next] = event
        self._next = (self._next + 1) % len(self._buffers)
