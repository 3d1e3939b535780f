from typing_extensions import Buffer

from cy_core.columns import Columns
from cy_core.plan import Plan

def lay_out(columns: Columns, selection: Buffer | None = None) -> bytearray: ...
def read(content: Buffer, plan: Plan, into: Columns | None = None) -> Columns: ...
