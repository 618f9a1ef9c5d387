"""tmp"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
from lambdas.worker import Worker, handler_for

handler = handler_for(Worker, __name__)
