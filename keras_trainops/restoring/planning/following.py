"""Follow a saved plan in place of rename rules."""

from __future__ import annotations

from collections.abc import Sequence

from keras_trainops import paths
from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.restoring.naming.matching import Matching
from keras_trainops.restoring.naming.table import counted_paths
from keras_trainops.restoring.naming.target import Target
from keras_trainops.restoring.planning.saved_plan import SavedPlan


def follow(plan: SavedPlan, matching: Matching, checkpoint: Checkpoint) -> list[str]:
    """Give the variables the keys and adapters of a plan, and deselect all other variables.

    Args:
        plan: The plan.
        matching: The variables, changed in place.
        checkpoint: The source.

    Returns:
        Lines about variables and keys of the plan that do not exist.
    """
    targets = matching.table.targets
    found, problems = _found(plan, targets)
    used: set[str] = set()
    for lead, target in zip(plan.leads, found, strict=True):
        missing = [key for key in (*lead.keys, *lead.copies) if key not in checkpoint]
        if missing:
            closest = paths.closest_phrase(missing[0], list(checkpoint), "key")
            problems.append(f"The plan needs {missing[0]!r}, which the source lacks. {closest}")
        elif target is not None and target.selected:
            target.adapter = lead.adapter
            target.leads = [*enumerate(lead.keys)]
            target.copies = [*lead.copies]
            used.update(lead.keys, lead.copies)
    planned = set(found)
    for target in targets:
        target.selected = target.selected and target in planned
    matching.unused = [key for key in checkpoint if key not in used]
    return problems


def _found(plan: SavedPlan, targets: Sequence[Target]) -> tuple[list[Target | None], list[str]]:
    """Return the variable of each lead, and lines about those that are not clear.

    Numbers such as that of `dense_7` may be automatic, and differ in another process. If a path is
    missing, layers are counted in their owners instead. If paths and counts disagree, neither is
    followed.
    """
    by_path = {target.path: target for target in targets}
    by_short = {target.short_path: target for target in targets}
    by_count = counted_paths(by_short)
    paths_lead = [
        by_path.get(lead.path) or by_short.get(lead.path.removeprefix(f"{plan.model}/"))
        for lead in plan.leads
    ]
    counts_lead = [
        by_count.get(lead.counted) if lead.counted else target
        for lead, target in zip(plan.leads, paths_lead, strict=True)
    ]
    if None in paths_lead and None not in counts_lead:
        return counts_lead, []
    known = [target.path for target in targets]
    problems = []
    for lead, target, counted in zip(plan.leads, paths_lead, counts_lead, strict=True):
        if target is None:
            closest = paths.closest_phrase(lead.path, known, "path")
            problems.append(f"The plan leads to {lead.path!r}, which the model lacks. {closest}")
        elif target is not counted:
            problems.append(
                f"The plan leads to {lead.path!r}, which was {lead.counted!r} when it was saved, "
                "but is another layer of this model. Numbers in names depend on what was created "
                "before: build the model in a new process or after `keras.backend."
                "clear_session()`, name its layers, or save the plan again."
            )
    return paths_lead, problems
