"""Scalars for TensorBoard: a training that is killed and gone on with shows each of its steps once."""

from __future__ import annotations

import pathlib
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_SAME_SECOND_S = 0.05


def open_scalars(folder: pathlib.Path, step: int) -> SummaryWriter:
    """A writer of event files for a training that goes on behind ``step``, or begins where that is 0.

    What a killed process has written of later steps will come again: TensorBoard drops it. The scalars of ``step``
    itself are kept, so flush them before the checkpoint of that step is saved.
    """
    from torch.utils.tensorboard import SummaryWriter

    # Event files are read in the order of their names, which begin with the second in which they were opened.
    while any(folder.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
        time.sleep(_SAME_SECOND_S)
    return SummaryWriter(str(folder), purge_step=step + 1)
