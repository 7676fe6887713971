"""Versions: the new one is served, older ones stay as long as they are wanted, and a rollback serves them again."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from gptport import cli, manifest, rollback, triton_config, versions
from gptport import repository as publishing
from gptport.errors import RepositoryError, UsageError

MODELS = ("gpt2", "gpt2_step")


@pytest.fixture
def repository(gpt2, exported, tmp_path):
    """A repository to which versions of one exported model are published; version n takes 100 + n tokens."""
    version = exported(gpt2).folders["gpt2"]
    known = manifest.read(version)
    configs = {
        "gpt2": lambda number, before: triton_config.text_model(known, number, before),
        "gpt2_step": lambda number, before: triton_config.step_model(known, "gpt2_step", number, before),
    }

    class Repository:
        folder = tmp_path
        model = tmp_path / "gpt2"

        def export(self, keep=None, also=None):
            number = max(versions.versions(self.model), default=0) + 1
            with publishing.staging(tmp_path) as staging:
                staged = shutil.copytree(version, staging / "version")
                document = replace(known, max_length=100 + number).to_json()
                (staged / manifest.FILE_NAME).write_text(document)
                publishing.publish(tmp_path, staged, configs | (also or {}), keep)

        def served(self):
            (both,) = {versions.served(tmp_path / name) for name in MODELS}
            assert manifest.read(manifest.version_folder(self.model)).max_length == 100 + both
            return both

        def there(self):
            text, step = (versions.versions(tmp_path / name) for name in MODELS)
            assert text == step
            return text

        def config(self, name="gpt2"):
            return tmp_path / name / "config.pbtxt"

    return Repository()


def test_both_models_go_back_with_the_configuration_that_they_had(repository):
    repository.export()
    first = {name: repository.config(name).read_bytes() for name in MODELS}
    repository.export()
    switched = rollback.rollback(repository.model)
    assert (switched.models, switched.before, switched.after) == (MODELS, 2, 1)
    assert repository.served() == 1
    assert {name: repository.config(name).read_bytes() for name in MODELS} == first


def test_a_version_may_be_named_and_gone_forward_to(repository):
    for _ in range(3):
        repository.export()
    for to in (1, 3, 2):
        rollback.rollback(repository.model, to)
        assert repository.served() == to


def test_without_a_name_it_is_the_one_served_before_not_the_number_before(repository):
    for _ in range(3):
        repository.export()
    rollback.rollback(repository.model, 1)
    repository.export()
    rollback.rollback(repository.model)
    assert repository.served() == 1


def test_what_was_changed_by_hand_is_there_again(repository):
    repository.export()
    with repository.config().open("a") as file:
        file.write('parameters { key: "threads" value { string_value: "3" } }\n')
    changed = repository.config().read_bytes()
    repository.export()
    assert b"threads" not in repository.config().read_bytes()
    rollback.rollback(repository.model)
    assert repository.config().read_bytes() == changed


def test_the_step_model_stands_for_both(repository):
    repository.export()
    repository.export()
    assert rollback.rollback(repository.folder / "gpt2_step").models == MODELS


def test_a_version_that_a_killed_export_left_without_its_step_model(repository):
    repository.export()
    repository.export()
    rollback.rollback(repository.model)
    (repository.folder / "gpt2_step" / "2").unlink()
    rollback.rollback(repository.model, 2)
    assert repository.served() == 2


def test_a_step_model_that_came_later_goes_back_to_a_version_that_was_exported_without_it(
    repository, gpt2, exported
):
    known = exported(gpt2).manifest
    repository.export()
    repository.export(
        also={"gpt2_kv": lambda number, before: triton_config.kv_model(known, "gpt2_kv", number, before)}
    )
    assert rollback.rollback(repository.model).models == (*MODELS, "gpt2_kv")
    kv = repository.folder / "gpt2_kv"
    assert (repository.served(), versions.served(kv)) == (1, 1)
    assert manifest.read(manifest.version_folder(kv)).max_length == 101
    assert triton_config.parse(kv / "config.pbtxt").parameters["max_length"].string_value == "101"


def test_keep_counts_older_versions_and_goes_on_serving(repository):
    for _ in range(4):
        repository.export(keep=2)
    assert repository.there() == [2, 3, 4]
    assert repository.served() == 4
    repository.export(keep=1)
    assert repository.there() == [4, 5]
    rollback.rollback(repository.model)
    assert repository.served() == 4


def test_keep_never_removes_what_was_served_before(repository):
    for _ in range(3):
        repository.export()
    rollback.rollback(repository.model, 1)
    repository.export(keep=1)
    assert repository.there() == [1, 4]
    rollback.rollback(repository.model)
    assert repository.served() == 1


@pytest.mark.parametrize(
    ("to", "error", "message"),
    [
        (None, UsageError, "no version was served before the present one; .* has 1; choose one with --to"),
        (7, RepositoryError, "version 7 is not there; .* has 1;"),
    ],
)
def test_what_cannot_be_gone_back_to(repository, to, error, message):
    repository.export()
    with pytest.raises(error, match=message):
        rollback.rollback(repository.model, to)
    assert repository.served() == 1


def test_a_version_without_its_configuration_is_refused_and_nothing_changes(repository):
    repository.export()
    repository.export()
    (repository.model / "1" / "gpt2_step.pbtxt").unlink()
    with pytest.raises(RepositoryError, match=r"gpt2_step\.pbtxt is missing: version 1"):
        rollback.rollback(repository.model)
    assert repository.served() == 2


def test_the_command(repository, capsys):
    repository.export()
    repository.export()
    assert cli.main(["rollback", str(repository.model)]) == 0
    assert "gpt2 and gpt2_step: version 1 instead of 2." in capsys.readouterr().out
    assert cli.main(["rollback", str(repository.folder)]) == 1
    assert "is not a model" in capsys.readouterr().err
