"""The simulated vehicle: a hybrid delivery van on three buses, and the databases that describe them.

    driver ──► physics ──► traffic ──► frames, or a log
    driver.py  physics.py  traffic.py  drive.py
               energy.py   encode.py
               body.py     sensors.py   *.dbc

Everything follows from a seed: the same seed gives the same bytes, on every platform. docs/vehicle.md has the overview.
"""

from pathlib import Path

_HERE = Path(__file__).parent


def databases() -> dict[str, list[Path]]:
    """The DBC files of each bus, as `edge.database.load_databases` takes them."""
    return {
        "can0": [_HERE / "powertrain.dbc", _HERE / "chassis.dbc", _HERE / "diagnostics.dbc"],
        "can1": [_HERE / "battery.dbc"],
        "can2": [_HERE / "truck.dbc"],
    }
