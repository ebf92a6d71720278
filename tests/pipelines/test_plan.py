"""The planner is pure: declared stages and manifests in, steps out. No file is touched here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from miner.artifacts.errors import BadInput
from miner.artifacts.manifest import FileRecord, Manifest, input_key
from pipelines.plan import KEY_DIGITS, Step, plan
from pipelines.settings import Settings
from pipelines.stages import Data, Stage, declare
from tests.pipelines.builders import raw_settings

DATA = Data({"train": "a", "dev": "b", "test": "c"}, 84, 206, 210)
Present = dict[str, dict[str, Manifest]]


def test_every_stage_is_declared_after_its_parents(settings: Settings) -> None:
    seen: set[str] = set()
    for stage in declare(settings, DATA):
        assert {name for _, name in stage.parents} <= seen
        assert stage.name not in seen
        seen.add(stage.name)
    assert {"r0/fit", "r1/encode-image", "r1/index-text", "r2/mine-t2i", "r2/evaluate", "r2/report"} <= seen
    assert "r0/mine-i2t" not in seen


def test_a_loss_without_offline_negatives_mines_nothing(folder: Path) -> None:
    raw = raw_settings(folder)
    raw["loss"] = {"name": "triplet"}
    assert {s.work for s in declare(Settings.parse(raw, "t"), DATA)} == {"fit", "evaluate", "report"}


def test_shards_follow_from_the_data_alone(settings: Settings) -> None:
    parts = {stage.label: stage.parts for stage in declare(settings, DATA) if stage.round == 1}
    assert (parts["encode-image"], parts["encode-text"]) == (3, 7)
    assert (parts["mine-i2t"], parts["mine-t2i"]) == (3, 7)


def test_running_stages_one_by_one_finishes(settings: Settings) -> None:
    stages, present = declare(settings, DATA), Present()
    for done in range(len(stages)):
        steps = plan(stages, present)
        assert [s.state for s in steps].count("done") == done
        _commit(next(s for s in steps if s.state == "missing"), present)
    assert {s.state for s in plan(stages, present)} == {"done"}


def test_only_what_a_change_touches_runs_again(settings: Settings, folder: Path) -> None:
    present = _finished(settings)
    changed = Settings.parse(raw_settings(folder, loss={"alpha": 0.4}), "t")
    states = {s.stage.name: s for s in plan(declare(changed, DATA), present)}
    assert states["r0/fit"].state == "done"
    assert states["r1/mine-i2t"].state == "done"
    assert states["r1/fit"].state == "stale"
    assert "parameters.loss.alpha: 0.3 -> 0.4" in states["r1/fit"].why
    assert states["r2/encode-image"].state == "waiting"


def test_where_it_runs_changes_nothing(settings: Settings) -> None:
    elsewhere = replace(settings, executor=settings.executor.model_copy(update={"kind": "ray", "workers": 9}))
    assert {s.state for s in plan(declare(elsewhere, DATA), _finished(settings))} == {"done"}


@pytest.mark.parametrize("what", ["fingerprint", "rounds"])
def test_other_data_is_stale_and_more_rounds_are_missing(what: str, settings: Settings, folder: Path) -> None:
    present = _finished(settings)
    if what == "fingerprint":
        other = replace(DATA, fingerprints={**DATA.fingerprints, "train": "z"})
        first = plan(declare(settings, other), present)[0]
        assert (first.state, "parameters.data: a -> z" in first.why) == ("stale", True)
    else:
        more = Settings.parse(raw_settings(folder, run={"rounds": 3}), "t")
        states = {s.stage.name: s for s in plan(declare(more, DATA), present)}
        assert states["r0/fit"].state == "stale", "total_epochs shapes the learning rate"


def test_a_restart_trains_new_models_on_mined_negatives(folder: Path) -> None:
    raw = raw_settings(folder)
    restart = Settings.parse({**raw, "run": {**raw["run"], "restart": True, "first_epochs": 5, "epochs": 3}}, "t")
    stages = {stage.name: stage for stage in declare(restart, DATA)}
    for round in range(1, restart.run.rounds + 1):
        fit = stages[f"r{round}/fit"]
        assert dict(fit.parents) == {d: f"r{round}/mine-{d}" for d in ("i2t", "t2i")}
        assert dict(stages[f"r{round}/encode-image"].parents) == {"checkpoint": f"r{round - 1}/fit"}
        assert (fit.parameters["first_epoch"], fit.parameters["fit"]["total_epochs"], fit.parts) == (0, 3, 3)
    assert stages["r0/fit"].parameters["fit"]["total_epochs"] == 5


def test_offline_settings_leave_the_online_round_done(folder: Path) -> None:
    raw = raw_settings(folder)
    changed = {**raw, "loss": {"name": "aoq", "h_t": 3, "skip_t": 1}, "fit": {**raw["fit"], "online_epochs": 3}}
    one, other = ({s.name: s for s in declare(Settings.parse(each, "t"), DATA)} for each in (raw, changed))
    assert one["r0/fit"].parameters == other["r0/fit"].parameters
    assert one["r1/fit"].parameters != other["r1/fit"].parameters


def test_elements_count_in_the_costs_of_a_cross_attention_model(folder: Path) -> None:
    raw = {**raw_settings(folder), "model": {"name": "scan", "dim": 16, "word_dim": 8}}
    settings = Settings.parse(raw, "t")
    few, many = (
        {s.name: s for s in declare(settings, replace(DATA, elements={"image": regions, "text": 9.5}))}
        for regions in (1, 36)
    )
    encode = "r1/encode-image"
    assert many[encode].disk - few[encode].disk == DATA.num_images * 35 * 16 * 2
    assert many[encode].memory > few[encode].memory
    assert many["r1/encode-text"].disk == few["r1/encode-text"].disk == DATA.num_texts * (16 * 4 + int(9.5 * 16 * 2))


def test_what_ranks_and_mines_by_attention_is_planned_in_memory(folder: Path) -> None:
    """Every score of the larger split, and what comparing may hold; vectors of both sides."""

    def stages(name: str, **data: object) -> dict[str, Stage]:
        model = {"name": name, "dim": 16, "word_dim": 8}
        settings = Settings.parse({**raw_settings(folder), "model": model}, "t")
        return {stage.name: stage for stage in declare(settings, replace(DATA, **data))}

    coco = {"ranked": (5_000, 25_010)}
    for name, scores in (("vsepp", 0), ("scan", 4 * 5_000 * 25_010 + (2 << 30))):
        few, many = stages(name)["r1/evaluate"].memory, stages(name, **coco)["r1/evaluate"].memory
        held = (2 << 30) if name == "scan" else 0
        assert many - few >= scores - held + 4 * 16 * 30_010
        assert few >= 2**29 + held
    plain = stages("vsepp")
    one, other = plain["r1/mine-i2t"].memory, plain["r1/mine-t2i"].memory
    # Flat: vectors of both sides, and those of the gallery in its index.
    assert one - other == 4 * 16 * (DATA.num_texts - DATA.num_images)
    assert stages("scan")["r1/mine-i2t"].memory - one == 2 << 30


def test_versions_of_a_models_libraries_are_inputs(folder: Path) -> None:
    raw = {**raw_settings(folder), "model": {"name": "vse_inf", "text": "bert", "bert": {"path": "x"}, "dim": 16}}
    stages = {s.name: s for s in declare(Settings.parse(raw, "t"), DATA)}
    plain = {s.name: s for s in declare(Settings.parse(raw_settings(folder), "t"), DATA)}
    for name in ("r0/fit", "r1/encode-text", "r1/evaluate"):
        assert {"transformers", "tokenizers", "peft"} <= set(stages[name].inputs({})["versions"])
        assert "transformers" not in plain[name].inputs({})["versions"]
    assert "transformers" not in stages["r1/index-text"].inputs({})["versions"]


def test_skipping_all_that_is_mined_is_refused(folder: Path) -> None:
    raw = raw_settings(folder)
    loss = {"name": "aoq", "skip_t": raw["mine"]["k"]}
    with pytest.raises(BadInput, match="all passed over"):
        declare(Settings.parse({**raw, "loss": loss}, "t"), DATA)


def test_negatives_of_each_direction_are_counted_apart(folder: Path) -> None:
    """A direction's stages are those of a run with that number for both, so that nothing is mined again."""

    def mining(**mine: object) -> dict[str, dict[str, object]]:
        stages = declare(Settings.parse(raw_settings(folder, mine=mine, index={"factory": "IVF2,Flat"}), "t"), DATA)
        return {stage.name: dict(stage.parameters) for stage in stages if stage.work in ("tune", "mine")}

    found, rules = mining(k={"i2t": 7, "t2i": 3}), {"rules": ["relative-margin:margin=0.1"]}
    for direction, k in (("i2t", 7), ("t2i", 3)):
        plain = mining(k=k)
        for stage in (f"r1/tune-{direction}", f"r1/mine-{direction}"):
            assert found[stage] == plain[stage]
            assert found[stage]["k"] == k
    asked = mining(k=3, num_candidates={"i2t": 9, "t2i": 5}, **rules)
    assert [asked[f"r1/mine-{direction}"]["num_candidates"] for direction in ("i2t", "t2i")] == [9, 5]


def test_too_many_negatives_of_a_direction_are_refused(folder: Path) -> None:
    most = {"i2t": DATA.num_texts, "t2i": DATA.num_images}
    assert most["i2t"] != most["t2i"]
    declare(Settings.parse(raw_settings(folder, mine={"k": most}), "t"), DATA)
    for direction, gallery in most.items():
        raw = raw_settings(folder, mine={"k": {**most, direction: gallery + 1}})
        with pytest.raises(BadInput, match=f"larger than the gallery of {direction}: .* ask for at most {gallery}"):
            declare(Settings.parse(raw, "t"), DATA)


def _finished(settings: Settings) -> Present:
    stages, present = declare(settings, DATA), Present()
    for _ in stages:
        _commit(next(s for s in plan(stages, present) if s.state == "missing"), present)
    return present


def _commit(step: Step, present: Present) -> None:
    assert step.inputs is not None
    manifest = Manifest(step.stage.kind, dict(step.inputs), {"f": FileRecord(1, 1, step.stage.name)}, {})
    key = input_key(step.stage.kind, step.inputs)[:KEY_DIGITS]
    present.setdefault(step.stage.folder, {})[key] = manifest
