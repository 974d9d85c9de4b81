"""Watchers look and do not touch."""

from pathlib import Path

import pytest
import yaml

from tests.app.conftest import Reference
from tests.support import runs, tiny
from tests.support.application import Application
from tests.support.side_by_side import SideBySide

pytestmark = pytest.mark.process
side_by_side = SideBySide()


@side_by_side
def test_all_watchers_and_none_give_the_same_weights(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    configuration = yaml.safe_load(reference.config.read_text())
    assert len(configuration["trainer"].pop("callbacks")) == 8
    config = tiny.write(tmp_path / "config.yaml", configuration)
    ours, theirs = (
        runs.last_checkpoint(run) for run in (application.fit(config, tmp_path / "run"), reference.clean)
    )
    for part in ("state_dict", "optimizer_states"):
        assert not runs.differences(ours[part], theirs[part], part)
    watched = {key for row in runs.curve(reference.clean) for key in row}
    alone = {key for row in runs.curve(tmp_path / "run") for key in row}
    assert {key.partition("/")[0] for key in watched - alone} == {
        "balance",
        "gamma",
        "health",
        "routes",
        "ternary",
    }
    assert runs.health(reference.clean), "the health of a run is judged"
