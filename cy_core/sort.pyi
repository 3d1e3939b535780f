from cy_core.plan import Plan

class Sorter:
    def __init__(self, plan: Plan) -> None: ...
