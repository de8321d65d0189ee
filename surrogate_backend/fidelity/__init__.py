"""The fidelity report: how true a learned surrogate is to the real backend that a log was taken of."""

from surrogate_backend.fidelity.judge import judge
from surrogate_backend.fidelity.judgement import Judgement
from surrogate_backend.fidelity.page import write_page

__all__ = ["Judgement", "judge", "write_page"]
