"""Config at the door: recipes compose, unknown keys and bad values are refused all at once, with the cure."""

import pytest

from agent_rft.commands.parts import guards_of
from agent_rft.compose import changed, load, recipes, save, settings_for
from agent_rft.contracts.errors import FaultsFound, UserError
from agent_rft.contracts.guards import Limit
from agent_rft.settings import range_warnings


@pytest.mark.parametrize("recipe", recipes())
def test_every_recipe_composes(recipe: str):
    assert settings_for(recipe, []).recipe == recipe


def test_the_7b_recipe_has_the_usual_numbers():
    settings = settings_for("research_7b", [])
    a, lora = settings.algorithm, settings.model.lora
    assert (a.group_size, a.kl_coef, a.learning_rate, a.epochs, a.batch_size, a.warmup_steps) == (8, 0.01, 1e-5, 2, 16, 5)
    assert (settings.task.limits.max_trajectory_tokens, settings.task.limits.max_tool_calls, settings.seed) == (4096, 12, 42)
    assert lora is not None
    assert (lora.rank, lora.alpha, lora.target_modules) == (32, 64, ("q_proj", "k_proj", "v_proj", "o_proj"))


def test_overrides_reach_the_tree_also_where_the_recipe_says_null():
    settings = settings_for("research_tiny", ["algorithm.kl_coef=0.02", "model.lora.rank=4", "run.id=mine", "grader.options.x=3"])
    assert settings.algorithm.kl_coef == 0.02
    assert settings.model.lora is not None
    assert settings.model.lora.rank == 4
    assert settings.run.id == "mine"
    assert settings.grader.options == {"x": 3}


@pytest.mark.parametrize("url", ["postgresql://u:p@h/d?sslmode=require", "sqlite:///a,b's.db", "http://h:1/x"])
def test_values_need_no_quoting(url: str):
    assert settings_for("research_tiny", [f"store.url={url}"]).store.url == url


def test_a_list_and_a_null_are_written_as_in_yaml():
    settings = settings_for("research_7b", ["model.lora.target_modules=[q_proj, v_proj]", "algorithm.max_steps=3"])
    assert settings.model.lora is not None
    assert settings.model.lora.target_modules == ("q_proj", "v_proj")
    assert settings_for("research_tiny", ["algorithm.max_steps=null"]).algorithm.max_steps is None


def test_a_run_that_has_begun_takes_single_keys_but_no_other_group():
    settings = settings_for("research_tiny", [])
    assert changed(settings, ["algorithm.kl_coef=0.03"]).algorithm.kl_coef == 0.03
    with pytest.raises(UserError, match="whole group"):
        changed(settings, ["model=qwen2_5_7b"])
    with pytest.raises(FaultsFound, match="kl_cof"):
        changed(settings, ["algorithm.kl_cof=0.03"])


@pytest.mark.parametrize("override", ["backend.name=nemo", "model.path=other", "model.lora.rank=4"])
def test_a_run_that_has_begun_keeps_what_its_checkpoints_are_made_with(override: str):
    settings = settings_for("research_tiny", [])
    with pytest.raises(FaultsFound, match="cannot go on so") as found:
        changed(settings, [override, "algorithm.kl_coef=0.02"])
    assert len(found.value.faults) == 1 and "start a new run with" in found.value.faults[0].cure
    assert changed(settings, [f"model.path={settings.model.path}"]) == settings, "to say the same again is no change"


def test_a_group_can_be_swapped():
    assert settings_for("research_tiny", ["model=qwen2_5_7b"]).model.path == "Qwen/Qwen2.5-7B-Instruct"


def test_all_misspelt_keys_are_named_at_once_with_the_nearest_name():
    with pytest.raises(FaultsFound) as caught:
        settings_for("research_tiny", ["algorithm.kl_cof=0.2", "modl.path=x", "task=resarch", "seed"])
    text = str(caught.value)
    for cure in ("did you mean 'kl_coef'?", "did you mean 'model'?", "did you mean 'research'?", "write key=value"):
        assert cure in text
    assert caught.value.exit_code == 2


