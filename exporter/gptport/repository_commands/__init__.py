"""The commands that look after what is in a model repository: each a module with `add`, its options, and `run`."""

from __future__ import annotations

from . import doctor, export_adapter, rollback, verify, view

COMMANDS = {
    "export-adapter": export_adapter,
    "verify": verify,
    "rollback": rollback,
    "doctor": doctor,
    "view": view,
}
