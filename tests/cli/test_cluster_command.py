"""What `kdtrain cluster` refuses before it reaches any machine."""

from pathlib import Path

import pytest

from kdtrain.cli.cluster import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none.yaml", "sweeps/digits_kd.yaml"], "none.yaml: cannot be read"),
        (["sweeps/digits_kd.yaml", "sweeps/digits_kd.yaml"], "is no cluster file, it has no cluster_name"),
        (["cluster.local.yaml", "sweeps/none.yaml"], "sweeps/none.yaml: no such file"),
        (["cluster.local.yaml", "sweeps/digits_kd.yaml", "--set", "recipe.epoch=3"], "nearest: epochs"),
        (["cluster.local.yaml", "sweeps/digits_kd.yaml", "--set=recipe.epoch=3"], "nearest: epochs"),
        (["cluster.local.yaml", "sweeps/digits_kd.yaml", "--trials", "0"], "--trials: must be >= 1, got 0"),
        (["cluster.local.yaml", "sweeps/digits_kd.yaml", "--trials", "x"], "invalid int value: 'x'"),
        (["cluster.local.yaml", "sweeps/digits_kd.yaml", "--plan"], "unrecognized arguments: --plan"),
        (["cluster.local.yaml", str(ROOT / "sweeps" / "digits_kd.yaml")], "must be below this folder"),
        (["cluster.local.yaml", "sweeps/../sweeps/digits_kd.yaml"], "must be below this folder"),
    ],
)
def test_a_mistake_is_a_sentence_and_nothing_is_sent(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.run", lambda *words, **options: pytest.fail(f"{words} was called"))
    try:
        code = main(words)
    except SystemExit as end:  # of argparse
        code = end.code  # type: ignore[assignment]
    assert code == 2
    assert said in capsys.readouterr().err


def test_a_missing_extra_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdtrain.cli.cluster.find_spec", lambda name: None)
    assert main(["cluster.yaml", "sweeps/digits_kd.yaml"]) == 2
    assert "cluster.yaml: provider.type: aws needs boto3" in (said := capsys.readouterr().err)
    assert "pip install 'kdtrain[aws]'" in said


def test_a_cluster_that_does_not_answer_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdtrain.cli.cluster._ray", lambda: "false")  # `ray` takes seconds to fail
    file = tmp_path / "cluster.yaml"
    file.write_text("cluster_name: nobody\nprovider: {type: none}\n")
    assert main([str(file), "sweeps/digits_kd.yaml"]) == 2
    assert "rsync-up" in capsys.readouterr().err