def test_all_bad_values_are_named_at_once():
    with pytest.raises(FaultsFound) as caught:
        settings_for("research_tiny", ["algorithm.group_size=1", "seed=abc", "tools.retries=-1", "guards.max_infra_rate=2"])
    assert [fault.where for fault in caught.value.faults] == ["seed", "algorithm.group_size", "tools.retries", "guards.max_infra_rate"]
    assert "8 is usual" in str(caught.value)


def test_a_guard_is_given_another_limit_or_another_action_and_keeps_the_rest():
    overrides = ["guards.max_kl=0.3", "guards.watch.kl.action=warn", "guards.watch.early_stop={at: 0.3, action: stop}"]
    limits = guards_of(settings_for("research_tiny", overrides))
    assert limits.watch == {"kl": Limit(0.3, "warn"), "early_stop": Limit(0.3, "stop")}


def test_a_guard_is_switched_off_by_the_word_off_which_yaml_takes_for_false(tmp_path):
    overrides = ["guards.watch.shortening.action=off", "guards.watch.early_stop={at: 0.3, action: off}", "guards.watch.kl.action='off'"]
    settings = settings_for("research_tiny", overrides)
    save(settings, tmp_path / "settings.yaml")
    for one in (settings, load(tmp_path / "settings.yaml"), changed(settings_for("research_tiny", []), overrides)):
        assert {name: limit.action for name, limit in guards_of(one).watch.items()} == dict.fromkeys(
            ("shortening", "early_stop", "kl"), "off"
        )
    with pytest.raises(FaultsFound, match=r"guards\.watch\.kl\.action"):
        settings_for("research_tiny", ["guards.watch.kl.action=on"])


def test_a_limit_below_nothing_is_refused_and_not_met_in_the_middle_of_a_run():
    with pytest.raises(FaultsFound, match=r"guards\.watch\.infra\.at"):
        settings_for("research_tiny", ["guards.watch.infra.at=-0.1"])


def test_all_misspelt_guards_are_named_at_once_with_the_nearest_name():
    with pytest.raises(FaultsFound) as caught:
        settings_for("research_tiny", ["guards.watch.kll.action=warn", "guards.watch.infr.at=2", "guards.watch.kl.att=2"])
    text = str(caught.value)
    assert "guards.watch.kll: no such guard; did you mean 'kl'?" in text
    assert "guards.watch.infr: no such guard; did you mean 'infra'?" in text
    assert "guards.watch.kl.att: no such key (did you mean 'at'?)" in text


def test_what_leaves_nothing_to_go_on_with_cannot_be_only_warned_of():
    with pytest.raises(FaultsFound, match=r"guards\.watch: finite cannot be warn"):
        settings_for("research_tiny", ["guards.watch.finite.action=warn"])


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'research_tiny'"):
        settings_for("reserch_tiny", [])


def test_a_key_that_a_recipe_file_misspells_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text("seed: 1\nalgorithm: {kl_cof: 0.1}\n")
    with pytest.raises(FaultsFound) as caught:
        settings_for("mine", [], conf=tmp_path)
    assert "algorithm.kl_cof: no such key (did you mean 'kl_coef'?)" in str(caught.value)
    assert "task: is required and missing" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("algorithm.group_size=3", "below 4"),
        ("algorithm.kl_coef=0.0005", "may drift"),
        ("algorithm.kl_coef=0.06", "can hardly learn"),
        ("algorithm.epochs=5", "overfitted"),
    ],
)
def test_values_outside_the_known_ranges_are_warned_about(override: str, words: str):
    assert words in " ".join(range_warnings(settings_for("research_tiny", [override])))


def test_the_recipes_as_shipped_warn_of_nothing():
    assert [warning for recipe in recipes() for warning in range_warnings(settings_for(recipe, []))] == []


def test_settings_saved_with_a_run_come_back_the_same(tmp_path):
    settings = settings_for("research_7b", ["algorithm.kl_coef=0.02"])
    save(settings, tmp_path / "settings.yaml")
    assert load(tmp_path / "settings.yaml") == settings
    with pytest.raises(UserError, match="is missing"):
        load(tmp_path / "elsewhere.yaml")
    (tmp_path / "cut.yaml").write_text("recipe: [research")
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "cut.yaml")
