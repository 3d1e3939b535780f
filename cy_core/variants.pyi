from cy_core.plan import Plan

class Variants:
    def __init__(self, plan: Plan) -> None: ...
