"""Event files as TensorBoard reads them."""

from __future__ import annotations

from pathlib import Path


def scalars(logdir: str) -> dict[str, dict[int, float]]:
    """Return the values that TensorBoard shows, by tag and step."""
    from tensorboardX.proto.event_pb2 import Event

    values: dict[str, dict[int, float]] = {}
    for path in sorted(Path(logdir).glob("events.*"), key=lambda p: p.stat().st_mtime_ns):
        content = path.read_bytes()
        while len(content) > 12:
            length = int.from_bytes(content[:8], "little")
            if len(content) < 16 + length:
                break  # the process was killed while it wrote this event
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.session_log.status == event.session_log.START:
                for steps in values.values():
                    for step in [s for s in steps if s >= event.step]:
                        del steps[step]
            for value in event.summary.value:
                values.setdefault(value.tag, {})[event.step] = value.simple_value
    return values
